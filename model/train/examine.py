"""A trained run looked at again: its score on a split with an interval, under stress, and without leaked clips.

The plain score is the one from the end of training. Under stress the same clips are scored with damaged inputs.

How a run's score falls as inputs are damaged more and more: one curve a kind of damage, as numbers and a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import nn

from caeav.manifests.core.atomic import publish_bytes, publish_text
from caeav.manifests.core.errors import CaeavError, did_you_mean
from caeav.manifests.core.util import counted
from caeav.model.tasks.base import Scores
from caeav.model.tasks.bootstrap import Intervals, intervals
from caeav.model.tasks.config import StressConfig
from caeav.model.train.card import bare_said
from caeav.model.train.experiment import Experiment
from caeav.model.train.join import removed
from caeav.model.train.protocol import stamp
from caeav.model.train.stress import CAPTION_KINDS, KINDS, Stress, active, check_stress, said

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_SEGMENTS = 4
FOLDER = "stress"

Curves = dict[str, Any]


def kinds_of(text: str, experiment: Experiment) -> list[str]:
    """`all`, or kinds separated by commas; raises `CaeavError` for one that is none or that the run has no use for."""
    captions = experiment.config.captions
    if text == "all":
        return [kind for kind in KINDS if captions or kind not in CAPTION_KINDS]
    kinds = list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise CaeavError(
            f"--stress-curve {text!r}: no such stress: {', '.join(unknown)}",
            hint=f"{did_you_mean(unknown[0], KINDS)} choose among {', '.join(KINDS)}, or all".strip(),
        )
    check_stress(kinds, experiment.inputs.spec, captions=captions)
    return kinds


def strengths_of(kind: str, segments: int) -> tuple[float, ...]:
    """From nothing on."""
    return tuple(range(min(MOST_SEGMENTS, segments - 1) + 1)) if kind == "shift" else SHARES


def stress_curves(
    experiment: Experiment,
    model: nn.Module,
    split: str,
    kinds: Sequence[str],
    *,
    seed: int = 0,
    told: Callable[[str], None] = lambda line: None,
) -> Curves:
    """Score `split` under every strength of every kind, each kind alone; `told` hears of each kind that is done."""
    if not experiment.joined.splits[split]:
        raise CaeavError(f"no usable clip in split {split!r}", hint="choose another --split")
    plain = _point(0.0, experiment.score(model, split), experiment.task.metric)
    curves = {}
    for kind in kinds:
        curves[kind] = [plain] + [
            _point(
                strength,
                experiment.score(model, split, Stress(StressConfig.model_validate({kind: strength}), seed)),
                experiment.task.metric,
            )
            for strength in strengths_of(kind, experiment.inputs.spec.segments)[1:]
        ]
        told(f"  {kind}: " + " ".join(f"{point['score']:.2f}" for point in curves[kind]))
    config = experiment.config
    return {
        "split": split,
        "metric": experiment.task.metric,
        "seed": seed,
        "clips": len(experiment.joined.splits[split]),
        "majority": experiment.majority(split),
        "protocol": stamp(config.protocol, config.select_on),
        "curves": curves,
    }


def _point(strength: float, scores: Scores, metric: str) -> dict[str, Any]:
    bounds = {} if scores.evidence is None else intervals(scores.evidence).bounds
    return {
        "strength": strength,
        "score": scores.value,
        "interval": list(bounds[metric]) if metric in bounds else None,
        "details": dict(scores.details),
    }


def table(curves: Curves) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows: a row a kind, the score at each step, how strong the last step is."""
    steps = max(len(points) for points in curves["curves"].values())
    columns = ["stress", "none", *(f"step {i}" for i in range(1, steps)), "strengths"]
    rows = [
        [
            kind,
            *(f"{point['score']:.2f}" for point in points),
            *[""] * (steps - len(points)),
            " ".join(f"{point['strength']:g}" for point in points[1:]),
        ]
        for kind, points in curves["curves"].items()
    ]
    return columns, rows


def write_curves(curves: Curves, folder: Path, title: str) -> list[Path]:
    """Publish `<split>.json` and `<split>.png` into `folder`; the files written."""
    data, drawn = folder / f"{curves['split']}.json", folder / f"{curves['split']}.png"
    publish_text(data, json.dumps(curves, indent=2, allow_nan=False) + "\n")
    publish_bytes(drawn, picture(curves, title))
    return [data, drawn]


def picture(curves: Curves, title: str) -> bytes:
    """A PNG: a small panel a kind, the score with its interval against the strength, the majority as a dashed line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from caeav.model.tasks.prediction import BLUE, INK, plain

    held = curves["curves"]
    across = min(4, len(held))
    down = -(-len(held) // across)
    figure = Figure(figsize=(2.9 * across + 0.5, 2.4 * down + 0.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    for axis, (kind, points) in zip(axes, held.items(), strict=False):
        strengths = [point["strength"] for point in points]
        axis.plot(strengths, [point["score"] for point in points], color=BLUE, marker="o", markersize=4)
        ranges = [point["interval"] for point in points]
        if all(ranges):
            axis.fill_between(strengths, *zip(*ranges, strict=True), color=BLUE, alpha=0.18, linewidth=0)
        axis.axhline(curves["majority"], color=INK, linewidth=0.8, linestyle="--")
        axis.set_title(kind, fontsize=9, color=INK)
        axis.set_xlabel("segments" if kind == "shift" else "share of clips", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    for axis in axes[len(held) :]:
        axis.set_visible(False)
    axes[0].set_ylabel(f"{curves['metric']} %")
    figure.suptitle(plain(title, 90), x=0.01, ha="left", fontsize=10, color=INK)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@dataclass(frozen=True)
class Examined:
    """`plain`: the score without stress, None when there was none; `whole`: with leaked clips, None when none were left
    out; `left_out`: how many were."""

    experiment: Experiment
    split: str
    scores: Scores
    intervals: Intervals | None
    majority: float
    strengths: StressConfig
    plain: Scores | None
    whole: Scores | None
    left_out: int

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
            "score_without_stress": None if self.plain is None else self.plain.value,
            "leaks": None
            if self.whole is None
            else {"left_out": self.left_out, "score_with": self.whole.value},
            "bare": list((self.plain or scores).without_media),
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
) -> Examined:
    """Score `model` on `split`; raises `CaeavError` when no clip is there to be scored."""
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
    scores = experiment.score(model, split, Stress(strengths, seed) if stressed else None)
    left_out = removed(experiment.whole, experiment.joined.splits)[split]
    return Examined(
        experiment,
        split,
        scores,
        None if scores.evidence is None else intervals(scores.evidence),
        experiment.majority(split),
        strengths,
        experiment.score(model, split) if stressed else None,
        experiment.score_whole(model, split) if drop_leaks and not stressed else None,
        left_out,
    )


def remarks(found: Examined) -> list[str]:
    """What to say beside the score: the effect of stress and of leaked clips."""
    lines, metric, row = [], found.experiment.task.metric, found.experiment.task.sample_noun
    if found.plain is not None:
        lines.append(
            f"under stress {said(found.strengths)}; without: {metric} {found.plain.value:.2f} %, "
            f"a change of {found.scores.value - found.plain.value:+.2f}"
        )
    bare = (found.plain or found.scores).without_media
    if bare[0]:
        lines.append(bare_said({found.split: bare}))
    if found.whole is not None:
        lines.append(
            f"{counted(found.left_out, f'{found.split} {row}')} left out, their video being in another split "
            f"too; with them: {metric} {found.whole.value:.2f} %"
        )
    return lines
