"""Bootstrap confidence intervals: how far a score could lie elsewhere had other clips of the same kind been drawn.

Every official number here is a ratio of two sums over clips (a mean over clips has ones below), so a resample is a
vector of how often each clip was drawn, times the clips' parts. Drawn is what is independent: whole clips with all
their seconds, masks or questions, never a second or a question alone. What comes from the choice of training clips and
seeds is not in an interval; `--seeds` shows that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

RESAMPLES = 1000
LEVEL = 95.0
AT_ONCE = 100
"""Resamples drawn together, so that memory stays small for ten thousand clips."""

SAMPLES, CLIPS = "samples", "clips"


@dataclass(frozen=True)
class Evidence:
    """`parts`: name of a score -> what is added up above and below the line, both `[N]`; 100 times their ratio is the
    score. `unit`: what the `N` rows are; `samples`, when they are those of the split in its order."""

    parts: Mapping[str, tuple[Tensor, Tensor]]
    unit: str = SAMPLES

    def by_clip(self, clip_of: Sequence[int]) -> Evidence:
        """Samples added up to their clips (`clip_of`: a number for each sample); anything else is left as it is."""
        if self.unit != SAMPLES:
            return self
        index, clips = torch.tensor(clip_of, dtype=torch.long), max(clip_of) + 1

        def added(x: Tensor) -> Tensor:
            return torch.zeros(clips, dtype=torch.float64).index_add_(0, index, x.double().cpu())

        return Evidence({name: (added(up), added(down)) for name, (up, down) in self.parts.items()}, CLIPS)


@dataclass(frozen=True)
class Intervals:
    """`bounds`: name -> lower and upper bound in percent, at `level` percent; over `count` of `unit`."""

    bounds: Mapping[str, tuple[float, float]]
    unit: str
    count: int
    resamples: int = RESAMPLES
    level: float = LEVEL

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "level": self.level,
            "resamples": self.resamples,
            "unit": self.unit,
            "count": self.count,
            "bounds": {name: list(bounds) for name, bounds in self.bounds.items()},
        }


def shown(made: Mapping[str, Any] | None, name: str) -> str:
    """`58.0 to 64.1` for one score of an `as_json`, or nothing where it has no interval."""
    bounds = made["bounds"].get(name) if made else None
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else ""


def mean_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Parts of a score that is the mean of `values` `[N]` (in 0..1)."""
    return values, torch.ones_like(values)


def intervals(evidence: Evidence, *, seed: int = 0, resamples: int = RESAMPLES) -> Intervals:
    """Percentile intervals of all scores, the same for the same evidence and seed.

    A resample that draws nothing a score is made of (a question type that only a few clips have) does not count for it;
    a score without any is left out.
    """
    names = list(evidence.parts)
    up, down = (
        np.stack([np.asarray(evidence.parts[name][i].double().cpu()) for name in names], axis=1)  # [N, S]
        for i in (0, 1)
    )
    count = len(up)
    rng, even = np.random.default_rng(seed), np.full(count, 1 / count)
    ratios = []
    for first in range(0, resamples, AT_ONCE):
        drawn = rng.multinomial(count, even, size=min(AT_ONCE, resamples - first)).astype(np.float64)
        below = drawn @ down
        ratios.append(np.divide(drawn @ up, below, out=np.full_like(below, np.nan), where=below > 0))
    scores = 100 * np.concatenate(ratios)  # [R, S]
    edge = (100 - LEVEL) / 2
    bounds = {
        name: (float(low), float(high))
        for name, column in zip(names, scores.T, strict=True)
        if not np.isnan(column).all()
        for low, high in [np.nanpercentile(column, [edge, 100 - edge])]
    }
    return Intervals(bounds, evidence.unit, count, resamples)
