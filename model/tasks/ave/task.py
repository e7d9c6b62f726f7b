"""AVE event localisation: in every second, which event is both seen and heard, or none.

Targets as in the official labels: one-hot per segment over `K` classes and background, background last.

AVE with weak supervision: training knows which events a clip holds, not when; scored second by second as `ave`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import Inputs, TokenBatch
from caeav.model.tasks.ave.head import AveHead, Localisation, WeakAveHead
from caeav.model.tasks.ave.loss import ave_loss, weak_ave_loss
from caeav.model.tasks.ave.metric import AveMetric, predict_seconds
from caeav.model.tasks.ave.prediction import Timeline
from caeav.model.tasks.base import Scores, Task
from caeav.model.tasks.bootstrap import Evidence
from caeav.model.tasks.config import LossConfig, NotNegative, RunConfig, Section
from caeav.model.tasks.heads import AveHeadConfig, HeadConfig, WeakAveHeadConfig
from caeav.model.tasks.labels import check_labels, one_hot_seconds, stack
from caeav.model.tasks.sample import Sample

if TYPE_CHECKING:
    from caeav.model.adapters.trunk import Trunk


LABELS = "labels"


class AveLossConfig(LossConfig):
    """The official three."""

    relevance: NotNegative = 1.0
    event: NotNegative = 1.0
    score: NotNegative = 1.0


class AveMetricConfig(Section):
    """average: over all seconds, or as the official code over the accuracies of batches of `training.batch_size` clips,
    where a smaller last batch weighs more than its share."""

    average: Literal["seconds", "batches"] = "seconds"


class AveTask(Task):
    """The registered task `ave`."""

    name = "ave"
    metric = "accuracy"
    head_config: ClassVar[type[HeadConfig]] = AveHeadConfig
    loss_config: ClassVar[type[LossConfig]] = AveLossConfig
    metric_config: ClassVar[type[Section]] = AveMetricConfig

    def fit_metadata(self, manifest: Manifest, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
        """Nothing; but without a single event, all would be background."""
        if not any(sample.clip.events for sample in splits["train"]):
            raise CaeavError(
                f"no train clip of data set {manifest.dataset!r} has an event",
                hint="give events their times (for a folder of media: a csv, see caeav manifest build --help)",
            )
        return {}

    def targets(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`labels` `[N, T, K + 1]`."""
        check_labels(inputs, (event.label for sample in samples for event in sample.clip.events))
        rows = [one_hot_seconds(sample, inputs) for sample in samples]
        return {LABELS: stack(rows, inputs.spec.segments, len(inputs.classes) + 1)}

    def build_head(self, trunk: Trunk, inputs: Inputs, config: HeadConfig) -> nn.Module:
        """Temporal attention and localisation."""
        assert isinstance(config, AveHeadConfig)
        return AveHead(trunk.visual_channels, trunk.audio_channels, len(inputs.classes), config)

    def losses(self, found: Any, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """The official three."""
        loss = ave_loss(found.event_relevance, found.event_scores, found.av_score, batch.targets[LABELS])
        return loss._asdict()

    def decode(self, found: Localisation, inputs: Inputs, config: RunConfig, sample: Sample) -> Timeline:
        """The official decision a second; P(event now) * P(class), last 1 - P(event now)."""
        chosen = predict_seconds(found.event_relevance, found.event_scores)[0]  # [T]
        relevant = found.event_relevance[0].float().sigmoid().unsqueeze(-1)  # [T, 1]
        table = torch.cat([relevant * self.shares(found), 1 - relevant], dim=-1)  # [T, K + 1]
        return Timeline.of(chosen, table, inputs.classes)

    def shares(self, found: Localisation) -> Tensor:
        """P(class) of a batch's first clip, `[1, K]` or `[T, K]`."""
        return found.event_scores[:1].float().softmax(dim=-1)

    def build_scorer(self, inputs: Inputs, config: RunConfig) -> AveScorer:
        """A fresh scorer."""
        assert isinstance(config.metric, AveMetricConfig)
        return AveScorer(inputs.classes, by_batch=config.metric.average == "batches")

    def majority_score(
        self, inputs: Inputs, config: RunConfig, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> float:
        """Accuracy of answering the most frequent training label in every second."""
        best = int(train[LABELS].sum(dim=(0, 1)).argmax())
        return float(targets[LABELS][..., best].mean()) * 100


class AveScorer:
    """Pools seconds over batches, so that the score does not depend on the batch size, unless `by_batch`."""

    def __init__(self, classes: Sequence[str], *, by_batch: bool = False) -> None:
        self._classes, self._by_batch = (*classes, "background"), by_batch
        self._metric = AveMetric(len(classes))
        self._clips = 0
        self._truth = torch.zeros(len(classes) + 1)

    def add(self, found: Localisation, batch: TokenBatch) -> None:
        """Take in one batch."""
        labels = batch.targets[LABELS]
        self._metric.update(found.event_relevance, found.event_scores, labels)
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
        hits = score.clip_hits
        parts = hits, torch.full_like(hits, score.seconds // len(hits))
        pooled, by_batch = score.accuracy * 100, score.batch_mean_accuracy * 100
        if self._by_batch:
            evidence = Evidence({"pooled_accuracy": parts})
            return Scores(by_batch, self._clips, rows, {"pooled_accuracy": pooled}, evidence)
        evidence = Evidence({"accuracy": parts})
        return Scores(pooled, self._clips, rows, {"batch_mean_accuracy": by_batch}, evidence)


AVE = AveTask()


class WeakAveLossConfig(LossConfig):
    """One loss, of whole clips."""

    clip: NotNegative = 1.0


class WeakAveTask(AveTask):
    """The registered task `ave-weak`."""

    name = "ave-weak"
    head_config: ClassVar[type[HeadConfig]] = WeakAveHeadConfig
    loss_config: ClassVar[type[LossConfig]] = WeakAveLossConfig

    def build_head(self, trunk: Trunk, inputs: Inputs, config: HeadConfig) -> nn.Module:
        """Temporal attention and multiple instance pooling."""
        assert isinstance(config, WeakAveHeadConfig)
        return WeakAveHead(trunk.visual_channels, trunk.audio_channels, len(inputs.classes), config)

    def losses(self, found: Any, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """The clip's own; the labels of seconds are read for what they say about the clip only."""
        return {"clip": weak_ave_loss(found.clip, batch.targets[LABELS])}


AVE_WEAK = WeakAveTask()
