"""Read the published HTS-AT checkpoint (`HTSAT_AudioSet_Saved_*.ckpt`) into `Htsat`.

The file is a Lightning checkpoint whose names begin with `sed_model.`; prefixes of training come off. Every key is
accounted for: taken, checked, or known to be of no use. CLAP's audio tower has the same names.

| published | here | |
|---|---|---|
| `bn0.*` | `image.norm.*` | taken |
| `logmel_extractor.melW` | `image.filters` | must be those of the front end |
| `patch_embed.proj.*`, `patch_embed.norm.*` | `patches.proj.*`, `patches.norm.*` | taken |
| `layers.I.blocks.J.norm1.*`, `norm2.*`, `attn.qkv.*` | `stages.I.blocks.J. ...` same | taken |
| `... attn.proj.*`, `attn.relative_position_bias_table` | `... attn.out.*`, `attn.bias_table` | taken |
| `... mlp.fc1.*`, `mlp.fc2.*` | `... mlp.fc_in.*`, `mlp.fc_out.*` | taken |
| `layers.I.downsample.*` | `stages.I.merge.*` | taken |
| `... attn.relative_position_index`, `attn_mask` | computed | must be equal |
| `spectrogram_extractor.stft.conv_{real,imag}.weight` | an FFT | must be its matrices |
| `norm.*`, `tscam_conv.*`, `head.*` | - | of no use here |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caeav.pipeline.backbones.htsat.frontend import FrontEnd, mel_weights
from caeav.pipeline.backbones.htsat.network import Htsat
from caeav.pipeline.backbones.weights.find import WeightsError
from caeav.pipeline.backbones.weights.load import load_checked, read_tensors, strip_prefixes

_OWN = ("bn0.", "patch_embed.", "layers.")
FILTERS = "logmel_extractor.melW"
_UNUSED = re.compile(r"(norm|tscam_conv|head)\.(weight|bias)")
_CHECKED = re.compile(r"(.*)\.(attn\.relative_position_index|attn_mask)")
_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")
_KERNEL = re.compile(r"spectrogram_extractor\.stft\.conv_(real|imag)\.weight")
_NAMES = (
    (re.compile(r"^bn0\."), "image.norm."),
    (re.compile(r"^logmel_extractor\.melW$"), "image.filters"),
    (re.compile(r"^patch_embed\."), "patches."),
    (re.compile(r"^layers\.(\d+)\.downsample\."), r"stages.\1.merge."),
    (re.compile(r"^layers\."), "stages."),
    (re.compile(r"\.attn\.proj\."), ".attn.out."),
    (re.compile(r"\.attn\.relative_position_bias_table$"), ".attn.bias_table"),
    (re.compile(r"\.mlp\.fc1\."), ".mlp.fc_in."),
    (re.compile(r"\.mlp\.fc2\."), ".mlp.fc_out."),
)


def our_name(published: str) -> str:
    """The name here of a published key without prefix."""
    for pattern, name in _NAMES:
        published = pattern.sub(name, published)
    return published


def read_state(path: Path, part: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint file, without prefixes of training; raises `WeightsError` for another network's."""
    state = strip_prefixes(read_tensors(path, part), lambda name: name.startswith(_OWN))
    if not any(name.startswith(_OWN) for name in state):
        raise WeightsError(
            f"{path} holds no HTS-AT: its names are {', '.join(list(state)[:8])}",
            hint="give a checkpoint published by HTS-AT for AudioSet",
        )
    return state


def fill_htsat(network: Htsat, state: Mapping[str, Tensor], source: str) -> None:
    """Fill `network` from tensors under published names without prefix, wholly or not at all.

    Raises `WeightsError`, in which `source` names the tensors.
    """
    load_checked(network, our_state(network, state, source), source=source)


