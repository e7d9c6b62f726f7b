"""Read both published forms of CLAP into one: the `.pt` of laion-clap, and the hub folders of transformers.

The result has laion-clap's names, and keeps what the checkpoint says about its front end. Neither library is needed.

| transformers | laion-clap |
|---|---|
| `audio_model.audio_encoder.batch_norm.*` | `audio_branch.bn0.*` |
| `... layers.I.blocks.J.layernorm_before.*`, `layernorm_after.*` | `... norm1.*`, `norm2.*` |
| `... attention.self.query.*`, `key.*`, `value.*` | `... attn.qkv.*`, one on top of the other |
| `... attention.self.relative_position_*`, `attention.output.dense.*` | `... attn.relative_position_*`, `attn.proj.*` |
| `... intermediate.dense.*`, `output.dense.*` | `... mlp.fc1.*`, `mlp.fc2.*` |
| `text_model.*` | `text_branch.*` |
| `audio_projection.linear1.*`, `linear2.*` (and text) | `audio_projection.0.*`, `.2.*` |
| `logit_scale_a`, `logit_scale_t` | the same, of no use here |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.find import Weights, WeightsError, find_weights
from caeav.pipeline.backbones.weights.load import read_weights, strip_prefixes

HUB_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
LAION_FILES = ("630k-audioset-best.pt",)
CONFIG = "config.json"
FRONT_END_FILES = ("preprocessor_config.json", "processor_config.json")

_OWN = (
    "audio_branch.",
    "audio_projection.",
    "text_branch.",
    "text_projection.",
    "audio_model.",
    "text_model.",
)
_ENCODER = "audio_model.audio_encoder."
_NAMES = (
    (re.compile(r"^batch_norm\."), "bn0."),
    (re.compile(r"\.layernorm_before\."), ".norm1."),
    (re.compile(r"\.layernorm_after\."), ".norm2."),
    (re.compile(r"\.attention\.self\.relative_position_"), ".attn.relative_position_"),
    (re.compile(r"\.attention\.output\.dense\."), ".attn.proj."),
    (re.compile(r"\.intermediate\.dense\."), ".mlp.fc1."),
    (re.compile(r"\.output\.dense\."), ".mlp.fc2."),
)
_SELF = re.compile(r"^(.*)\.attention\.self\.(query|key|value)\.(weight|bias)$")
_FUSION = re.compile(r"^patch_embed\.(fusion_model|mel_conv2d)\.")
_USELESS = re.compile(r"^(logit_scale_[at]|(audio|text)_transform\..*)$")
_POSITIONS = re.compile(r"(.*\.)?(position_ids|token_type_ids)$")


@dataclass(frozen=True)
class ClapState:
    """Both towers under laion-clap's names, and what else the checkpoint says.

    audio: as in `audio_branch`, without fusion's weights, and `audio_projection.*`; text: as in `text_branch`, and
    `text_projection.*`. audio_config, text_config, front_end: from a hub folder, empty for a `.pt`.
    """

    audio: dict[str, Tensor]
    text: dict[str, Tensor]
    fused: bool
    audio_config: Mapping[str, Any]
    text_config: Mapping[str, Any]
    front_end: Mapping[str, Any]


def find_clap(choice: ModelChoice, default: str, beside: Sequence[str]) -> Weights:
    """The files of a CLAP: a `.pt` of laion-clap, or a hub folder with its `config.json` and files of `beside`."""
    return find_weights(choice, default=default, wants=(*HUB_FILES, *LAION_FILES), also=(CONFIG, *beside))


def read_clap(weights: Weights, tower: Literal["audio", "text"]) -> ClapState:
    """Read either form; raises `WeightsError` when it is neither or lacks the tower."""
    state = strip_prefixes(read_weights(weights), lambda name: name.startswith(_OWN))
    hub = any(name.startswith((_ENCODER, "text_model.")) for name in state)
    audio, text, unknown = _from_hub(state) if hub else _from_laion(state)
    if unknown or not (audio if tower == "audio" else text):
        problem = f"keys of no CLAP: {', '.join(unknown[:8])}" if unknown else f"it has no {tower} tower"
        raise WeightsError(
            f"{weights.source} is no CLAP checkpoint: {problem}",
            hint="give a .pt of laion-clap (with HTSAT and RoBERTa) or a folder of transformers' ClapModel",
        )
    fused = any(_FUSION.match(name) for name in audio)
    config = _beside(weights, (CONFIG,)) if hub else {}
    front = _beside(weights, FRONT_END_FILES) if hub and tower == "audio" else {}
    return ClapState(
        audio={name: x for name, x in audio.items() if not _FUSION.match(name)},
        text={name: x for name, x in text.items() if not _POSITIONS.fullmatch(name)},
        fused=fused,
        audio_config=_part(config, "audio"),
        text_config=_part(config, "text"),
        front_end=front.get("feature_extractor", front),
    )


def _part(config: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The configuration of a tower, whether it was saved with the other or alone."""
    held = config if config.get("model_type") == f"clap_{tower}_model" else config.get(f"{tower}_config")
    return dict(held or {})


Towers = tuple[dict[str, Tensor], dict[str, Tensor], list[str]]
"""Tensors of the audio tower and of the text tower, and the names that belong to neither."""


def _from_laion(state: Mapping[str, Tensor]) -> Towers:
    audio, text, strange = {}, {}, []
    for name, tensor in state.items():
        if name.startswith(("audio_branch.", "audio_projection.")):
            audio[name.removeprefix("audio_branch.")] = tensor
        elif name.startswith(("text_branch.", "text_projection.")):
            text[name.removeprefix("text_branch.")] = tensor
        elif not _USELESS.fullmatch(name):
            strange.append(name)
    return audio, text, strange


def _from_hub(state: Mapping[str, Tensor]) -> Towers:
    audio, text, strange = {}, {}, []
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        found = _SELF.match(name.removeprefix(_ENCODER)) if name.startswith(_ENCODER) else None
        if found:
            parts.setdefault(f"{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = tensor
        elif name.startswith(_ENCODER):
            audio[_laion_name(name.removeprefix(_ENCODER))] = tensor
        elif name.startswith("audio_projection."):
            audio[_projection(name)] = tensor
        elif name.startswith("text_model."):
            text[name.removeprefix("text_model.")] = tensor
        elif name.startswith("text_projection."):
            text[_projection(name)] = tensor
        elif not _USELESS.fullmatch(name):
            strange.append(name)
    for name, three in parts.items():
        if len(three) == 3:  # else the missing key is named by the loader
            audio[name] = torch.cat([three["query"], three["key"], three["value"]])
    return audio, text, strange


def _laion_name(name: str) -> str:
    for pattern, theirs in _NAMES:
        name = pattern.sub(theirs, name)
    return name


def _projection(name: str) -> str:
    return name.replace(".linear1.", ".0.").replace(".linear2.", ".2.")


def _beside(weights: Weights, names: tuple[str, ...]) -> dict[str, Any]:
    """The first of these JSON files that lies beside the weights; raises `WeightsError` when none does."""
    for name in names:
        path = weights.folder / name if weights.folder is not None else None
        if path is not None and path.is_file():
            try:
                held = json.loads(path.read_bytes())
            except ValueError as error:
                raise WeightsError(
                    f"{weights.source}: {name} is no JSON", hint="get the folder again"
                ) from error
            if isinstance(held, dict):
                return held
    raise WeightsError(
        f"{weights.source} lacks {' or '.join(names)}", hint="give the whole folder, as published"
    )
