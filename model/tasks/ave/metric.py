"""The official AVE metric: accuracy over seconds, background included (REFERENCE section 7).

A second is predicted as the clip's best class if relevance exceeds one half, else as background. The official code
averages the accuracies of batches, where a smaller last batch weighs more than its share; the pooled value does not
depend on the batch size. Both are kept; they agree if all batches are equally large.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def predict_seconds(event_relevance: Tensor, event_scores: Tensor) -> Tensor:
    """Logits `[B, T]` and `[B, K]` -> classes `[B, T]`, where `K` is background."""
    background = event_scores.shape[-1]
    classes = event_scores.argmax(dim=-1, keepdim=True).expand_as(event_relevance)
    return torch.where(event_relevance.sigmoid() > 0.5, classes, background)


def measure(event_relevance: Tensor, event_scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`truth` `[B, T]`, the class of each second, and `hit` `[B, T]`; from logits `[B, T]`, `[B, K]` and labels."""
    truth = labels.argmax(dim=-1).cpu()
    return {"truth": truth, "hit": predict_seconds(event_relevance, event_scores).cpu() == truth}


@dataclass(frozen=True, slots=True)
class AveScore:
    """Accuracies in 0..1.

    `per_class[k]`: over the `class_seconds[k]` seconds whose truth is `k`, NaN if there are none; the last is
    background. `clip_hits` `[N]`: correct seconds of each of the equally long clips, for intervals.
    """

    accuracy: float
    batch_mean_accuracy: float
    per_class: tuple[float, ...]
    class_seconds: tuple[int, ...]
    clip_hits: Tensor


class AveMetric:
    """Counts over batches; `compute()` may be called at any time after the first."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._hits = torch.zeros(classes + 1, dtype=torch.int64)
        self._seconds = torch.zeros(classes + 1, dtype=torch.int64)
        self._batches: list[float] = []
        self._clips: list[Tensor] = []

    def update(self, event_relevance: Tensor, event_scores: Tensor, labels: Tensor) -> None:
        """One batch: logits `[B, T]`, `[B, K]`, labels `[B, T, K + 1]` one-hot, background last."""
        self.take(**measure(event_relevance, event_scores, labels))

    def take(self, truth: Tensor, hit: Tensor) -> None:
        """One batch, as measured."""
        self._hits += torch.bincount(truth[hit], minlength=self.classes + 1)
        self._seconds += torch.bincount(truth.flatten(), minlength=self.classes + 1)
        self._batches.append(hit.double().mean().item())
        self._clips.append(hit.sum(dim=1))

    def compute(self) -> AveScore:
        """The score of all batches so far; raises ValueError before the first one."""
        if not self._batches:
            raise ValueError("no batch was scored: call update() first")
        per_class = self._hits.double() / self._seconds.double()
        return AveScore(
            accuracy=int(self._hits.sum()) / int(self._seconds.sum()),
            batch_mean_accuracy=sum(self._batches) / len(self._batches),
            per_class=tuple(per_class.tolist()),
            class_seconds=tuple(self._seconds.tolist()),
            clip_hits=torch.cat(self._clips),
        )
