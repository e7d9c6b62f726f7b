"""A prediction written for people and programs: a JSON file, an image, and the files that the task adds."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.core.util import capitalised
from caeav.model.tasks.prediction import BLUE, GREY, INK, Frames, Panel, SegmentTimes, plain
from caeav.model.train.agreement import MEANING
from caeav.model.train.predict import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JSON_FILE, IMAGE_FILE = "prediction.json", "prediction.png"


def prediction_json(prediction: Prediction, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The prediction with `facts` (run, file, ...), each segment's agreement (null without CASTE, or where frames or
    audio are missing) and what it lacks; segments after the end of the media are left out.

    A run without a calibrated agreement has `caste_gate` instead, and its `agreement` is null.
    """
    shown = prediction.times.shown
    said = prediction.agreements()
    found: dict[str, Any] = {"agreement": None}
    if said is not None and prediction.calibrated:
        found = {"agreement": said, "agreement_means": MEANING}
    elif said is not None:
        found["caste_gate"] = said
    return {
        **facts,
        **prediction.decoded.as_json(prediction.times),
        **found,
        "missing": [list(lacks) for lacks in prediction.missing[:shown]],
    }


def write_prediction(
    prediction: Prediction, folder: Path, title: str, facts: Mapping[str, Any], frames: Frames = ()
) -> list[Path]:
    """Publish a prediction into `folder`; returns the files written."""
    text = (
        json.dumps(prediction_json(prediction, facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    )
    files = {
        JSON_FILE: text.encode(
            "utf-8", "backslashreplace"
        ),  # undecodable bytes of a file name become JSON escapes
        IMAGE_FILE: draw(prediction, title, frames),
        **prediction.decoded.files(prediction.times),
    }
    for name, data in files.items():
        publish_bytes(folder / name, data)
    return [folder / name for name in files]


def folder_for(file: Path, folder: Path, question: str = "") -> Path:
    """`folder`, or with a number added where it holds a prediction for another file or question."""
    place, number = folder, 1
    while _is_another(place / JSON_FILE, file, question):
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    return place


def _is_another(found: Path, file: Path, question: str) -> bool:
    try:
        seen = json.loads(found.read_text(encoding="utf-8"))
        return Path(seen["file"]).resolve() != file.resolve() or seen.get("question", "") != question.strip()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # no prediction, or none worth keeping


def draw(prediction: Prediction, title: str, frames: Frames = ()) -> bytes:
    """A PNG: the task's panels below each other, then the agreement of audio and frames over time, or CASTE's gate.

    Segments without frames or audio are hatched in all plots over time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    times = prediction.times
    panels = list(prediction.decoded.panels(times, frames))
    agreements = prediction.agreements()
    if agreements is not None:
        words = f"{MEANING.capitalize()} (as likely as not at 0.5)" if prediction.calibrated else ""
        words += f"\n{capitalised(prediction.weak)}" if prediction.weak else ""
        panels.append(_agreement_panel(agreements, times, prediction.agreement_name, words))
    heights = [panel.height for panel in panels]
    figure = Figure(figsize=(times.width_in, sum(heights) + 0.9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # draws into memory; no display is needed
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    last = max((i for i, panel in enumerate(panels) if panel.timed), default=None)
    for i, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        if panel.timed:
            _time_axis(axis, times, _time_label(prediction) if i == last else None)
        axis.spines[["top", "right"]].set_visible(False)
        panel.draw(axis)
        if panel.timed and axis.axison:
            _hatch_missing(axis, prediction)
    figure.suptitle(plain(title, 90), x=0.01, ha="left", fontsize=11, color=INK)
    buffer = BytesIO()
    layout = figure.get_layout_engine()
    assert layout is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        layout.execute(figure)
        figure.set_layout_engine("none")  # else it is laid out again, and drawn once more for that
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _time_label(prediction: Prediction) -> str:
    """The label of the time axis, with what the media lack in which segments."""
    names = dict.fromkeys(name for lacks in prediction.missing for name in lacks)
    lacks = {name: [name in lacks for lacks in prediction.missing] for name in names}
    where = {name: prediction.times.segment_list(found) for name, found in lacks.items()}
    text = "; ".join(f"no {name} in {numbers}" for name, numbers in where.items() if numbers)
    return "seconds" + (f"  (segments above; hatched: {text})" if text else "")


def _time_axis(axis: Axes, times: SegmentTimes, label: str | None) -> None:
    """Time in the file from left to right; numbers and label only below the last timed panel."""
    axis.set_xlim(times.start_s, times.end_s)
    step = max(1, math.ceil(times.shown / 30))
    ticks = [times.bounds(t)[0] for t in range(0, times.shown, step)] + [times.end_s]
    axis.set_xticks(ticks, [""] * len(ticks) if label is None else [f"{tick:.5g}" for tick in ticks])
    if label is not None:
        axis.set_xlabel(label)


def _hatch_missing(axis: Axes, prediction: Prediction) -> None:
    """Hatch, behind what is drawn, the segments in which the media lack what the run reads."""
    lacking = ["missing" if lacks else None for lacks in prediction.missing]
    for _, start_s, end_s in prediction.times.spans(lacking):
        axis.axvspan(start_s, end_s, facecolor="none", edgecolor=GREY, hatch="////", linewidth=0, zorder=0)


def _agreement_panel(
    values: Sequence[float | None], times: SegmentTimes, name: str = "agreement", words: str = ""
) -> Panel:
    """How well audio and frames agree, in the middle of every segment; a gap where one of them is missing.

    name: of the axis; words: what it means, with a line at one half where it is a probability.
    """

    def draw(axis: Axes) -> None:
        middles = [sum(times.bounds(t)) / 2 for t in range(times.shown)]
        heights = np.array([np.nan if value is None else value for value in values])
        axis.fill_between(middles, heights, color=BLUE, alpha=0.18, linewidth=0)
        axis.plot(middles, heights, color=BLUE, marker="o", markersize=4)
        axis.set_ylim(0, 1.05)
        axis.set_yticks([0, 0.5, 1])
        axis.set_ylabel(name)
        if words:
            axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
            axis.set_title(words, loc="left", fontsize=9, color=INK)
        axis.grid(axis="y", alpha=0.3)

    return Panel(1.1, draw)
