"""A prediction for people and programs: a JSON file and a picture of the timeline."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.publish import publish_bytes
from caeav.model.predict import BACKGROUND, Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY, INK = "#c8ccd1", "#30343b"


def report_json(predictions: Sequence[Prediction], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Rows, event spans and class probabilities of successive clips, with `facts` (run, file, ...)."""
    return {
        **facts,
        "classes": [*predictions[0].classes, BACKGROUND],
        "segments": [
            {**row, "probabilities": [round(float(p), 6) for p in line]}
            for prediction in predictions
            for row, line in zip(prediction.rows(), prediction.table, strict=True)
        ],
        "events": [
            {"event": name, "start_s": start, "end_s": end}
            for prediction in predictions
            for name, start, end in prediction.spans()
        ],
    }


def write_json(predictions: Sequence[Prediction], path: Path, facts: Mapping[str, Any]) -> None:
    """Publish `report_json` as a file; bytes of a file name that are no UTF-8 are escaped."""
    text = json.dumps(report_json(predictions, facts), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    publish_bytes(path, text.encode("utf-8", "backslashreplace"))  # \udcff is JSON's own escape


def write_timeline(
    predictions: Sequence[Prediction], path: Path, title: str, frames: Sequence[NDArray[np.uint8]] = ()
) -> None:
    """Publish a PNG: a strip of `frames` (one a segment, `[H, W, 3]`), event bars over time, the agreement curve."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for prediction in predictions for row in prediction.rows()]
    has_agreement = rows[0]["agreement"] is not None
    heights = {
        "frames": 0.85 if len(frames) == len(rows) else 0.0,
        "events": 1.7,
        "agreement": 0.8 if has_agreement else 0.0,
    }
    panels = {name: height for name, height in heights.items() if height}
    width = min(max(0.95 * len(rows), 9.0), 40.0)
    figure = Figure(figsize=(width, 1.35 * sum(panels.values()) + 0.9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # a figure draws on the canvas it was given to; no display is looked for
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=list(panels.values()))[
        :, 0
    ]
    by_name = dict(zip(panels, axes, strict=True))
    if "frames" in by_name:
        _draw_frames(by_name["frames"], rows, frames)
    _draw_events(by_name["events"], rows, predictions)
    if has_agreement:
        _draw_agreement(by_name["agreement"], rows)
    last = axes[-1]
    last.set_xlim(rows[0]["start_s"], rows[-1]["end_s"])
    last.set_xlabel("seconds")
    step = max(1, math.ceil(len(rows) / 30))
    last.set_xticks([row["start_s"] for row in rows[::step]] + [rows[-1]["end_s"]])
    figure.suptitle(_plain(title, 90), x=0.01, ha="left", fontsize=11, color=INK)
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        figure.savefig(buffer, format="png")
    publish_bytes(path, buffer.getvalue())


def _draw_frames(axis: Axes, rows: Sequence[Mapping[str, Any]], frames: Sequence[NDArray[np.uint8]]) -> None:
    """One picture a segment, fitted into its place on the time axis."""
    axis.set_ylim(0, 1)
    axis.set_axis_off()
    for row, frame in zip(rows, frames, strict=True):
        box = axis.inset_axes(
            (row["start_s"] + 0.02, 0.0, row["end_s"] - row["start_s"] - 0.04, 1.0), transform=axis.transData
        )
        box.imshow(frame)
        box.set_axis_off()


def _draw_events(axis: Axes, rows: Sequence[Mapping[str, Any]], predictions: Sequence[Prediction]) -> None:
    """A bar a segment: how probable any event is, in the colour of the event that is said; spans named above."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(row["event"] for row in rows if row["event"] != BACKGROUND))
    colours = {name: colormaps["tab10"](i % 10) for i, name in enumerate(names)} | {BACKGROUND: GREY}
    any_event = [1.0 - float(line[-1]) for prediction in predictions for line in prediction.table]
    for row, height in zip(rows, any_event, strict=True):
        length = row["end_s"] - row["start_s"]
        axis.bar(
            row["start_s"],
            height,
            width=length,
            align="edge",
            color=colours[row["event"]],
            edgecolor="white",
            linewidth=1.5,
        )
        middle = row["start_s"] + length / 2
        axis.text(middle, height + 0.02, f"{height:.2f}", ha="center", va="bottom", fontsize=7, color=INK)
    for prediction in predictions:
        for name, start, end in prediction.spans():
            axis.plot(
                [start + 0.04, end - 0.04],
                [1.17, 1.17],
                color=colours[name],
                linewidth=4,
                solid_capstyle="butt",
            )
            label = _plain(name, max(6, int((end - start) * 11)))
            axis.text((start + end) / 2, 1.2, label, ha="center", va="bottom", fontsize=9, color=INK)
    if not names:
        middle = (rows[0]["start_s"] + rows[-1]["end_s"]) / 2
        axis.text(
            middle,
            1.17,
            "no event that is both seen and heard",
            ha="center",
            va="bottom",
            fontsize=9,
            color=INK,
        )
    axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axis.set_ylim(0, 1.36)
    axis.set_yticks([0, 0.5, 1])
    axis.set_ylabel("P(event)")
    axis.spines[["top", "right"]].set_visible(False)


def _draw_agreement(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """How well sound and picture agree, in the middle of every segment."""
    middles = [(row["start_s"] + row["end_s"]) / 2 for row in rows]
    values = [row["agreement"] for row in rows]
    axis.fill_between(middles, values, color="#4c78a8", alpha=0.18, linewidth=0)
    axis.plot(middles, values, color="#4c78a8", marker="o", markersize=4)
    axis.set_ylim(0, 1.05)
    axis.set_yticks([0, 0.5, 1])
    axis.set_ylabel("agreement")
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _plain(text: str, longest: int) -> str:
    """Untrusted text for a picture: printable, no mathematics, cut to `longest` characters."""
    safe = "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")
    return safe if len(safe) <= longest else safe[: longest - 1] + "…"
