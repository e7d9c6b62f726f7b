"""Reading the published HTS-AT checkpoint (`HTSAT_AudioSet_Saved_*.ckpt`) into `Htsat`.

The file is a Lightning checkpoint: `state_dict` with the prefix `sed_model.` (10 characters). It is read with
`weights_only`, nothing in it is executed. Every key is accounted for: taken, checked, or known to be of no use.

| published | here | |
|---|---|---|
| `bn0.*` | `picture.norm.*` | taken |
| `logmel_extractor.melW` | `picture.filters` | taken |
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
from pickle import UnpicklingError

import torch
from torch import Tensor

from caeav.manifests.errors import CaeavError
from caeav.pipeline.backbones.htsat import Htsat

PREFIX = "sed_model."
_UNUSED = re.compile(r"(norm|tscam_conv|head)\.(weight|bias)")
_CHECKED = re.compile(r"(.*)\.(attn\.relative_position_index|attn_mask)")
_KERNEL = re.compile(r"spectrogram_extractor\.stft\.conv_(real|imag)\.weight")
_NAMES = (
    (re.compile(r"^bn0\."), "picture.norm."),
    (re.compile(r"^logmel_extractor\.melW$"), "picture.filters"),
    (re.compile(r"^patch_embed\."), "patches."),
    (re.compile(r"^layers\.(\d+)\.downsample\."), r"stages.\1.merge."),
    (re.compile(r"^layers\."), "stages."),
    (re.compile(r"\.attn\.proj\."), ".attn.out."),
    (re.compile(r"\.attn\.relative_position_bias_table$"), ".attn.bias_table"),
    (re.compile(r"\.mlp\.fc1\."), ".mlp.fc_in."),
    (re.compile(r"\.mlp\.fc2\."), ".mlp.fc_out."),
)


class WeightsError(CaeavError):
    """A weight file that is not what the network needs."""


def our_name(published: str) -> str:
    """The name here of a published key without prefix."""
    for pattern, name in _NAMES:
        published = pattern.sub(name, published)
    return published


def load_htsat(network: Htsat, path: Path) -> None:
    """Fill `network` from a published checkpoint, wholly or not at all; raises `WeightsError`."""
    fill_htsat(network, read_state(path), str(path))


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file, its prefix stripped."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(
            f"no file {path}", hint="give the path of HTSAT_AudioSet_Saved_1.ckpt, as published by HTS-AT"
        ) from error
    except (UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{path} is not a file of plain weights: {first}",
            hint="only tensors are read, code in a checkpoint never is; download the file again",
        ) from error
    state = held.get("state_dict") if isinstance(held, dict) else None
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise WeightsError(
            f"{path} holds no state_dict of tensors", hint="give a checkpoint published by HTS-AT"
        )
    strange = [name for name in state if not name.startswith(PREFIX)]
    if strange:
        raise WeightsError(
            f"{path}: keys without the prefix {PREFIX!r}: {_some(strange)}",
            hint="give a checkpoint published by HTS-AT for AudioSet",
        )
    return {name[len(PREFIX) :]: x for name, x in state.items()}


@torch.no_grad()
def fill_htsat(network: Htsat, state: Mapping[str, Tensor], source: str) -> None:
    """The same from tensors under published names without prefix; `source` names them in errors."""
    targets = network.state_dict(keep_vars=True)
    taken: dict[str, Tensor] = {}
    unexpected, wrong = [], []
    for name, tensor in state.items():
        if _UNUSED.fullmatch(name):
            continue
        if _KERNEL.fullmatch(name) or _CHECKED.fullmatch(name):
            said = _check(network, name, tensor)
            if said:
                wrong.append(said)
            continue
        ours = our_name(name)
        if ours not in targets:
            unexpected.append(name)
        elif targets[ours].shape != tensor.shape:
            wrong.append(f"{name} is {list(tensor.shape)}, needed {list(targets[ours].shape)}")
        else:
            taken[ours] = tensor
    missing = sorted(targets.keys() - taken.keys() - {our_name(n) for n in state})
    if missing or unexpected or wrong:
        raise WeightsError(
            f"{source} does not fit HTS-AT: missing {_some(missing)}; unexpected {_some(unexpected)}; "
            f"wrong {_some(wrong)}",
            hint="give the AudioSet checkpoint of the same size (96 channels, depths 2 2 6 2)",
        )
    for name, tensor in taken.items():
        targets[name].copy_(tensor)


def _check(network: Htsat, name: str, tensor: Tensor) -> str:
    """What is wrong with a stored constant; empty when it is the one computed here."""
    kernel = _KERNEL.fullmatch(name)
    if kernel:
        expected = fourier_kernel(network.config.sound.fft, kernel[1])
        if tensor.shape == expected.shape and torch.allclose(tensor.float(), expected, atol=1e-3):
            return ""
        return f"{name} is not a Hann-windowed Fourier transform"
    held = _CHECKED.fullmatch(name)
    constant = "index" if held and held[2].startswith("attn.") else "mask"
    place = our_name(name.rsplit(".", 1)[0]) + f".{constant}"
    expected_or_none = dict(network.named_buffers()).get(place)
    if expected_or_none is not None and torch.equal(tensor, expected_or_none.to(tensor)):
        return ""
    return f"{name} differs from the one of this network's window"


def fourier_kernel(fft: int, part: str) -> Tensor:
    """The windowed Fourier matrix the published network stores as a convolution, `[fft / 2 + 1, 1, fft]`."""
    times = torch.arange(fft)
    turns = (torch.arange(fft // 2 + 1).unsqueeze(1) * times.unsqueeze(0) % fft).double() / fft
    wave = torch.cos(2 * math.pi * turns) if part == "real" else -torch.sin(2 * math.pi * turns)
    taper = 0.5 - 0.5 * torch.cos(2 * math.pi * times.double() / fft)
    return (wave * taper).unsqueeze(1).float()


def _some(names: list[str], most: int = 8) -> str:
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
