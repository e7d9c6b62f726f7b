"""AVE prediction: one event, or background, in every second. Shapes: `T` segments, `K` classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from caeav.model.tasks.prediction import (
    GREY,
    INK,
    Frames,
    Panel,
    SegmentTimes,
    Span,
    TaskPrediction,
    colours_of,
    draw_spans,
    legend_above,
    number,
    spans_text,
    strip_panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BACKGROUND = "background"


@dataclass(frozen=True)
class Timeline(TaskPrediction):
    """One event per segment, or `background`: nothing that is both seen and heard.

    `events`, `probability`: its name and probability. `table` `[T, K + 1]`: those of all names, background last.
    """

    classes: tuple[str, ...]
    events: tuple[str, ...]
    probability: tuple[float, ...]
    table: NDArray[np.float32]

    @classmethod
    def of(cls, chosen: Tensor, table: Tensor, classes: Sequence[str]) -> Timeline:
        """From the chosen class `[T]` (`K`: background) and probabilities `[T, K + 1]`."""
        names = (*classes, BACKGROUND)
        probability = table.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        return cls(
            classes=tuple(classes),
            events=tuple(names[int(i)] for i in chosen),
            probability=tuple(probability.tolist()),
            table=table.cpu().numpy().astype(np.float32),
        )

    def spans(self, times: SegmentTimes) -> list[Span]:
        """Events with start and end, without background."""
        return times.spans([None if name == BACKGROUND else name for name in self.events])

    def headline(self, times: SegmentTimes) -> str:
        """The events, or that there is none."""
        return spans_text(self.spans(times)) or BACKGROUND

    def any_event(self, t: int) -> float:
        """Probability that segment `t` holds any event; from one half on, the likeliest event is predicted."""
        return 1.0 - float(self.table[t, -1])

    def rows(self, times: SegmentTimes) -> list[dict[str, Any]]:
        """A row per segment: the predicted event, its probability, and that of any event."""
        return [
            {
                **times.segment_cells(t),
                "event": self.events[t],
                "probability": self.probability[t],
                "any event": self.any_event(t),
            }
            for t in range(times.shown)
        ]

    def as_json(self, times: SegmentTimes) -> dict[str, Any]:
        """Segments with all probabilities, and the events."""
        return {
            "classes": [*self.classes, BACKGROUND],
            "segments": [
                {
                    "start_s": times.bounds(t)[0],
                    "end_s": times.bounds(t)[1],
                    "event": self.events[t],
                    "probability": self.probability[t],
                    "any_event": round(self.any_event(t), 6),
                    "probabilities": [round(float(p), 6) for p in self.table[t]],
                }
                for t in range(times.shown)
            ],
            "events": [{"event": n, "start_s": start, "end_s": end} for n, start, end in self.spans(times)],
        }

    def panels(self, times: SegmentTimes, frames: Frames) -> list[Panel]:
        """Frames, then a bar per segment: the predicted event's probability in its colour; a line: any event."""
        return [*strip_panel(times, frames), Panel(2.3, lambda axis: self._draw(axis, times))]

    def _draw(self, axis: Axes, times: SegmentTimes) -> None:
        events = self.events[: times.shown]
        colours = colours_of([name for name in events if name != BACKGROUND])
        edges = [times.start_s, *(times.bounds(t)[1] for t in range(times.shown))]
        for t, name in enumerate(events):
            start_s, end_s = times.bounds(t)
            height = self.probability[t]
            axis.bar(
                start_s,
                height,
                width=end_s - start_s,
                align="edge",
                color=colours.get(name, GREY),
                edgecolor="white",
                linewidth=1.5,
            )
            number(axis, (start_s + end_s) / 2, 0.07, height)
        draw_spans(axis, self.spans(times), colours, 1.17, label=True)
        if not colours:
            middle, words = (times.start_s + times.end_s) / 2, "no event that is both seen and heard"
            axis.text(middle, 1.17, words, ha="center", va="bottom", fontsize=9, color=INK)
        axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        handles: list[Any] = [
            axis.stairs(
                [self.any_event(t) for t in range(times.shown)],
                edges,
                baseline=None,
                color=INK,
                linewidth=1.4,
            )
        ]
        names = ["any event (said from 0.5 on)"]
        for name, colour in (("of the event said", next(iter(colours.values()), None)), (BACKGROUND, GREY)):
            if colour is not None and (colour != GREY or BACKGROUND in events):
                handles.append(axis.bar([times.start_s], [0], color=colour))
                names.append(name)
        legend_above(axis, handles, names)
        axis.set_ylim(0, 1.36)
        axis.set_yticks([0, 0.5, 1])
        axis.set_ylabel("probability")
