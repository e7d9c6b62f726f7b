"""Modules with random parameters, for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def random_double(module: nn.Module, seed: int | None = None) -> Any:
    """The module in float64 with every parameter random, so that no closed gate hides a part."""
    if seed is not None:
        torch.manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.to(torch.float64)


def randomise(module: nn.Module, std: float = 0.15) -> None:
    """Give it weights like those of a trained network: no gate, norm or bias at its initial value."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=std)
