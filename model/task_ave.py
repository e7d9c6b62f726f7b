"""AVE event localisation: in every second, which event is both seen and heard, or none.

Targets as in the official labels: one-hot per segment over `K` classes and background; an event covers segment
`t` when `start <= t < end` in segments. Shapes: `B` clips, `T` segments, `K` classes, background last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.errors import CaeavError
from caeav.model.ave_model import AveOutput, build_ave_model
from caeav.model.batch import InputSpec, TokenBatch
from caeav.model.config import RunConfig
from caeav.model.heads.ave_loss import ave_loss
from caeav.model.heads.ave_metric import AveMetric, predict_seconds
from caeav.model.losses.guidance import guidance_losses
from caeav.model.task import Scores

LABELS = "labels"


def segment_labels(clip: Clip, classes: Sequence[str], segments: int, segment_s: float) -> Tensor:
    """`[T, K + 1]` one-hot labels of a clip; where two events overlap, the first class in order counts."""
    labels = torch.zeros(segments, len(classes) + 1)
    for event in clip.events:
        column = classes.index(event.label)
        for t in range(segments):
            if event.start_s <= t * segment_s < event.end_s:
                labels[t, column] = 1
    labels[:, -1] = labels[:, :-1].sum(dim=1) == 0
    first = labels.argmax(dim=1, keepdim=True)  # argmax gives the first of equals
    return torch.zeros_like(labels).scatter_(1, first, 1.0)


class AveTask:
    """The registered task `ave`."""

    name = "ave"
    metric = "accuracy"

    def targets(self, manifest: Manifest, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """`labels` `[N, T, K + 1]`; raises `CaeavError` for a label that is not one of the classes."""
        known = set(manifest.classes)
        strange = sorted({event.label for clip in clips for event in clip.events} - known)
        if strange or not known:
            raise CaeavError(
                f"data set {manifest.dataset!r} has "
                + (
                    f"labels that are not classes: {', '.join(strange[:5])}"
                    if strange
                    else "no classes, hence no labels"
                ),
                hint="give labels (for a folder of media: a csv, see caeav manifest build --help) and extract again",
            )
        rows = [
            segment_labels(clip, manifest.classes, manifest.segments, manifest.segment_s) for clip in clips
        ]
        shape = (0, manifest.segments, len(manifest.classes) + 1)
        return {LABELS: torch.stack(rows) if rows else torch.zeros(shape)}

    def build(self, spec: InputSpec, classes: Sequence[str], config: RunConfig) -> nn.Module:
        """Trunk and head."""
        return build_ave_model(spec, classes, config.model)

    def losses(self, output: AveOutput, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """The official three, and what the adapters ask for, by their weights; a weight of 0 leaves one out."""
        official = ave_loss(
            output.event_relevance, output.event_scores, output.av_score, batch.targets[LABELS]
        )
        named = {
            "relevance": official.relevance,
            "event": official.event,
            "score": official.score,
            **output.trunk.losses,
            **guidance_losses(output.trunk, batch),
        }
        weights = config.loss.model_dump()
        return {name: loss * weights[name] for name, loss in named.items() if weights[name]}

    def read(self, output: AveOutput) -> tuple[Tensor, Tensor]:
        """The official decision `[B, T]`, and `[B, T, K + 1]`: P(event now) * P(class), last 1 - P(event now)."""
        chosen = predict_seconds(output.event_relevance, output.event_scores)
        relevant = output.event_relevance.float().sigmoid().unsqueeze(-1)  # [B, T, 1]
        classes = output.event_scores.float().softmax(dim=-1).unsqueeze(1)  # [B, 1, K]
        return chosen, torch.cat([relevant * classes, 1 - relevant], dim=-1)

    def scorer(self, classes: Sequence[str]) -> AveScorer:
        """A fresh scorer."""
        return AveScorer(classes)

    def majority(self, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> float:
        """Accuracy in percent of answering the most frequent training label in every second."""
        best = int(train[LABELS].sum(dim=(0, 1)).argmax())
        return float(targets[LABELS][..., best].mean()) * 100


class AveScorer:
    """Pools seconds over batches, so that the score does not depend on the batch size."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = (*classes, "background")
        self._metric = AveMetric(len(classes))
        self._clips = 0
        self._truth = torch.zeros(len(classes) + 1)

    def add(self, output: Any, batch: TokenBatch) -> None:
        """Take in one batch."""
        labels = batch.targets[LABELS]
        self._metric.update(output.event_relevance, output.event_scores, labels)
        self._truth += labels.sum(dim=(0, 1)).cpu()
        self._clips += len(batch.keys)

    def result(self) -> Scores:
        """Accuracy over seconds in percent; a row for every class that occurs."""
        score = self._metric.compute()
        rows = tuple(
            {"class": name, "seconds": int(seconds), "accuracy": accuracy * 100}
            for name, seconds, accuracy in zip(
                self._classes, self._truth.tolist(), score.per_class, strict=True
            )
            if seconds
        )
        return Scores(
            score.accuracy * 100, self._clips, rows, {"batch_mean_accuracy": score.batch_mean_accuracy * 100}
        )


AVE = AveTask()
