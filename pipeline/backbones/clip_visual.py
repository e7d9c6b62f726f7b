"""CLIP's image towers through open_clip: `clip-vit-l14`, `clip-vit-b32`, and any of its ViTs by `open_clip:<name>`.

Taps `visual.block<i>` hold the patch tokens after block `i` (from 1), row by row, without the class token;
`visual.pooled` holds the embedding `[1, C]` that is compared with texts. A checkpoint holds both towers: the keys of
the text tower must be there too and are left out, anything else is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError, did_you_mean
from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.image import FrameSettings, LearnedVisual, Network
from caeav.pipeline.backbones.native import import_learned, import_torchvision
from caeav.pipeline.backbones.weights.find import WeightsError
from caeav.pipeline.backbones.weights.load import load_checked, strip_prefixes

DEPTH = 4
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
OPENAI = {
    "clip-vit-l14": "ViT-L-14",
    "clip-vit-b32": "ViT-B-32",
}
"""Name here -> open_clip's architecture."""


def clip_visual(choice: ModelChoice) -> LearnedVisual:
    """OpenAI's CLIP by its name here."""
    weights = find_facts(choice.name, "visual backbone").weights
    return LearnedVisual(choice, ClipNetwork(OPENAI[choice.name], weights, quick_gelu=True))


def open_clip_visual(choice: ModelChoice) -> LearnedVisual:
    """`open_clip:<architecture>`; its weights must be named."""
    return LearnedVisual(choice, ClipNetwork(choice.variant))


class ClipNetwork(Network):
    """A ViT of open_clip. `quick_gelu`: the activation of OpenAI's weights; others were trained with plain GELU."""

    files = FILES

    def __init__(self, architecture: str, weights: str = "", *, quick_gelu: bool = False) -> None:
        self._clip = import_open_clip()
        config = self._clip.get_model_config(architecture)
        vision = config.get("vision_cfg", {}) if config else {}
        if not isinstance(vision.get("layers"), int) or "timm_model_name" in vision:
            raise CaeavError(
                f"open_clip has no ViT {architecture!r}",
                hint=f"{did_you_mean(architecture, self._clip.list_models())} choose ViT-B-32, ViT-B-16, ViT-L-14, "
                "ViT-H-14 or another of open_clip.list_models()".strip(),
            )
        self._architecture = architecture
        self._vision = vision
        self._quick_gelu = quick_gelu or bool(config.get("quick_gelu"))
        self.weights = weights
        self.origin = "" if weights else published_by(self._clip, architecture)

    @property
    def own_frames(self) -> FrameSettings:
        """As OpenAI and open_clip prepare them."""
        size = self._vision["image_size"]
        square = (size, size) if isinstance(size, int) else (size[0], size[1])
        return FrameSettings(size=square, fit="crop", mean=MEAN, std=STD)

    def more_settings(self) -> Mapping[str, Any]:
        """The activation."""
        return {"quick_gelu": self._quick_gelu}

    def build(self, settings: Mapping[str, Any]) -> nn.Module:
        """The image tower."""
        return cast(nn.Module, self._both(settings["quick_gelu"], tuple(settings["size"])).visual)

    def load(self, module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
        """Fill the image tower from a checkpoint of both towers."""
        state = strip_prefixes(state, lambda name: name.startswith("visual."))
        with torch.device("meta"):
            both = self._both(False, tuple(cast(Any, module).image_size))
        elsewhere = [name for name in both.state_dict() if not name.startswith("visual.")]
        missing = [name for name in elsewhere if name not in state]
        if missing:
            raise WeightsError(
                f"{source} lacks {len(missing)} keys of CLIP's text tower: {', '.join(missing[:3])}, ...",
                hint=f"give a checkpoint of {self._architecture} in open_clip's format",
            )
        resized = dict(state)
        self._clip.model.resize_pos_embed(resized, _Holder(module))
        own = {name.removeprefix("visual."): x for name, x in resized.items() if name not in elsewhere}
        load_checked(module, own, source=source)

    def offered(self, module: nn.Module, frames: Tensor) -> Mapping[str, Tensor]:
        """Every block and the embedding."""
        return self._taps(module, frames, list(range(self._vision["layers"])))

    def run(self, module: nn.Module, frames: Tensor, taps: Sequence[str]) -> Mapping[str, Tensor]:
        """Only the blocks asked for."""
        blocks = [int(name.removeprefix("visual.block")) - 1 for name in taps if name != "visual.pooled"]
        return self._taps(module, frames, sorted(blocks))

    def default_taps(self, offered: Sequence[str]) -> list[str]:
        """Four blocks evenly apart up to the last."""
        blocks = [name for name in offered if name != "visual.pooled"]
        return [blocks[len(blocks) * (i + 1) // DEPTH - 1] for i in range(min(DEPTH, len(blocks)))]

    def _taps(self, module: nn.Module, frames: Tensor, blocks: list[int]) -> dict[str, Tensor]:
        found = cast(Any, module).forward_intermediates(frames, indices=blocks, output_fmt="NLC")
        taps = {f"visual.block{i + 1}": x for i, x in zip(blocks, found["image_intermediates"], strict=True)}
        return {**taps, "visual.pooled": found["image_features"].unsqueeze(1)}

    def _both(self, quick_gelu: bool, size: tuple[int, ...]) -> Any:
        config = self._clip.get_model_config(self._architecture)
        config["vision_cfg"] = {**config["vision_cfg"], "image_size": size}
        kind = self._clip.CustomTextCLIP if config.pop("custom_text", False) else self._clip.CLIP
        return kind(**{**config, "quick_gelu": quick_gelu})


class _Holder:
    """Holds the image tower where open_clip's resizing of position embeddings looks for it."""

    def __init__(self, visual: nn.Module) -> None:
        self.visual = visual


def published_by(library: Any, architecture: str) -> str:
    """Repositories on the hub with weights of this architecture and activation, as open_clip lists them."""
    activation = bool(library.get_model_config(architecture).get("quick_gelu"))
    found = []
    for tag in library.list_pretrained_tags_by_model(architecture):
        record = library.get_pretrained_cfg(architecture, tag)
        if record.get("hf_hub") and bool(record.get("quick_gelu")) == activation:
            found.append(f"hub:{record['hf_hub'].strip('/')}")
    if not found:
        return "whoever trained it: open_clip lists no weights of this architecture"
    more = f" and {len(found) - 2} more of open_clip.list_pretrained()" if len(found) > 2 else ""
    return f"{', '.join(found[:2])}{more}"


def import_open_clip() -> Any:
    """The module `open_clip`; raises `CaeavError` when it is not installed."""
    import_torchvision()  # open_clip imports it, and it may not fit the installed torch
    return import_learned("open_clip", "CLIP")
