"""Audio-visual video parsing (LLP): which events are heard, which are seen, and in which seconds.

Training knows only which events a clip holds, in whichever modality; val and test have audible and visible events
second by second. Shapes: `N` samples, `T` segments, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import Inputs, TokenBatch, TrunkOutput
from caeav.model.adapters.trunk import Trunk
from caeav.model.adapters.whole_batch import gathered
from caeav.model.tasks.avvp.config import AvvpHeadConfig, AvvpLossConfig, AvvpMetricConfig
from caeav.model.tasks.avvp.head import AvvpHead, AvvpOutput, AvvpProbe
from caeav.model.tasks.avvp.loss import avvp_loss
from caeav.model.tasks.avvp.metric import AvvpMetric, clip_f, clip_scores, level_counts, predict_tracks
from caeav.model.tasks.avvp.prediction import Tracks
from caeav.model.tasks.base import Scorer, Scores, Task, Together
from caeav.model.tasks.bootstrap import Evidence, mean_of
from caeav.model.tasks.config import HeadConfig, LossConfig, MetricConfig, ModelConfig, RunConfig
from caeav.model.tasks.labels import active, check_labels, require_events, stack
from caeav.model.tasks.probe import Probe, chosen_taps, no_probe
from caeav.model.tasks.sample import Sample

LABELS, AUDIO, VISUAL, TIMED = "labels", "audio", "visual", "timed"
MOTION = "motion."


class AvvpTask(Task):
    """The registered task `avvp`; Type@AV of segments chooses the epoch, as in the official code."""

    name = "avvp"
    metric = "segment_type_av"
    head_config: ClassVar[type[HeadConfig]] = AvvpHeadConfig
    loss_config: ClassVar[type[LossConfig]] = AvvpLossConfig
    metric_config: ClassVar[type[MetricConfig]] = AvvpMetricConfig
    outcome_columns: ClassVar[Mapping[str, Any]] = {
        "truth": {AUDIO: [[""]], VISUAL: [[""]]},
        "prediction": {AUDIO: [[""]], VISUAL: [[""]]},
        "probabilities": {AUDIO: [[0.0]], VISUAL: [[0.0]]},
    }

    def fit_metadata(self, manifest: Manifest, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
        """None; but val and test splits without any event, where nothing can be scored, are an error."""
        require_events(manifest, splits, "val", "test")
        return {}

    def targets(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`labels` `[N, K]` of clips; `audio`, `visual` `[N, T, K]`, and `timed` `[N]`: whether these are known."""
        names = [clip_labels(sample) for sample in samples]
        check_labels(inputs, (name for found in names for name in found))
        shape = inputs.spec.segments, len(inputs.classes)
        weak = torch.zeros(len(samples), shape[1])
        for row, found in enumerate(names):
            weak[row, [inputs.classes.index(name) for name in found]] = 1
        return {
            LABELS: weak,
            AUDIO: stack([_truth(sample, AUDIO, inputs) for sample in samples], *shape),
            VISUAL: stack([_truth(sample, VISUAL, inputs) for sample in samples], *shape),
            TIMED: torch.tensor([bool(s.clip.events) or s.split != "train" for s in samples]),
        }

    def together(self, targets: Mapping[str, Tensor], *, training: bool) -> Together:
        """What clips hold; and, not in training, what is seen and heard in each second, where all clips tell."""
        clips, seconds = targets[LABELS], None
        if not training and bool(targets[TIMED].all()):
            seconds = targets[AUDIO] * targets[VISUAL]
        return Together(seconds, clips)

    def tracks(self, targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Events of each modality."""
        return targets[VISUAL], targets[AUDIO]

    def with_tracks(self, targets: Mapping[str, Tensor], seen: Tensor, heard: Tensor) -> dict[str, Tensor]:
        """Each modality's own track, and the clip's labels from both."""
        return {**targets, VISUAL: seen, AUDIO: heard, LABELS: torch.maximum(seen, heard).amax(dim=1)}

    def build_head(self, trunk: Trunk, inputs: Inputs, config: HeadConfig) -> nn.Module:
        """Grouping by classes; with `motion` it also reads the one motion tap of the stores."""
        assert isinstance(config, AvvpHeadConfig)
        taps = [tap for tap in inputs.spec.other if tap.name.startswith(MOTION)]
        if config.motion and len(taps) != 1:
            raise CaeavError(
                f"model.head.motion is true; the joined stores hold {len(taps)} taps named {MOTION}...",
                hint="make one by `caeav import --tap motion.NAME=FOLDER` and join it (--set stores.tokens=[...]), "
                "or set model.head.motion=false",
            )
        return AvvpHead(
            trunk.visual_channels,
            trunk.audio_channels,
            len(inputs.classes),
            inputs.spec.segments,
            config,
            motion_channels=taps[0].channels if config.motion else None,
        )

    def build_probe(self, inputs: Inputs, config: ModelConfig) -> nn.Module:
        """One for each modality, since its own events are asked for."""
        visual, audio = chosen_taps(inputs.spec, config.probe.taps)
        if not visual or not audio:
            raise no_probe(
                self.name, f"taps {', '.join(config.probe.taps)} are of one modality, it asks for both"
            )
        norm, classes = config.head.input_norm, len(inputs.classes)
        return AvvpProbe(*(Probe(taps, classes, config.probe, norm) for taps in (visual, audio)))

    def forward(self, head: nn.Module, trunk: TrunkOutput, batch: TokenBatch) -> AvvpOutput:
        """With the mean tokens of the motion tap if the head reads one."""
        assert isinstance(head, AvvpHead)
        if head.motion_in is None:
            return head(trunk)  # type: ignore[no-any-return]
        [motion] = [x for name, x in batch.extra.items() if name.startswith(MOTION)]
        return head(trunk, motion.mean(dim=2))  # type: ignore[no-any-return]

    def gather_output(self, output: AvvpOutput, config: LossConfig) -> AvvpOutput:
        """The class tokens' own scores are the same in all processes."""
        whole: AvvpOutput = gathered(output._replace(audio_token_logits=None, visual_token_logits=None))
        return whole._replace(
            audio_token_logits=output.audio_token_logits, visual_token_logits=output.visual_token_logits
        )

    def losses(self, output: AvvpOutput, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """The official five, from labels of whole clips; three of a probe, which has no class tokens."""
        keep = config.loss
        assert isinstance(keep, AvvpLossConfig)
        labels = batch.targets[LABELS]
        found = avvp_loss(output, labels, visual_keep=keep.visual_keep, audio_keep=keep.audio_keep)._asdict()
        tokens = output.audio_token_logits is not None
        return {name: loss for name, loss in found.items() if tokens or not name.endswith("_token")}

    def decode(self, output: AvvpOutput, inputs: Inputs, config: RunConfig, sample: Sample) -> Tracks:
        """The seconds of both modalities, at the threshold of the metric."""
        assert isinstance(config.metric, AvvpMetricConfig)
        audio, visual = predict_tracks(output, config.metric.threshold)
        return Tracks.of(
            inputs.classes,
            {AUDIO: audio[0], VISUAL: visual[0]},
            {AUDIO: output.audio_frame_prob[0], VISUAL: output.visual_frame_prob[0]},
        )

    def outcomes(
        self,
        output: AvvpOutput,
        batch: TokenBatch,
        samples: Sequence[Sample],
        inputs: Inputs,
        config: RunConfig,
    ) -> list[dict[str, Any]]:
        """What is heard and what is seen in every second, true and predicted; the score is Type@AV of segments."""
        assert isinstance(config.metric, AvvpMetricConfig)
        found = (output.audio_frame_prob, output.visual_frame_prob)
        chance = {name: x.float().clamp(0, 1).cpu() for name, x in zip((AUDIO, VISUAL), found, strict=True)}
        tracks = predict_tracks(output, config.metric.threshold)  # [B, K, T] each
        said = {name: x.transpose(1, 2).cpu() for name, x in zip((AUDIO, VISUAL), tracks, strict=True)}
        true = {name: batch.targets[name].cpu() > 0 for name in (AUDIO, VISUAL)}  # [B, T, K]
        pairs = [(said[name].transpose(1, 2), true[name].transpose(1, 2)) for name in (AUDIO, VISUAL)]
        share = clip_scores(clip_f(level_counts(*pairs, events=False)))["type_av"]
        sure = torch.stack([torch.maximum(p, 1 - p).mean(dim=(1, 2)) for p in chance.values()]).mean(dim=0)

        def named(track: Tensor) -> list[list[str]]:
            return [[inputs.classes[k] for k in on.nonzero().flatten().tolist()] for on in track]

        return [
            {
                "labels": clip_labels(sample),
                "truth": {name: named(x[i]) for name, x in true.items()},
                "prediction": {name: named(x[i]) for name, x in said.items()},
                "probabilities": {name: x[i].tolist() for name, x in chance.items()},
                "score": float(share[i]),
                "confidence": float(sure[i]),
            }
            for i, sample in enumerate(samples)
        ]

    def build_scorer(self, inputs: Inputs, config: RunConfig) -> AvvpScorer:
        """A new scorer."""
        assert isinstance(config.metric, AvvpMetricConfig)
        return AvvpScorer(inputs.classes, config.metric.threshold)

    def majority_score(
        self, inputs: Inputs, config: RunConfig, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> float:
        """Type@AV of the most frequent training class in every second of both modalities."""
        always = torch.zeros_like(targets[AUDIO].transpose(1, 2), dtype=torch.bool)  # [N, K, T]
        always[:, int(train[LABELS].sum(dim=0).argmax())] = True
        metric = AvvpMetric(len(inputs.classes))
        audio, visual = (targets[name].transpose(1, 2) > 0 for name in (AUDIO, VISUAL))
        metric.update_tracks(always, always, audio, visual)
        return metric.compute().segment.type_av


def clip_labels(sample: Sample) -> list[str]:
    """What the clip holds, whenever: the `labels` of its row, else those of its events."""
    given = sample.clip.extra.get("labels")
    return list(given) if given is not None else list(dict.fromkeys(e.label for e in sample.clip.events))


def _truth(sample: Sample, modality: str, inputs: Inputs) -> Tensor:
    """`[T, K]`: events of one modality, and those that name none."""
    return active([e for e in sample.clip.events if e.modality in ("", modality)], inputs)


class AvvpScorer(Scorer):
    """The official F-scores; refuses clips for which only clip labels are known."""

    def __init__(self, classes: Sequence[str], threshold: float) -> None:
        self._classes = classes
        self._metric = AvvpMetric(len(classes), threshold)

    def measure(self, output: Any, batch: TokenBatch) -> dict[str, Tensor]:
        """`counts`, see `AvvpMetric.measure`."""
        if not bool(batch.targets[TIMED].all()):
            raise CaeavError(
                "these clips have labels of the whole clip only, their seconds cannot be scored",
                hint="choose a split with events: val or test",
            )
        return {"counts": self._metric.measure(output, batch.targets[AUDIO], batch.targets[VISUAL])}

    def take(self, measured: Mapping[str, Tensor]) -> None:
        """Count a batch."""
        self._metric.take(measured["counts"])

    def result(self) -> Scores:
        """All ten scores; a row for every class that occurs in truth or prediction."""
        score = self._metric.compute()
        levels = {"segment": score.segment, "event": score.event}
        details = {f"{name}_{key}": x for name, level in levels.items() for key, x in asdict(level).items()}
        columns = [f"{name}_{kind}" for name in levels for kind in ("audio", "visual", "pooled", "av")]
        table = (100 * score.per_class).flatten(0, 1)  # [8, K]
        rows = tuple(
            {"class": name} | dict(zip(columns, table[:, k].nan_to_num(nan=0.0).tolist(), strict=True))
            for k, name in enumerate(self._classes)
            if not bool(table[:, k].isnan().all())
        )
        of_clips = {
            f"{name}_{key}": mean_of(x)
            for name, level in zip(levels, score.per_clip, strict=True)
            for key, x in clip_scores(level).items()
        }
        return Scores(score.segment.type_av, score.clips, rows, details, Evidence(of_clips))


AVVP = AvvpTask()
