"""A prediction for people and programs: a JSON file, a picture, and whatever files the reading adds."""

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
from caeav.model.train.predict import Prediction
from caeav.model.tasks.prediction import BLUE, INK, Frames, Panel, When, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

JSON, PICTURE = "prediction.json", "prediction.png"


def report_json(prediction: Prediction, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What was found, the agreement a segment (null without CASTE, or where picture or sound is missing) and what is
    missing in each, with `facts` (run, file, ...). Segments behind the end of the media are not in it."""
    shown = prediction.when.shown
    return {
        **facts,
        **prediction.reading.facts(prediction.when),
        "agreement": prediction.agreements(),
        "missing": [list(lacks) for lacks in prediction.missing[:shown]],
    }


def write_report(
    prediction: Prediction, folder: Path, title: str, facts: Mapping[str, Any], frames: Frames = ()
) -> list[Path]:
    """Publish everything about a prediction into `folder`; the files written."""
    text = json.dumps(report_json(prediction, facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    files = {
        JSON: text.encode("utf-8", "backslashreplace"),  # \udcff of a file name is JSON's own escape
        PICTURE: picture(prediction, title, frames),
        **prediction.reading.files(prediction.when),
    }
    for name, data in files.items():
        publish_bytes(folder / name, data)
    return [folder / name for name in files]


def folder_for(file: Path, folder: Path, question: str = "") -> Path:
    """`folder`, or, where a prediction for another file or question lies in it, the same with the first free number."""
    place, number = folder, 1
    while _is_another(place / JSON, file, question):
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    return place


def _is_another(report: Path, file: Path, question: str) -> bool:
    try:
        seen = json.loads(report.read_text(encoding="utf-8"))
        return Path(seen["file"]).resolve() != file.resolve() or seen.get("question", "") != question.strip()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # nothing there, or nothing worth keeping


def picture(prediction: Prediction, title: str, frames: Frames = ()) -> bytes:
    """A PNG: the reading's panels below each other, then the agreement of sound and picture over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    when = prediction.when
    panels = list(prediction.reading.panels(when, frames))
    agreements = prediction.agreements()
    if agreements is not None:
        panels.append(_agreement(agreements, when))
    heights = [panel.height for panel in panels]
    figure = Figure(figsize=(when.width_in, sum(heights) + 0.9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # a figure draws on the canvas it was given to; no display is looked for
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    last = max((i for i, panel in enumerate(panels) if panel.timed), default=None)
    for i, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        if panel.timed:
            _over_time(axis, when, _below(prediction) if i == last else None)
        axis.spines[["top", "right"]].set_visible(False)
        panel.draw(axis)
    figure.suptitle(plain(title, 90), x=0.01, ha="left", fontsize=11, color=INK)
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _below(prediction: Prediction) -> str:
    """The name of the time axis, with what the media do not have in which segments."""
    names = dict.fromkeys(name for lacks in prediction.missing for name in lacks)
    lacks = {name: [name in lacks for lacks in prediction.missing] for name in names}
    where = {name: prediction.when.numbered(found) for name, found in lacks.items()}
    said = "; ".join(f"no {name} in {numbers}" for name, numbers in where.items() if numbers)
    return "seconds" + (f"  (segments above; {said})" if said else "")


def _over_time(axis: Axes, when: When, label: str | None) -> None:
    """The time in the file from left to right; numbers and their name only below the last such panel."""
    axis.set_xlim(when.start_s, when.end_s)
    step = max(1, math.ceil(when.shown / 30))
    ticks = [when.bounds(t)[0] for t in range(0, when.shown, step)] + [when.end_s]
    axis.set_xticks(ticks, [""] * len(ticks) if label is None else [f"{tick:.5g}" for tick in ticks])
    if label is not None:
        axis.set_xlabel(label)


def _agreement(values: Sequence[float | None], when: When) -> Panel:
    """How well sound and picture agree, in the middle of every segment; a gap where one of them is missing."""

    def draw(axis: Axes) -> None:
        middles = [sum(when.bounds(t)) / 2 for t in range(when.shown)]
        heights = np.array([np.nan if value is None else value for value in values])
        axis.fill_between(middles, heights, color=BLUE, alpha=0.18, linewidth=0)
        axis.plot(middles, heights, color=BLUE, marker="o", markersize=4)
        axis.set_ylim(0, 1.05)
        axis.set_yticks([0, 0.5, 1])
        axis.set_ylabel("agreement")
        axis.grid(axis="y", alpha=0.3)

    return Panel(1.1, draw)
