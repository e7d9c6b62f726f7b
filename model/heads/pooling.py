"""From seconds to the clip, where only the clip is labelled: multiple instance pooling of `[B, T, K]` to `[B, K]`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

EPS = 1e-6


def linear_pool(p: Tensor) -> Tensor:
    """Mean weighted by the probabilities themselves: rewards sure seconds without asking for all of them."""
    return (p * p).sum(dim=1) / p.sum(dim=1).clamp_min(EPS)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda p: p.mean(dim=1),
    "max": lambda p: p.amax(dim=1),
    "linear": linear_pool,
}
