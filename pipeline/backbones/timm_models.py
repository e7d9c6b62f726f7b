"""Visual networks of timm: any by its name (`timm:<name>`), and the papers' Swin-V2 with its stages as taps.

Frames are prepared as timm's own record of a network says. Weights come from the files that timm publishes, or from
an original checkpoint through timm's own conversion, and every key is accounted for. `LiveSwinV2` opens a Swin-V2 for
adapters: every block as its two residual halves. Walking them gives timm's own forward bit for bit; the merging, which
timm keeps at the start of a stage, ends the stage before, as in the reference.
Shapes: tokens `[BT, L, C]` are timm's `[BT, H, W, C]` grids, row by row.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError, choices
from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.image import FrameSettings, LearnedVisual, Network
from caeav.pipeline.backbones.native import import_learned, import_torchvision
from caeav.pipeline.backbones.weights.load import load_checked, strip_prefixes

DEPTH = 4
"""How many taps are cached by default: as many as adapters have stages."""
FRAMES, POOLED = "visual.frames", "visual.pooled"
_SWIN = re.compile(r"swinv2_(?!cr_)")  # the "cr" models are another implementation, without open blocks
_NUMBERED = re.compile(r"visual\.(?:block|level)(\d+)")


def timm_visual(choice: ModelChoice) -> LearnedVisual:
    """`timm:<name>`; a Swin-V2 has the same taps as under its own name here."""
    family = SwinNetwork if _SWIN.match(choice.variant) else TimmNetwork
    return LearnedVisual(choice, family(choice.variant))


def swin_v2(choice: ModelChoice) -> LearnedVisual:
    """A Swin-V2 of the papers by its name here; timm's repository on the hub is called as timm's model."""
    weights = find_facts(choice.name, "visual backbone").weights
    return LearnedVisual(choice, SwinNetwork(weights.removeprefix("hub:timm/")))


class TimmNetwork(Network):
    """A timm model by its name, with its intermediates as taps.

    `visual.block<i>`, counted from 1, where all have one shape (ViT), else `visual.level<i>`, from fine to coarse; and
    `visual.pooled` `[B, 1, C]`, the input of its classifier.
    """

    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")

    def __init__(self, architecture: str) -> None:
        self._timm = import_timm()
        if not self._timm.is_model(architecture):
            near = difflib.get_close_matches(architecture.partition(".")[0], self._timm.list_models(), n=5)
            raise CaeavError(
                f"timm {self._timm.__version__} has no model {architecture!r}",
                hint=f"choose one of timm.list_models(), e.g. {', '.join(near or ['resnet18'])}",
            )
        self._architecture = architecture
        record = self._record_of(architecture)
        self._record = record
        self.weights = f"hub:{record.hf_hub_id}" if record.hf_hub_id else ""
        self.licence = record.license or ""
        self.origin = "" if self.weights else _published_by(record.url or "")

    def _record_of(self, architecture: str) -> Any:
        """timm's record of a model and its weights, which the tag behind a dot names."""
        try:
            return self._timm.get_pretrained_cfg(architecture)
        except RuntimeError as error:
            known = self._timm.list_pretrained(f"{architecture.partition('.')[0]}.*")
            raise CaeavError(
                f"timm {self._timm.__version__} has no weights {architecture!r}",
                hint=choices(architecture, known) if known else "leave out what follows the dot",
            ) from error

    @property
    def own_frames(self) -> FrameSettings:
        """As timm's record says."""
        record = self._record
        return FrameSettings(
            size=tuple(record.input_size[1:]),
            fit="crop",
            crop=float(record.crop_pct),
            interpolation=record.interpolation,
            mean=tuple(map(float, record.mean)),
            std=tuple(map(float, record.std)),
        )

    def build(self, settings: Mapping[str, Any]) -> nn.Module:
        """Without classifier; a network made for one size is built for the size of the settings."""
        size = tuple(settings["size"])
        options: dict[str, Any] = {}
        if self._record.fixed_input_size and size != tuple(self._record.input_size[1:]):
            options["img_size"] = size
        module = self._timm.create_model(self._architecture, pretrained=False, num_classes=0, **options)
        if not hasattr(module, "forward_intermediates"):
            raise CaeavError(
                f"{self._architecture} of timm has no intermediate outputs", hint="choose another model"
            )
        return cast(nn.Module, module)

    def load(self, module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
        """As it is, or after timm's own conversion of an original checkpoint; a classifier may be left over."""
        classifier = self._record.classifier or ()
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        unused = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
        state = strip_prefixes(state, module.state_dict().keys().__contains__)
        if any(name not in state for name in module.state_dict()):
            state = _converted(module, state)
        load_checked(module, state, source=source, unused=unused)

    def offered(self, module: nn.Module, frames: Tensor) -> Mapping[str, Tensor]:
        """All intermediates and the pooled features."""
        return self._taps(module, frames, None)

    def run(self, module: nn.Module, frames: Tensor, taps: Sequence[str]) -> Mapping[str, Tensor]:
        """Only the intermediates asked for."""
        numbers = [int(found[1]) for name in taps if (found := _NUMBERED.fullmatch(name))]
        return self._taps(module, frames, sorted(number - 1 for number in numbers), pooled=POOLED in taps)

    def default_taps(self, offered: Sequence[str]) -> list[str]:
        """The four deepest levels, or four blocks evenly apart up to the last."""
        inner = [name for name in offered if name != POOLED]
        if not inner[0].startswith("visual.block"):
            return inner[-DEPTH:]
        return [inner[len(inner) * (i + 1) // DEPTH - 1] for i in range(min(DEPTH, len(inner)))]

    def _taps(
        self, module: nn.Module, frames: Tensor, indices: list[int] | None, *, pooled: bool = True
    ) -> dict[str, Tensor]:
        model = cast(Any, module)
        if indices == []:
            return {POOLED: model(frames).unsqueeze(1)}
        last, levels = model.forward_intermediates(frames, indices=indices, output_fmt="NCHW")
        numbers = range(len(levels)) if indices is None else indices
        word = "block" if self._alike(module) else "level"
        taps = {
            f"visual.{word}{i + 1}": x.flatten(2).transpose(1, 2)  # [B, C, H, W] -> [B, L, C]
            for i, x in zip(numbers, levels, strict=True)
        }
        if pooled:
            taps[POOLED] = model.forward_head(last, pre_logits=True).flatten(1).unsqueeze(1)
        return taps

    @staticmethod
    def _alike(module: nn.Module) -> bool:
        """Whether all its intermediates have one resolution and width."""
        info = cast(Any, module).feature_info
        rows = info.info if hasattr(info, "info") else info
        return len({(row["num_chs"], row["reduction"]) for row in rows}) == 1


class SwinNetwork(TimmNetwork):
    """A Swin-V2 walked by its live wrapper, so that adapters inside it can start from a cached tap.

    `visual.stage<i>`: tokens at the end of a stage, before merging; `visual.norm`: those of the last stage after the
    final norm; `visual.frames`: the network's input, pixel by pixel, for adapters in its first stage.
    """

    def offered(self, module: nn.Module, frames: Tensor) -> Mapping[str, Tensor]:
        """All stages and the norm."""
        live = LiveSwinV2(module)
        x = live.embed(frames)
        taps = {FRAMES: frames.flatten(2).transpose(1, 2)}
        for i, stage in enumerate(live.stages):
            x = live.stages[i - 1].merge(x) if i else x
            for block in stage.blocks:
                x = x + block.attention(x)
                x = x + block.mlp(x)
            taps[f"visual.stage{i + 1}"] = x
        return {**taps, "visual.norm": live.norm(x)}

    def run(self, module: nn.Module, frames: Tensor, taps: Sequence[str]) -> Mapping[str, Tensor]:
        """All of them; without running the network where the frames alone are wanted."""
        if list(taps) == [FRAMES]:
            return {FRAMES: frames.flatten(2).transpose(1, 2)}
        return self.offered(module, frames)

    def default_taps(self, offered: Sequence[str]) -> list[str]:
        """The stages; norm and frames on request."""
        return [name for name in offered if name not in ("visual.norm", FRAMES)]

    def open(self, module: nn.Module) -> LiveSwinV2:
        """The network opened up for adapters inside it."""
        return LiveSwinV2(module)


class LiveSwinV2:
    """A Swin-V2 of timm opened up for adapters inside it.

    Its input is normalised frames `[BT, 3, H, W]`, or `[BT, H * W, 3]` as the tap `visual.frames` holds them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = model
        self._model = cast(Any, model)
        layers = list(self._model.layers)
        stages = []
        for i, layer in enumerate(layers):
            height, width = layer.output_resolution
            stages.append(
                SwinStage(
                    tokens=height * width,
                    channels=layer.blocks[0].dim,
                    height=height,
                    width=width,
                    blocks=tuple(SwinBlock(block, height, width) for block in layer.blocks),
                    merging=layers[i + 1].downsample if i + 1 < len(layers) else None,
                )
            )
        self.stages = tuple(stages)

    def embed(self, frames: Tensor) -> Tensor:
        """Frames -> tokens entering the first stage."""
        if frames.ndim == 3:
            frames = frames.view(-1, *self._model.patch_embed.img_size, 3).permute(0, 3, 1, 2)
        return self._model.patch_embed(frames).flatten(1, 2)  # type: ignore[no-any-return]

    def norm(self, x: Tensor) -> Tensor:
        """The final norm, over the last stage's tokens."""
        return self._model.norm(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SwinStage:
    """The blocks of one resolution, and the merging into the next."""

    tokens: int
    channels: int
    height: int
    width: int
    blocks: tuple[SwinBlock, ...]
    merging: nn.Module | None

    def merge(self, x: Tensor) -> Tensor:
        """Tokens of this stage -> tokens entering the next; raises `ValueError` for the last stage."""
        if self.merging is None:
            raise ValueError("the last stage is not merged")
        grid = x.view(x.shape[0], self.height, self.width, self.channels)
        return self.merging(grid).flatten(1, 2)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class SwinBlock:
    """One block in two halves: `x + attention(x)`, then `x + mlp(x)`; the norm comes last in each (post-norm)."""

    block: Any
    height: int
    width: int

    def attention(self, x: Tensor) -> Tensor:
        """Increment of (shifted) window attention, `[BT, L, C]` -> `[BT, L, C]`."""
        block = self.block
        grid = block._attn(x.view(x.shape[0], self.height, self.width, x.shape[-1]))
        return block.drop_path1(block.norm1(grid)).view_as(x)  # type: ignore[no-any-return]

    def mlp(self, x: Tensor) -> Tensor:
        """Increment of the feed-forward part."""
        block = self.block
        return block.drop_path2(block.norm2(block.mlp(x)))  # type: ignore[no-any-return]


def import_timm() -> Any:
    """The module `timm`; raises `CaeavError` when it is not installed."""
    import_torchvision()  # timm imports it, and it may not fit the installed torch
    return import_learned("timm", "this backbone")


def _published_by(url: str) -> str:
    """The repository and file of weights that timm does not keep on the hub."""
    *_, owner, repository, _, _, _, file = ["", "", "", "", "", *url.split("/")]
    if "/releases/" not in url:
        return (
            f"timm's record, {url}"
            if url
            else "whoever trained it: timm knows no weights of this architecture"
        )
    return f"the repository {owner}/{repository}, its release file {file}"


def _converted(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A checkpoint in its publisher's layout, converted by the function that the model's module in timm has for it."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    parameters = inspect.signature(convert).parameters
    return cast(
        Mapping[str, Tensor], convert(dict(state), module) if len(parameters) > 1 else convert(dict(state))
    )
