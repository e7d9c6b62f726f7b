"""AVE event localisation: in every second, which event is both seen and heard, or none.

`ave` learns from the official labels, one-hot per segment over `K` classes and background, background last. `ave-weak`
learns only which events a clip holds, and is scored second by second like `ave`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from caeav.manifests.clip import Manifest
from caeav.model.adapters.batch import Inputs, TokenBatch
from caeav.model.adapters.trunk import Trunk, shares_agreement
from caeav.model.tasks.ave.config import (
    AveHeadConfig,
    AveLossConfig,
    AveMetricConfig,
    WeakAveHeadConfig,
    WeakAveLossConfig,
)
from caeav.model.tasks.ave.head import (
    AveHead,
    AveProbe,
    Localisation,
    WeakAveHead,
    WeakAveProbe,
    WeakLocalisation,
)
from caeav.model.tasks.ave.loss import ave_loss, gate_loss, weak_ave_loss
from caeav.model.tasks.ave.metric import AveMetric, measure, predict_seconds
from caeav.model.tasks.ave.prediction import BACKGROUND, Timeline
from caeav.model.tasks.base import Scorer, Scores, Task, Together
from caeav.model.tasks.bootstrap import Evidence
from caeav.model.tasks.config import HeadConfig, LossConfig, MetricConfig, ModelConfig, RunConfig
from caeav.model.tasks.labels import active, check_labels, require_events, stack
from caeav.model.tasks.probe import Probe, chosen_taps
from caeav.model.tasks.sample import Sample

LABELS = "labels"


class AveTask(Task):
    """The registered task `ave`."""

    name = "ave"
    metric = "accuracy"
    head: ClassVar[type[nn.Module]] = AveHead
    head_config: ClassVar[type[HeadConfig]] = AveHeadConfig
    loss_config: ClassVar[type[LossConfig]] = AveLossConfig
    metric_config: ClassVar[type[MetricConfig]] = AveMetricConfig
    outcome_columns: ClassVar[Mapping[str, Any]] = {
        "truth": [""],
        "prediction": [""],
        "probabilities": [[0.0]],
    }

    def fit_metadata(self, manifest: Manifest, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
        """None; but a train split without any event, where all is background, is an error."""
        require_events(manifest, splits, "train")
        return {}

    def targets(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`labels` `[N, T, K + 1]`."""
        check_labels(inputs, (event.label for sample in samples for event in sample.clip.events))
        rows = [one_hot_seconds(sample, inputs) for sample in samples]
        return {LABELS: stack(rows, inputs.spec.segments, len(inputs.classes) + 1)}

    def together(self, targets: Mapping[str, Tensor], *, training: bool) -> Together:
        """An event is both seen and heard."""
        events = targets[LABELS][..., :-1]
        return Together(seconds=events, clips=events.amax(dim=1))

    def tracks(self, targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Events, in both modalities."""
        events = targets[LABELS][..., :-1]
        return events, events

    def with_tracks(self, targets: Mapping[str, Tensor], seen: Tensor, heard: Tensor) -> dict[str, Tensor]:
        """An event is where the same class is still both seen and heard."""
        return {**targets, LABELS: _one_hot(seen * heard)}

    def build_head(self, trunk: Trunk, inputs: Inputs, config: HeadConfig) -> nn.Module:
        """The head of the task, on as many channels as the trunk gives."""
        assert isinstance(config, AveHeadConfig)
        return self.head(
            trunk.visual_channels,
            trunk.audio_channels,
            len(inputs.classes),
            config,
            agreement=config.reads_agreement and shares_agreement(trunk),
        )

    def build_probe(self, inputs: Inputs, config: ModelConfig) -> nn.Module:
        """A score of every class, and of any event, per second; the clip's class from their mean."""
        visual, audio = chosen_taps(inputs.spec, config.probe.taps)
        outputs = len(inputs.classes) + 1
        return AveProbe(Probe([*visual, *audio], outputs, config.probe, config.head.input_norm))

    def losses(self, output: Any, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """The official three, and DG-SCT's fourth where there are such gates."""
        labels = batch.targets[LABELS]
        found = ave_loss(output.event_relevance, output.event_scores, output.av_score, labels)._asdict()
        if output.gate is not None:
            found["gate"] = gate_loss(output.gate, labels)
        return found

    def decode(self, output: Localisation, inputs: Inputs, config: RunConfig, sample: Sample) -> Timeline:
        """The official decision for each second."""
        chosen = predict_seconds(output.event_relevance, output.event_scores)[0]  # [T]
        return Timeline.of(chosen, second_probabilities(output)[0], inputs.classes)

    def outcomes(
        self,
        output: Localisation,
        batch: TokenBatch,
        samples: Sequence[Sample],
        inputs: Inputs,
        config: RunConfig,
    ) -> list[dict[str, Any]]:
        """The event of every second, true and predicted; all probabilities, background last."""
        names = (*inputs.classes, BACKGROUND)
        chosen = predict_seconds(output.event_relevance, output.event_scores).cpu()  # [B, T]
        table = second_probabilities(output).cpu()  # [B, T, K + 1]
        truth = batch.targets[LABELS].argmax(dim=-1).cpu()  # [B, T]
        sure = table.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).mean(dim=1)
        right = (chosen == truth).double().mean(dim=1)
        return [
            {
                "labels": list(sample.clip.labels()),
                "truth": [names[k] for k in truth[i].tolist()],
                "prediction": [names[k] for k in chosen[i].tolist()],
                "probabilities": table[i].tolist(),
                "score": float(right[i]),
                "confidence": float(sure[i]),
            }
            for i, sample in enumerate(samples)
        ]

    def build_scorer(self, inputs: Inputs, config: RunConfig) -> AveScorer:
        """A new scorer."""
        assert isinstance(config.metric, AveMetricConfig)
        return AveScorer(inputs.classes, by_batch=config.metric.average == "batches")

    def majority_score(
        self, inputs: Inputs, config: RunConfig, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> float:
        """Accuracy of the most frequent training label in every second."""
        best = int(train[LABELS].sum(dim=(0, 1)).argmax())
        return float(targets[LABELS][..., best].mean()) * 100


class WeakAveTask(AveTask):
    """The registered task `ave-weak`."""

    name = "ave-weak"
    head: ClassVar[type[nn.Module]] = WeakAveHead
    head_config: ClassVar[type[HeadConfig]] = WeakAveHeadConfig
    loss_config: ClassVar[type[LossConfig]] = WeakAveLossConfig

    def together(self, targets: Mapping[str, Tensor], *, training: bool) -> Together:
        """As in `ave`, but training does not know the seconds."""
        found = super().together(targets, training=training)
        return found._replace(seconds=None) if training else found

    def build_probe(self, inputs: Inputs, config: ModelConfig) -> nn.Module:
        """A probability of every class per second, pooled as the head's."""
        assert isinstance(config.head, WeakAveHeadConfig)
        visual, audio = chosen_taps(inputs.spec, config.probe.taps)
        probe = Probe([*visual, *audio], len(inputs.classes), config.probe, config.head.input_norm)
        return WeakAveProbe(probe, config.head.pooling)

    def losses(self, output: WeakLocalisation, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """Of whole clips; labels of seconds only say which events occur in the clip."""
        return {"clip": weak_ave_loss(output.clip, batch.targets[LABELS])}


def second_probabilities(output: Localisation) -> Tensor:
    """`[B, T, K + 1]`: P(event now) * P(class) of each class, last 1 - P(event now)."""
    classes = output.event_scores.float().softmax(dim=-1).unsqueeze(1)  # [B, 1, K]
    relevant = output.event_relevance.float().sigmoid().unsqueeze(-1)  # [B, T, 1]
    return torch.cat([relevant * classes, 1 - relevant], dim=-1)


def one_hot_seconds(sample: Sample, inputs: Inputs) -> Tensor:
    """`[T, K + 1]` one-hot labels, background last; where events overlap, the first class counts."""
    return _one_hot(active(sample.clip.events, inputs))


def _one_hot(events: Tensor) -> Tensor:
    """0/1 `[..., K]` -> one-hot `[..., K + 1]`: the first event of a second, else background."""
    labels = torch.cat([events, 1 - events.amax(dim=-1, keepdim=True)], dim=-1)
    first = labels.argmax(dim=-1, keepdim=True)  # argmax gives the first of equals
    return torch.zeros_like(labels).scatter_(-1, first, 1.0)


class AveScorer(Scorer):
    """Accuracy over all seconds, or, if `by_batch`, the mean over batches as in the official code."""

    def __init__(self, classes: Sequence[str], *, by_batch: bool = False) -> None:
        self._classes, self._by_batch = (*classes, BACKGROUND), by_batch
        self._metric = AveMetric(len(classes))

    def measure(self, output: Localisation, batch: TokenBatch) -> dict[str, Tensor]:
        """See `measure` of the metric."""
        return measure(output.event_relevance, output.event_scores, batch.targets[LABELS])

    def take(self, measured: Mapping[str, Tensor]) -> None:
        """Count a batch."""
        self._metric.take(**measured)

    def result(self) -> Scores:
        """Accuracy in percent; a row for every class that occurs."""
        score = self._metric.compute()
        rows = tuple(
            {"class": name, "seconds": seconds, "accuracy": accuracy * 100}
            for name, seconds, accuracy in zip(
                self._classes, score.class_seconds, score.per_class, strict=True
            )
            if seconds
        )
        hits, clips = score.clip_hits, len(score.clip_hits)
        terms = hits, torch.full_like(hits, sum(score.class_seconds) // clips)
        pooled, by_batch = score.accuracy * 100, score.batch_mean_accuracy * 100
        if self._by_batch:
            evidence = Evidence({"pooled_accuracy": terms})
            return Scores(by_batch, clips, rows, {"pooled_accuracy": pooled}, evidence)
        return Scores(pooled, clips, rows, {"batch_mean_accuracy": by_batch}, Evidence({"accuracy": terms}))


AVE, AVE_WEAK = AveTask(), WeakAveTask()
