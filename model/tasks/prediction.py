"""What every task's prediction offers, and what their drawings share.

A prediction holds what was found in one clip and knows nothing of the file: `SegmentTimes` says where its segments lie
there and which of them hold media, and only those are in rows, JSON and drawings. A number next to a name is the
probability of what the name says. A drawing is a list of panels, one below the other; panels over time share their
limits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY, INK, BLUE, ORANGE = "#c8ccd1", "#30343b", "#4c78a8", "#f2a541"

Frames = Sequence[NDArray[np.uint8]]
Span = tuple[str, float, float]
"""A name, its start and its end in seconds."""

TALLEST = 3.0
"""Largest height of a row of frames, in inches."""
EDGE = 0.1
"""If media fill less than this fraction of their last segment, they end with the one before: containers round durations
and codecs pad."""


@dataclass(frozen=True)
class SegmentTimes:
    """Where the segments of a prediction lie in the file: the first begins at `start_s`, each lasts `segment_s`.

    A run reads `segments` of them, whatever the file's length. Those `shown` begin before the media end at `media_s`
    (None: not known), and the last of them ends there.
    """

    start_s: float
    segment_s: float
    segments: int
    media_s: float | None = None

    @property
    def shown(self) -> int:
        """Segments that hold media: 1 to `segments`."""
        if self.media_s is None:
            return self.segments
        return min(max(math.ceil((self.media_s - self.start_s) / self.segment_s - EDGE), 1), self.segments)

    def bounds(self, t: int) -> tuple[float, float]:
        """Start and end of segment `t`; the last one ends where the media end, if that comes first."""
        start_s, end_s = self.start_s + t * self.segment_s, self.start_s + (t + 1) * self.segment_s
        last = t == self.shown - 1
        if last and self.media_s is not None and self.media_s < end_s - EDGE * self.segment_s:
            end_s = max(self.media_s, start_s)
        return start_s, end_s

    @property
    def width_in(self) -> float:
        """Width of the whole drawing in inches."""
        return min(max(0.95 * self.shown, 9.0), 40.0)

    @property
    def end_s(self) -> float:
        """Where the last segment with media ends."""
        return self.bounds(self.shown - 1)[1]

    def segment_cells(self, t: int) -> dict[str, Any]:
        """The first cells of a segment's row: its number, counted from 1 as captions count, and its seconds."""
        start_s, end_s = self.bounds(t)
        return {"segment": t + 1, "seconds": f"{start_s:.5g} to {end_s:.5g}"}

    def segment_list(self, active: Sequence[bool]) -> str:
        """The numbers of the segments where `active` holds: `2 to 4 and 7`."""
        runs: list[list[int]] = []
        for number in (t + 1 for t in range(self.shown) if active[t]):
            if runs and runs[-1][-1] == number - 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        parts = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
        return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))

    def spans(self, names: Sequence[str | None]) -> list[Span]:
        """Runs of segments with media and the same name; None is nothing."""
        found: list[Span] = []
        for t, name in enumerate(names[: self.shown]):
            start_s, end_s = self.bounds(t)
            if name is None:
                continue
            if found and t and names[t - 1] == name:
                found[-1] = (name, found[-1][1], end_s)
            else:
                found.append((name, start_s, end_s))
        return found


def spans_text(spans: Sequence[Span]) -> str:
    """`dog 2 to 5 s, bell 7 to 8 s`."""
    return ", ".join(f"{name} {start:.5g} to {end:.5g} s" for name, start, end in spans)


@dataclass(frozen=True)
class Panel:
    """`height` in inches; `timed`: its horizontal axis is the time in the file."""

    height: float
    draw: Callable[[Axes], None]
    timed: bool = True


class TaskPrediction(ABC):
    """What was found in one clip."""

    @abstractmethod
    def rows(self, times: SegmentTimes) -> list[dict[str, Any]]:
        """A table for people; all rows have the same columns."""

    @abstractmethod
    def headline(self, times: SegmentTimes) -> str:
        """What was found, in one line."""

    @abstractmethod
    def as_json(self, times: SegmentTimes) -> dict[str, Any]:
        """Everything, as JSON values."""

    @abstractmethod
    def panels(self, times: SegmentTimes, frames: Frames) -> list[Panel]:
        """The drawing; `frames` are uint8 `[H, W, 3]`, one per segment, or none."""

    def files(self, times: SegmentTimes) -> dict[str, bytes]:
        """Further files by name."""
        return {}

    def remarks(self) -> list[str]:
        """What people should know besides."""
        return []


def strip_panel(times: SegmentTimes, frames: Frames) -> list[Panel]:
    """The frames of segments with media over time; no panel unless there is one frame per segment."""
    if len(frames) != times.segments:
        return []

    def draw(axis: Axes) -> None:
        axis.set_ylim(0, 1)
        axis.set_axis_off()
        for t, frame in enumerate(frames[: times.shown]):
            box = draw_image(axis, times, t, frame)
            box.set_title(str(t + 1), fontsize=7, color=INK, pad=2)  # as table and captions call it

    tall, wide = frames[0].shape[:2]
    return [Panel(min(0.15 + 0.93 * times.width_in / times.shown * tall / wide, TALLEST), draw)]


def draw_image(axis: Axes, times: SegmentTimes, t: int, image: NDArray[np.generic], **style: Any) -> Axes:
    """Show `image` over the seconds of segment `t`, in an axis from 0 to 1; the axis it is in."""
    start_s, end_s = times.bounds(t)
    box = axis.inset_axes((start_s + 0.02, 0.0, end_s - start_s - 0.04, 1.0), transform=axis.transData)
    box.imshow(image, **style)
    box.set_axis_off()
    box.set_title(
        "", y=1.0
    )  # a title is where it is: to look for its place costs a quarter of the drawing's time
    return box


def number(axis: Axes, x: float, y: float, value: float) -> None:
    """Write a probability at a place, legible on any colour."""
    patch = {"facecolor": "white", "alpha": 0.75, "pad": 0.8, "linewidth": 0}
    axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=INK, bbox=patch)


def draw_spans(axis: Axes, spans: Sequence[Span], colours: Mapping[str, Any], y: float, label: bool) -> None:
    """Horizontal bars at height `y`, with their names above if `label`."""
    for name, start, end in spans:
        axis.plot([start + 0.04, end - 0.04], [y, y], color=colours[name], linewidth=4, solid_capstyle="butt")
        if label:
            text = plain(name, max(6, int((end - start) * 11)))
            axis.text((start + end) / 2, y + 0.03, text, ha="center", va="bottom", fontsize=9, color=INK)


def legend_above(axis: Axes, handles: Sequence[Any], names: Sequence[str]) -> None:
    """A legend in one line above the panel, where it hides nothing."""
    axis.legend(
        handles,
        names,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(names),
        fontsize=8,
        frameon=False,
    )


def colours_of(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each name, in order."""
    from matplotlib import colormaps

    return {name: colormaps["tab10"](i % 10) for i, name in enumerate(dict.fromkeys(names))}


def plain(text: str, longest: int) -> str:
    """Untrusted text for a drawing: printable, no mathematics, cut to `longest` characters."""
    safe = "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")
    return safe if len(safe) <= longest else safe[: longest - 1] + "…"
