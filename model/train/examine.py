"""A trained run scored again on a split: with an interval, under stress, or without leaked clips.

Without stress the score is that from the end of training. Under stress the same clips are scored with damaged inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted
from caeav.model.tasks.base import Scores
from caeav.model.tasks.bootstrap import Intervals, intervals
from caeav.model.tasks.config import StressConfig
from caeav.model.train.agreement import Calibration, Judged, generated_truth, judge
from caeav.model.train.card import bare_sentence
from caeav.model.train.evaluate import Observer
from caeav.model.train.experiment import Experiment
from caeav.model.train.join import removed
from caeav.model.train.protocol import stamp
from caeav.model.train.stress import Followed, Stress, active, check_stress, stress_text

FIXED, FOLLOW = "fixed", "follow"
"""Labels under stress: those of the undamaged clips, or those that are true of the damaged ones."""


@dataclass(frozen=True)
class Examined:
    """`plain`: the score without stress, None when there was no stress. `with_leaks`: the score including leaked clips,
    None when none were left out. `left_out`: how many were. `agreement`: how true it is, None without CASTE and under
    stress. `follow`: whether labels followed the stress."""

    experiment: Experiment
    split: str
    scores: Scores
    intervals: Intervals | None
    majority: float
    strengths: StressConfig
    plain: Scores | None
    with_leaks: Scores | None
    left_out: int
    agreement: Judged | None = None
    follow: bool = False

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        config, scores = self.experiment.config, self.scores
        return {
            "split": self.split,
            "metric": self.experiment.task.metric,
            "score": scores.value,
            "interval": None if self.intervals is None else self.intervals.as_json(),
            "majority": self.majority,
            "clips": scores.clips,
            "details": dict(scores.details),
            "select_on": config.select_on,
            "protocol": stamp(config.protocol, config.select_on),
            "stress": active(self.strengths),
            "stress_labels": FOLLOW if self.follow else FIXED,
            "score_without_stress": None if self.plain is None else self.plain.value,
            "leaks": None
            if self.with_leaks is None
            else {"left_out": self.left_out, "score_with": self.with_leaks.value},
            "bare": list((self.plain or scores).without_media),
            "agreement": None if self.agreement is None else self.agreement.as_json(),
            "per_class": [dict(row) for row in scores.per_class],
        }


def examine(
    experiment: Experiment,
    model: nn.Module,
    split: str,
    *,
    strengths: StressConfig | None = None,
    seed: int = 0,
    drop_leaks: bool = False,
    follow: bool = False,
    calibration: Calibration | None = None,
    observe: Observer | None = None,
) -> Examined:
    """Score `model` on `split`; raises `CaeavError` when the split has no clip.

    `follow`: score under stress against labels that follow it. `calibration`: the run's, of its agreement. `observe`
    sees every batch of what is scored.
    """
    strengths = strengths or StressConfig()
    experiment = experiment.without_leaks() if drop_leaks else experiment
    if not experiment.joined.splits[split]:
        raise CaeavError(f"no usable clip in split {split!r}", hint="choose another --split")
    stressed = bool(active(strengths))
    check_stress(
        list(active(strengths)),
        experiment.inputs.spec,
        captions=experiment.config.captions,
        shift=strengths.shift,
    )
    followed = followed_labels(experiment, split) if follow and stressed else None
    scores = experiment.score(model, split, Stress(strengths, seed, followed) if stressed else None, observe)
    left_out = removed(experiment.all_splits, experiment.joined.splits)[split]
    return Examined(
        experiment,
        split,
        scores,
        None if scores.evidence is None else intervals(scores.evidence),
        experiment.majority(split),
        strengths,
        experiment.score(model, split) if stressed else None,
        experiment.score_with_leaks(model, split) if drop_leaks and not stressed else None,
        left_out,
        None if stressed else judge(experiment, model, split, calibration),
        follow and stressed,
    )


def followed_labels(experiment: Experiment, split: str) -> Followed:
    """The labels of a split as stress can follow them: the exact truth of a generated set, else what labels tell.

    Raises `CaeavError` where the task's labels cannot.
    """
    targets = experiment.targets[split]
    tracks = experiment.task.tracks(targets)
    if tracks is None:
        raise CaeavError(
            f"--stress-labels follow: labels of task {experiment.task.name!r} do not tell what is seen and heard",
            hint="leave it out; tasks ave, ave-weak and avvp have it",
        )
    return Followed(*(_exact_tracks(experiment, split) or tracks), experiment.task.with_tracks)


def _exact_tracks(experiment: Experiment, split: str) -> tuple[Tensor, Tensor] | None:
    """What is seen and heard in a generated set by its truth, `[N, T, K]` each; None elsewhere."""
    classes = {name: i for i, name in enumerate(experiment.inputs.classes)}
    truths = generated_truth(experiment, split) or []
    named = {name for truth in truths for second in (*truth.seen, *truth.heard) for name in second}
    if not named or not named <= classes.keys():
        return None
    tracks = torch.zeros(2, len(truths), experiment.inputs.spec.segments, len(classes))
    for clip, truth in enumerate(truths):
        for modality, seconds in enumerate((truth.seen, truth.heard)):
            for t, names in enumerate(seconds):
                tracks[modality, clip, t, [classes[name] for name in names]] = 1
    return tracks[0], tracks[1]


def remarks(found: Examined) -> list[str]:
    """What to say about the score: the effect of stress, of segments without media and of leaked clips."""
    lines, metric, row = [], found.experiment.task.metric, found.experiment.task.sample_noun
    if found.plain is not None:
        labels = ", labels following it" if found.follow else ""
        lines.append(
            f"under stress {stress_text(found.strengths)}{labels}; without: {metric} {found.plain.value:.2f} %, "
            f"a change of {found.scores.value - found.plain.value:+.2f}"
        )
    bare = (found.plain or found.scores).without_media
    if bare[0]:
        lines.append(bare_sentence({found.split: bare}))
    if found.with_leaks is not None:
        lines.append(
            f"{counted(found.left_out, f'{found.split} {row}')} left out, their video being in another split "
            f"too; with them: {metric} {found.with_leaks.value:.2f} %"
        )
    return lines
