"""Read YAMNet's weights, from the authors' `yamnet.h5` or as plain tensors, wholly or not at all.

| `yamnet.h5` (Keras) | plain tensors, and here | |
|---|---|---|
| `layer1/conv/kernel` | `layer1.conv.weight` | folded |
| `layer<i>/depthwise_conv/depthwise_kernel` | `layer<i>.depthwise.weight` | folded |
| `layer<i>/pointwise_conv/kernel` | `layer<i>.pointwise.weight` | folded |
| `.../bn/beta`, `moving_mean`, `moving_variance` | `... .bias` | folded |
| `dense/kernel`, `dense/bias` | `classifier.weight`, `classifier.bias` | turned |
| | `frontend.mel`, `frontend.window`, `frontend.log_offset` | must be those of `frontend.py` |

Keras repeats a layer's name (`layer1/conv/layer1/conv/kernel:0`), numbers the dense layer by how many the program made
before (`dense_1`), and stores no front end. Its batch norms have no scale and an epsilon of 1e-4. Plain tensors with a
front end are those of the authors' 8-bit export, made floating-point again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from caeav.manifests.core.errors import CaeavError, choices
from caeav.pipeline.backbones.weights.find import Weights, WeightsError
from caeav.pipeline.backbones.weights.load import load_checked, read_weights, seeded, strip_prefixes
from caeav.pipeline.backbones.yamnet.frontend import BANDS, MELS, OFFSET, hann_window, mel_weights
from caeav.pipeline.backbones.yamnet.network import Yamnet

EPSILON = 1e-4
_KERAS = re.compile(
    r"(?:^|/)(layer\d+)/(?:(depthwise|pointwise)_)?conv/"
    r"(bn/beta|bn/moving_mean|bn/moving_variance|kernel|depthwise_kernel)(?::0)?$"
)
_DENSE = re.compile(r"(?:^|/)(?:dense(?:_\d+)?|logits)/(kernel|bias)(?::0)?$")
_FRONT_END = "frontend."
_TURNS = {"conv": (3, 2, 0, 1), "pointwise": (3, 2, 0, 1), "depthwise": (2, 3, 0, 1)}
"""Keras holds `[height, width, in, out]`, of depthwise filters `[height, width, channel, 1]`."""
_HINT = "give yamnet.h5 as its authors published it"


def read_yamnet(weights: Weights) -> dict[str, Tensor]:
    """The tensors of a file of either form under the names here; raises `WeightsError` for another network's."""
    state = read_weights(weights)
    if any(_KERAS.search(name) for name in state):
        state = from_keras(state, weights.source)
    state = strip_prefixes(state, _ours)
    if not any(map(_ours, state)):
        raise WeightsError(
            f"{weights.source} holds no YAMNet: its names are {', '.join(list(state)[:8])}", hint=_HINT
        )
    return state


def own_mel(state: Mapping[str, Tensor]) -> str:
    """The mel filters that go with the tensors: `int8` with those of the 8-bit export, which brings its front end."""
    return "int8" if f"{_FRONT_END}mel" in state else "float"


def open_yamnet(name: str, weights: Weights, mel: str | None) -> tuple[Yamnet, str]:
    """The network with its weights, frozen, and the mel filters it has: `mel`, or if None those of the weights.

    Raises `CaeavError`, naming the model `name`, for other filters than there are.
    """
    if mel not in (*MELS, None):
        raise CaeavError(f"setting 'mel' of {name} is {mel!r}", hint=choices(str(mel), MELS))
    state = {} if weights.seed is not None else read_yamnet(weights)
    found = own_mel(state) if mel is None else mel
    with seeded(weights):
        network = Yamnet(found)
    if state:
        fill_yamnet(network, state, weights.source)
    return network.requires_grad_(False).eval(), found


def fill_yamnet(network: Yamnet, state: Mapping[str, Tensor], source: str) -> None:
    """Fill `network` with what `read_yamnet` found; raises `WeightsError`, naming `source`, for what does not fit."""
    load_checked(network, _without_front_end(state, source), source=source)


def _ours(name: str) -> bool:
    return name.startswith(("layer1.conv.", "classifier."))


def from_keras(held: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The authors' tensors under the names here, batch norms folded; names that are unknown stay, to be refused.

    Raises `WeightsError` where a batch norm lacks a part or does not fit its filters.
    """
    found: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    for name, x in held.items():
        if layer := _KERAS.search(name):
            part = layer[3].removeprefix("depthwise_").removeprefix("bn/")
            layers.setdefault(f"{layer[1]}.{layer[2] or 'conv'}", {})[part] = x.double()
        elif dense := _DENSE.search(name):
            found[f"classifier.{'weight' if dense[1] == 'kernel' else 'bias'}"] = x.T if x.ndim == 2 else x
        else:
            found[name] = x
    for name, parts in layers.items():
        found |= _folded(name, parts, source)
    return found


def _folded(name: str, parts: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """One convolution and its batch norm as one convolution with a bias, computed in float64."""
    wanted = {"kernel", "beta", "moving_mean", "moving_variance"}
    if missing := sorted(wanted - parts.keys()):
        raise WeightsError(f"{source}: {name} lacks {', '.join(missing)}", hint=_HINT)
    kernel, shift, mean = (parts[part] for part in ("kernel", "beta", "moving_mean"))
    if kernel.ndim != 4 or {x.shape for x in (shift, mean, parts["moving_variance"])} != {
        kernel.permute(_TURNS[name.rpartition(".")[2]]).shape[:1]
    }:
        raise WeightsError(
            f"{source}: the batch norm of {name} does not fit {list(kernel.shape)}", hint=_HINT
        )
    scale = (parts["moving_variance"] + EPSILON).rsqrt()
    weight = kernel.permute(_TURNS[name.rpartition(".")[2]]) * scale.view(-1, 1, 1, 1)
    return {f"{name}.weight": weight.float(), f"{name}.bias": (shift - mean * scale).float()}


def _without_front_end(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`state` less the front end, if it holds one, which must be the one computed here."""
    own = {"mel": mel_weights(), "window": hann_window(), "log_offset": torch.full((BANDS,), OFFSET)}
    wrong = [
        name
        for part, x in own.items()
        if (held := state.get(name := _FRONT_END + part)) is not None
        and (held.shape != x.shape or not torch.allclose(held.float(), x, rtol=0, atol=1e-4 * float(x.max())))
    ]
    if wrong:
        raise WeightsError(f"{source}: {', '.join(wrong)} are not YAMNet's front end", hint=_HINT)
    return {name: x for name, x in state.items() if name.removeprefix(_FRONT_END) not in own}
