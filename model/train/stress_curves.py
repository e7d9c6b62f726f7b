"""How a score falls as inputs are damaged more and more: one curve per kind of stress, as numbers and as an image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import nn

from caeav.manifests.core.atomic import publish_bytes, publish_text
from caeav.manifests.core.errors import CaeavError, did_you_mean
from caeav.manifests.core.util import ignore
from caeav.model.tasks.base import Scores
from caeav.model.tasks.bootstrap import intervals
from caeav.model.tasks.config import StressConfig
from caeav.model.train.experiment import Experiment
from caeav.model.train.protocol import stamp
from caeav.model.train.stress import CAPTION_KINDS, KINDS, Stress, check_stress

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
MOST_SEGMENTS = 4
FOLDER = "stress"

Curves = dict[str, Any]


def kinds_of(text: str, experiment: Experiment) -> list[str]:
    """`all`, or kinds separated by commas; raises `CaeavError` for one that is unknown or does not apply to the run."""
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
    """The strengths of a kind's curve, from 0 up."""
    return tuple(range(min(MOST_SEGMENTS, segments - 1) + 1)) if kind == "shift" else SHARES


def stress_curves(
    experiment: Experiment,
    model: nn.Module,
    split: str,
    kinds: Sequence[str],
    *,
    seed: int = 0,
    progress: Callable[[str], None] = ignore,
) -> Curves:
    """Score `split` at every strength of every kind, each kind alone; `progress` gets a line per finished kind."""
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
        progress(f"  {kind}: " + " ".join(f"{point['score']:.2f}" for point in curves[kind]))
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
    """Columns and rows: one row per kind, with the score at each step and the strengths of the steps."""
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
    """Publish `<split>.json` and `<split>.png` into `folder`; returns both paths."""
    data, image = folder / f"{curves['split']}.json", folder / f"{curves['split']}.png"
    publish_text(data, json.dumps(curves, indent=2, allow_nan=False) + "\n")
    publish_bytes(image, draw_curves(curves, title))
    return [data, image]


def draw_curves(curves: Curves, title: str) -> bytes:
    """A PNG with one panel per kind: the score and its interval against strength, the majority as a dashed line."""
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