def our_state(network: Htsat, published: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The published tensors that `network` takes, under its own names; unknown names stay, for the loader to refuse.

    Raises `WeightsError` where a stored constant differs from the one computed here: it is another network then.
    """
    ours, wrong = {}, []
    for name, tensor in published.items():
        if _KERNEL.fullmatch(name) or _CHECKED.fullmatch(name):
            wrong += _check(network, name, tensor)
        elif name == FILTERS:
            wrong += _check_filters(network.config.front_end, tensor)
            ours[our_name(name)] = tensor
        elif not _UNUSED.fullmatch(name):
            ours[our_name(name)] = tensor
    if wrong:
        raise WeightsError(
            f"{source} does not fit HTS-AT: {'; '.join(wrong[:8])}",
            hint="leave the front end at its defaults, and give the checkpoint of this network",
        )
    return ours


def network_sizes(published: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """A network's sizes, as `HtsatConfig` names them, from published tensors; raises `WeightsError`."""
    blocks = sorted(
        {(int(found[1]), int(found[2])) for name in published if (found := _BLOCK.match(name)) is not None}
    )
    if not blocks:
        raise WeightsError(
            f"{source} holds no HTS-AT: no layers.0.blocks.0, but {', '.join(list(published)[:4])}",
            hint="give a checkpoint of HTS-AT or CLAP",
        )
    try:
        depths = [
            sum(stage == i for stage, _ in blocks) for i in range(1 + max(stage for stage, _ in blocks))
        ]
        tables = [
            published[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(len(depths))
        ]
        patches = published["patch_embed.proj.weight"]  # [C, 1, patch, patch]
        hidden = published["layers.0.blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(
            f"{source} holds no HTS-AT: {error} is not there", hint="give a checkpoint of HTS-AT or CLAP"
        ) from error
    return {
        "patch": patches.shape[-1],
        "channels": patches.shape[0],
        "depths": tuple(depths),
        "heads": tuple(table.shape[1] for table in tables),
        "window": (round(tables[0].shape[0] ** 0.5) + 1) // 2,
        "mlp_ratio": hidden // patches.shape[0],
    }


def image_size_of(published: Mapping[str, Tensor]) -> int:
    """The size of the mel image, from the mask of the first shifted block; the usual one where no mask is stored."""
    mask = published.get("layers.0.blocks.1.attn_mask")  # [windows, S, S]
    if mask is None:
        return FrontEnd.image_size
    patch = int(published["patch_embed.proj.weight"].shape[-1])
    return round(math.sqrt(mask.shape[0] * mask.shape[1])) * patch


def _check(network: Htsat, name: str, tensor: Tensor) -> list[str]:
    """What is wrong with a stored constant; empty where it is the one computed here."""
    kernel = _KERNEL.fullmatch(name)
    if kernel:
        expected = fourier_kernel(network.config.front_end.fft, kernel[1])
        if tensor.shape == expected.shape and torch.allclose(tensor.float(), expected, atol=1e-3):
            return []
        return [f"{name} is not a Hann-windowed Fourier transform"]
    held = _CHECKED.fullmatch(name)
    constant = "index" if held and held[2].startswith("attn.") else "mask"
    place = our_name(name.rsplit(".", 1)[0]) + f".{constant}"
    expected_or_none = dict(network.named_buffers()).get(place)
    if expected_or_none is not None and torch.equal(tensor, expected_or_none.to(tensor)):
        return []
    return [f"{name} differs from the one of this network's window"]


def _check_filters(front_end: FrontEnd, stored: Tensor) -> list[str]:
    """Refuse a rate or range of frequencies the weights were not trained with: nothing else would notice it."""
    wanted = mel_weights(front_end)
    if stored.shape == wanted.shape and torch.allclose(stored.float(), wanted, atol=1e-4):
        return []
    return [
        f"{FILTERS} {list(stored.shape)} are not the mel filters of {front_end.rate_hz} Hz, fft {front_end.fft}, "
        f"{front_end.bands} bands, {front_end.low_hz:g} to {front_end.high_hz:g} Hz"
    ]


def fourier_kernel(fft: int, part: str) -> Tensor:
    """The windowed Fourier matrix that the published network stores as a convolution, `[fft / 2 + 1, 1, fft]`."""
    times = torch.arange(fft)
    turns = (torch.arange(fft // 2 + 1).unsqueeze(1) * times.unsqueeze(0) % fft).double() / fft
    wave = torch.cos(2 * math.pi * turns) if part == "real" else -torch.sin(2 * math.pi * turns)
    taper = 0.5 - 0.5 * torch.cos(2 * math.pi * times.double() / fft)
    return (wave * taper).unsqueeze(1).float()
