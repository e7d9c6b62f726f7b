"""Bootstrap confidence intervals: how much a score varies with the choice of test clips.

Every official score here is a ratio of two sums over clips (the denominator of a mean counts ones), so a resample
weights each clip's terms by how often the clip was drawn. Whole clips are drawn, with all their seconds, masks or
questions, because only clips are independent. Intervals do not cover the choice of training clips and seeds; `--seeds`
shows that.
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
EDGES = (100 - LEVEL) / 2, (100 + LEVEL) / 2
AT_ONCE = 100
"""Resamples drawn together; keeps memory small for ten thousand clips."""

SAMPLES, CLIPS = "samples", "clips"


@dataclass(frozen=True)
class Evidence:
    """The terms that scores are made of.

    `parts`: name of a score -> terms of its numerator and denominator, both `[N]`; the score is 100 times the ratio of
    their sums. `unit`: what the `N` rows are; `samples` are those of the split, in its order.
    """

    parts: Mapping[str, tuple[Tensor, Tensor]]
    unit: str = SAMPLES

    def by_clip(self, clip_of: Sequence[int]) -> Evidence:
        """Terms of samples summed per clip (`clip_of`: a number for each sample); other units stay as they are."""
        if self.unit != SAMPLES:
            return self
        index, clips = torch.tensor(clip_of, dtype=torch.long), max(clip_of) + 1

        def summed(x: Tensor) -> Tensor:
            return torch.zeros(clips, dtype=torch.float64).index_add_(0, index, x.double().cpu())

        return Evidence(
            {name: (summed(top), summed(bottom)) for name, (top, bottom) in self.parts.items()}, CLIPS
        )


@dataclass(frozen=True)
class Intervals:
    """`bounds`: score -> lower and upper bound in percent, at `level` percent, over `count` of `unit`."""

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


def format_interval(intervals: Mapping[str, Any] | None, name: str) -> str:
    """`58.00 to 64.10` for one score of `Intervals.as_json()`; empty if it has no interval."""
    bounds = intervals["bounds"].get(name) if intervals else None
    return f"{bounds[0]:.2f} to {bounds[1]:.2f}" if bounds else ""


def mean_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Terms of a score that is the mean of `values` `[N]` (in 0..1)."""
    return values, torch.ones_like(values)


def intervals(evidence: Evidence, *, seed: int = 0, resamples: int = RESAMPLES) -> Intervals:
    """Percentile intervals of all scores, reproducible from evidence and seed.

    A resample whose denominator is zero (it drew no clip with this type of question) does not count for that score; a
    score without any other is left out.
    """
    names = list(evidence.parts)
    top, bottom = (
        np.stack([np.asarray(evidence.parts[name][i].double().cpu()) for name in names], axis=1)  # [N, S]
        for i in (0, 1)
    )
    count = len(top)
    rng, uniform = np.random.default_rng(seed), np.full(count, 1 / count)
    ratios = []
    for first in range(0, resamples, AT_ONCE):
        drawn = rng.multinomial(count, uniform, size=min(AT_ONCE, resamples - first)).astype(np.float64)
        denominator = drawn @ bottom
        ratios.append(
            np.divide(drawn @ top, denominator, out=np.full_like(denominator, np.nan), where=denominator > 0)
        )
    scores = 100 * np.concatenate(ratios)  # [R, S]
    bounds = {
        name: (float(low), float(high))
        for name, column in zip(names, scores.T, strict=True)
        if not np.isnan(column).all()
        for low, high in [np.nanpercentile(column, EDGES)]
    }
    return Intervals(bounds, evidence.unit, count, resamples)


def interval_over_seeds(
    runs: Sequence[tuple[Tensor, Tensor]],
    against: Sequence[tuple[Tensor, Tensor]] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """Percentile interval of the mean score of several runs, or of its difference to that of `against`, in percent.

    A run is the terms of its score, `[N]` each, over the same units in all of them; those of `against` are paired with
    `runs` in their order (by seed). A resample draws units, the same for all runs, and runs, the same on both sides; so
    the interval tells what other clips and other seeds could change. None where no resample has a score.
    """
    rng = np.random.default_rng(seed)
    count, scored = len(runs[0][0]), [_stacked(side) for side in (runs, against) if side is not None]
    means = []
    for first in range(0, resamples, AT_ONCE):
        size = min(AT_ONCE, resamples - first)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        chosen = rng.integers(len(runs), size=(size, len(runs)))
        sides = []
        for top, bottom in scored:
            below = drawn @ bottom  # [R, S]
            ratio = np.divide(drawn @ top, below, out=np.full_like(below, np.nan), where=below > 0)
            sides.append(np.take_along_axis(ratio, chosen, axis=1).mean(axis=1))
        means.append(sides[0] if against is None else sides[0] - sides[1])
    found = 100 * np.concatenate(means)
    if np.isnan(found).all():
        return None
    low, high = np.nanpercentile(found, EDGES)
    return float(low), float(high)


def _stacked(runs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Any, Any]:
    """The numerators and denominators of runs as columns, `[N, S]` each."""
    top, bottom = (np.stack([run[i].double().numpy() for run in runs], axis=1) for i in (0, 1))
    return top, bottom
