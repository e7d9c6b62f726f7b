"""Loads the parameters of golden vectors into our modules.

The vectors' neutral names (REFERENCE.md) are our parameter names. Only shapes differ: the reference wrote linear maps
over tokens as convolutions of kernel size 1, whose axes of length 1 we drop.

| vector name ends in | there | here |
|---|---|---|
| `depthwise.weight` | `[C, 1, 3]` | `[C, 3]` |
| `pointwise.weight` | `[C, C, 1]` | `[C, C]` |
| `down.weight`, `up.weight` of experts | `[out, in / groups, 1, 1]` | `[out, in / groups]` |
| `token_proj.weight` | `[N, M, 1, 1]` | `[N, M]` |

Anything else has the same name and shape. The prefixes `param.` and `buffer.` of the vectors are not part of a name.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError


def channels_first(x: Tensor) -> Tensor:
    """Our `[BT, N, C]` as the vectors' `[BT, C, N, 1]`."""
    return x.transpose(1, 2).unsqueeze(-1)


def channels_last(x: Tensor) -> Tensor:
    """The vectors' `[BT, C, N, 1]` as our `[BT, N, C]`."""
    return x.squeeze(-1).transpose(1, 2)


class VectorMismatchError(CaeavError):
    """The tensors are not exactly those of the module."""


def fit_shape(tensor: Tensor, like: Tensor, name: str) -> Tensor:
    """Reshape `tensor` to the shape of `like`, from which only axes of length 1 may differ."""
    if [n for n in tensor.shape if n != 1] != [n for n in like.shape if n != 1]:
        raise VectorMismatchError(
            f"{name} has shape {list(tensor.shape)}, the module has {list(like.shape)}",
            hint="build the module with the widths and options the tensors were made with",
        )
    return tensor.reshape(like.shape)


@torch.no_grad()
def load_vector_parameters(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill every parameter and buffer of `module` from `tensors` (vector name -> tensor), all of them or none.

    Buffers that `module` computes itself (not persistent) are left alone. Keeps the module's dtype. Raises
    `VectorMismatchError` on a missing, unknown or misshapen tensor.
    """
    kept = module.state_dict().keys()
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in kept}
    targets = {**dict(module.named_parameters()), **buffers}
    missing, unknown = sorted(targets.keys() - tensors.keys()), sorted(tensors.keys() - targets.keys())
    if missing or unknown:
        raise VectorMismatchError(
            f"tensors missing for {missing or 'nothing'}; not known to the module: {unknown or 'nothing'}",
            hint="build the module with the options (experts, gates, norms) the tensors were made with",
        )
    fitted = {name: fit_shape(tensors[name], target, name) for name, target in targets.items()}
    for name, target in targets.items():
        target.copy_(fitted[name])
