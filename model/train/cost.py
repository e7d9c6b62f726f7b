"""What a training cost: seconds from its log, and the peak memory of the process that ended it."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from caeav.model.train.log import read_metrics
from caeav.model.train.runs import METRICS, Run

COST = "cost.json"


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB (10^6 bytes): of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@dataclass(frozen=True)
class Curve:
    """`seconds` of every epoch, training and scoring, and the selection split's `scores` after it."""

    seconds: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def total_s(self) -> float:
        """Seconds of the whole training."""
        return sum(self.seconds)

    @property
    def epoch_s(self) -> float:
        """The median epoch: a busy moment of the machine does not count."""
        return statistics.median(self.seconds)

    def best_within(self, budget_s: float) -> float | None:
        """The best score of the epochs that had ended after `budget_s` seconds; None if there was none."""
        best, passed = None, 0.0
        for took, score in zip(self.seconds, self.scores, strict=True):
            passed += took
            if passed > budget_s:
                break
            best = score if best is None else max(best, score)
        return best


def curve_of(run: Run, metric: str) -> Curve | None:
    """The curve in a run's log; None where there is none."""
    records: Sequence[dict[str, Any]] = read_metrics(run.folder / METRICS)
    if not records or metric not in records[-1]:
        return None
    return Curve(
        tuple(float(record["train_s"] + record["score_s"]) for record in records),
        tuple(float(record[metric]) for record in records),
    )
