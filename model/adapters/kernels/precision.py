"""Which dtype the hand-written operations compute in, with and without autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype for products of `x`: autocast's where that is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def own_precision(backward: Callable[..., Result]) -> Callable[..., Result]:
    """Let the backward of a custom function compute in its tensors' dtypes, also when called under autocast."""

    @functools.wraps(backward)
    def plain(ctx: Any, *gradients: Tensor) -> Result:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return plain
