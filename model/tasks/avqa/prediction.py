"""AVQA prediction: the likeliest answers to a question (MUSIC-AVQA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from caeav.model.tasks.prediction import (
    BLUE,
    GREY,
    INK,
    Frames,
    Panel,
    SegmentTimes,
    TaskPrediction,
    plain,
    strip_panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 5


@dataclass(frozen=True)
class Answer(TaskPrediction):
    """`best`: answers and their probabilities, likeliest first; `unknown`: words that the training questions lack."""

    question: str
    best: tuple[tuple[str, float], ...]
    unknown: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, question: str, answers: Sequence[str], probability: Tensor, unknown: tuple[str, ...]
    ) -> Answer:
        """From the probabilities `[answers]` of all answers."""
        top = probability.topk(min(SHOWN, len(answers)))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return cls(question, tuple((answers[i], p) for i, p in pairs), unknown)

    def headline(self, times: SegmentTimes) -> str:
        """The likeliest answer and its probability."""
        return f"{self.best[0][0]} ({self.best[0][1]:.2f})"

    def rows(self, times: SegmentTimes) -> list[dict[str, Any]]:
        """A row per answer."""
        return [{"answer": name, "probability": p} for name, p in self.best]

    def as_json(self, times: SegmentTimes) -> dict[str, Any]:
        """Question, answer and the likeliest answers."""
        return {
            "question": self.question,
            "answer": self.best[0][0],
            "answers": self.rows(times),
            "unknown_words": list(self.unknown),
        }

    def panels(self, times: SegmentTimes, frames: Frames) -> list[Panel]:
        """Frames, then a bar per answer."""
        return [*strip_panel(times, frames), Panel(0.7 + 0.3 * len(self.best), self._draw, timed=False)]

    def remarks(self) -> list[str]:
        """Words of the question that are unknown."""
        if not self.unknown:
            return []
        return [f"the training questions hold no {', '.join(map(repr, self.unknown))}: read as unknown words"]

    def _draw(self, axis: Axes) -> None:
        for line, (_, p) in enumerate(reversed(self.best)):
            first = line == len(self.best) - 1
            axis.barh(line, p, color=BLUE if first else GREY, height=0.7)
            axis.text(p + 0.01, line, f"{p:.2f}", va="center", fontsize=8, color=INK)
        axis.set_yticks(range(len(self.best)), [plain(name, 30) for name, _ in reversed(self.best)])
        axis.set_xlim(0, 1.08)
        axis.set_xticks([0, 0.5, 1])
        axis.set_xlabel("probability")
        axis.set_title(plain(self.question, 110), loc="left", fontsize=10, color=INK)
