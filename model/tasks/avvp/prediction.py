"""AVVP prediction: when each class is audible and when it is visible (LLP). Shapes: `T` segments, `K` classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from caeav.model.tasks.prediction import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Frames,
    Panel,
    SegmentTimes,
    Span,
    TaskPrediction,
    legend_above,
    number,
    plain,
    spans_text,
    strip_panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODALITIES = ("audio", "visual")
COLOURS = {"audio": ORANGE, "visual": BLUE}
FAINT = 0.35
"""From this probability on, a class that is not predicted is drawn too, in grey."""


@dataclass(frozen=True)
class Tracks(TaskPrediction):
    """For each modality, `on`: bool `[T, K]`, what is predicted, and `probability` `[T, K]`."""

    classes: tuple[str, ...]
    on: dict[str, NDArray[np.bool_]]
    probability: dict[str, NDArray[np.float32]]

    @classmethod
    def of(
        cls, classes: Sequence[str], on: Mapping[str, Tensor], probability: Mapping[str, Tensor]
    ) -> Tracks:
        """From each modality's bool track `[K, T]` and probabilities `[T, K]`, which the reference lets exceed 1."""
        return cls(
            tuple(classes),
            {name: x.t().cpu().numpy() for name, x in on.items()},
            {name: x.float().clamp(0, 1).cpu().numpy() for name, x in probability.items()},
        )

    def spans(self, times: SegmentTimes, modality: str) -> list[Span]:
        """Events of one modality, class by class."""
        on = self.on[modality]
        return [
            span
            for k, name in enumerate(self.classes)
            for span in times.spans([name if active else None for active in on[:, k]])
        ]

    def headline(self, times: SegmentTimes) -> str:
        """What is heard and what is seen."""
        return "; ".join(
            f"{word} {spans_text(self.spans(times, modality)) or 'nothing'}"
            for word, modality in (("heard:", "audio"), ("seen:", "visual"))
        )

    def rows(self, times: SegmentTimes) -> list[dict[str, Any]]:
        """A row per segment with what is heard and what is seen, each with its probability."""
        return [
            times.segment_cells(t)
            | {word: self._listed(m, t) for word, m in (("heard", "audio"), ("seen", "visual"))}
            for t in range(times.shown)
        ]

    def as_json(self, times: SegmentTimes) -> dict[str, Any]:
        """Events of both modalities, and all probabilities."""
        return {
            "classes": list(self.classes),
            "events": [
                {"modality": modality, "event": name, "start_s": start, "end_s": end}
                for modality in MODALITIES
                for name, start, end in self.spans(times, modality)
            ],
            "segments": [
                {"start_s": times.bounds(t)[0], "end_s": times.bounds(t)[1]}
                | {m: [round(float(p), 6) for p in self.probability[m][t]] for m in MODALITIES}
                for t in range(times.shown)
            ],
        }

    def panels(self, times: SegmentTimes, frames: Frames) -> list[Panel]:
        """Frames, then a line per class and modality."""
        shown = self._shown(times)
        height = 0.5 + 0.42 * max(1, len(shown))
        return [*strip_panel(times, frames), Panel(height, lambda axis: self._draw(axis, times, shown))]

    def _listed(self, modality: str, t: int) -> str:
        """What is predicted in segment `t`, each with its probability."""
        on, chance = self.on[modality][t], self.probability[modality][t]
        return ", ".join(f"{name} {chance[k]:.2f}" for k, name in enumerate(self.classes) if on[k]) or "-"

    def _shown(self, times: SegmentTimes) -> list[int]:
        """Classes that are predicted, or nearly, in any modality."""
        n = times.shown
        most = np.stack([self.probability[m][:n].max(axis=0) for m in MODALITIES]).max(axis=0)
        predicted = np.stack([self.on[m][:n].max(axis=0) for m in MODALITIES]).max(axis=0)
        return [k for k in range(len(self.classes)) if predicted[k] or most[k] >= FAINT]

    def _draw(self, axis: Axes, times: SegmentTimes, shown: Sequence[int]) -> None:
        for line, k in enumerate(reversed(shown)):
            for modality, offset in (("audio", 0.27), ("visual", -0.13)):
                for t in range(times.shown):
                    start_s, end_s = times.bounds(t)
                    p, on = float(self.probability[modality][t, k]), bool(self.on[modality][t, k])
                    axis.barh(
                        line + offset,
                        end_s - start_s,
                        left=start_s,
                        height=0.36,
                        color=COLOURS[modality] if on else GREY,
                        alpha=0.35 + 0.65 * p if on else max(0.06, p),
                        edgecolor="white",
                        linewidth=1,
                    )
                    if on:
                        number(axis, (start_s + end_s) / 2, line + offset, p)
        axis.set_yticks(range(len(shown)), [plain(self.classes[k], 26) for k in reversed(shown)])
        axis.set_ylim(-0.6, max(1, len(shown)) - 0.3)
        if not shown:
            axis.text(
                (times.start_s + times.end_s) / 2, 0.0, "no event heard or seen", ha="center", color=INK
            )
        handles = [axis.barh([-9], [0], color=colour) for colour in (*COLOURS.values(), GREY)]
        legend_above(axis, handles, ["heard", "seen", "not said, the darker the likelier"])
