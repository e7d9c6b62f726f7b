"""A timeline: one event, or background, in every second (AVE). Shapes: `T` segments, `K` classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from caeav.model.readings.base import (
    GREY,
    INK,
    Frames,
    Panel,
    Span,
    When,
    colours_of,
    draw_spans,
    strip_panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BACKGROUND = "background"


@dataclass(frozen=True)
class Timeline:
    """`events`: one name a segment (`background`: nothing that is both seen and heard); `probability`: of that name;
    `table`: `[T, K + 1]`, the last column background."""

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

    def spans(self, when: When) -> list[Span]:
        """Events with start and end; background left out."""
        return when.spans([None if name == BACKGROUND else name for name in self.events])

    def rows(self, when: When) -> list[dict[str, Any]]:
        """A segment a row."""
        return [
            {"second": f"{when.bounds(t)[0]:g}", "event": name, "probability": p}
            for t, (name, p) in enumerate(zip(self.events, self.probability, strict=True))
        ]

    def facts(self, when: When) -> dict[str, Any]:
        """Segments with all probabilities, and events."""
        return {
            "classes": [*self.classes, BACKGROUND],
            "segments": [
                {
                    "start_s": when.bounds(t)[0],
                    "end_s": when.bounds(t)[1],
                    "event": self.events[t],
                    "probability": self.probability[t],
                    "probabilities": [round(float(p), 6) for p in self.table[t]],
                }
                for t in range(len(self.events))
            ],
            "events": [{"event": n, "start_s": start, "end_s": end} for n, start, end in self.spans(when)],
        }

    def panels(self, when: When, frames: Frames) -> list[Panel]:
        """Frames, then a bar a segment: how probable any event is, in the colour of the event that is said."""
        return [*strip_panel(when, frames), Panel(2.3, lambda axis: self._draw(axis, when))]

    def files(self) -> dict[str, bytes]:
        """None."""
        return {}

    def remarks(self) -> list[str]:
        """None."""
        return []

    def _draw(self, axis: Axes, when: When) -> None:
        colours = colours_of([name for name in self.events if name != BACKGROUND])
        for t, name in enumerate(self.events):
            start_s, end_s = when.bounds(t)
            height, length = 1.0 - float(self.table[t, -1]), end_s - start_s
            axis.bar(
                start_s,
                height,
                width=length,
                align="edge",
                color=colours.get(name, GREY),
                edgecolor="white",
                linewidth=1.5,
            )
            middle = start_s + length / 2
            axis.text(middle, height + 0.02, f"{height:.2f}", ha="center", va="bottom", fontsize=7, color=INK)
        draw_spans(axis, self.spans(when), colours, 1.17, label=True)
        if not colours:
            middle, said = (when.start_s + when.end_s) / 2, "no event that is both seen and heard"
            axis.text(middle, 1.17, said, ha="center", va="bottom", fontsize=9, color=INK)
        axis.axhline(0.5, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.set_ylim(0, 1.36)
        axis.set_yticks([0, 0.5, 1])
        axis.set_ylabel("P(event)")
