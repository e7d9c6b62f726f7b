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
from numpy.typing import NDArray
from torch import Tensor

RESAMPLES = 1000
LEVEL = 95.0
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
    scores = _resampled(evidence, seed, resamples)
    return Intervals(_bounds(evidence, scores), evidence.unit, _count(evidence), resamples)


def differences(
    first: Evidence, second: Evidence, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[dict[str, float], Intervals]:
    """How much higher the second's scores are than the first's, and percentile intervals of that, in points.

    Both must be about the same rows, in the same order: each resample draws the same rows for both, so what makes a row
    hard for both does not widen the interval. Raises `ValueError` for different scores or numbers of rows.
    """
    if list(first.parts) != list(second.parts) or _count(first) != _count(second):
        raise ValueError("a paired difference needs the same scores of the same rows")
    # equal seeds draw equal rows
    draws = _resampled(second, seed, resamples) - _resampled(first, seed, resamples)
    values = {}
    for name in first.parts:
        before, after = (
            float(held.parts[name][0].double().sum() / held.parts[name][1].double().sum())
            for held in (first, second)
        )
        values[name] = 100 * (after - before)
    return values, Intervals(_bounds(first, draws), first.unit, _count(first), resamples)


def _count(evidence: Evidence) -> int:
    return len(next(iter(evidence.parts.values()))[0])


def _resampled(evidence: Evidence, seed: int, resamples: int) -> NDArray[np.float64]:
    """Scores in percent of every resample `[R, S]`, in the order of `parts`; NaN where nothing was drawn."""
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
    return np.asarray(100 * np.concatenate(ratios))


def _bounds(evidence: Evidence, scores: NDArray[np.float64]) -> dict[str, tuple[float, float]]:
    """Percentiles of every score that was drawn at all."""
    edge = (100 - LEVEL) / 2
    return {
        name: (float(low), float(high))
        for name, column in zip(evidence.parts, scores.T, strict=True)
        if not np.isnan(column).all()
        for low, high in [np.nanpercentile(column, [edge, 100 - edge])]
    }
