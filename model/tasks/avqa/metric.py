"""The official MUSIC-AVQA metric: accuracy of answers, pooled and per question type (REFERENCE section 7).

Averages over types pool counts, so a type weighs in proportion to its questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.readers.music_avqa import TYPES

QuestionType = tuple[str, str]

QUESTION_TYPES: tuple[QuestionType, ...] = TYPES


class QuestionTypeError(CaeavError):
    """A question type that the official evaluation does not know."""


@dataclass(frozen=True)
class AvqaScore:
    """Accuracies in 0..1 of the types and modalities that occurred; `questions`: how many of each type.

    `each`: the type of every question and whether the answer was right, for intervals.
    """

    accuracy: float
    per_type: Mapping[QuestionType, float]
    per_modality: Mapping[str, float]
    questions: Mapping[QuestionType, int]
    each: Sequence[tuple[QuestionType, bool]]


class AvqaMetric:
    """Counts over batches; the result does not depend on the batch size."""

    def __init__(self) -> None:
        self._right: Counter[QuestionType] = Counter()
        self._asked: Counter[QuestionType] = Counter()
        self._each: list[tuple[QuestionType, bool]] = []

    def update(self, answer_logits: Tensor, answers: Tensor, types: Sequence[Sequence[str]]) -> None:
        """One batch: logits `[B, answers]`, true index `[B]`, one (modality, kind) per question.

        An answer outside the vocabulary (such as a negative index) is never right. Of equal logits the first counts.
        Raises `QuestionTypeError` for a type that is not one of the nine.
        """
        kinds = [(str(kind[0]), str(kind[1])) for kind in types]
        if unknown := sorted(set(kinds) - set(QUESTION_TYPES)):
            raise QuestionTypeError(
                f"unknown question type {unknown[0]}",
                hint=f"the official types are {', '.join(f'{a} {b}' for a, b in QUESTION_TYPES)}",
            )
        self.take((answer_logits.argmax(dim=-1) == answers).tolist(), kinds)

    def take(self, hits: Sequence[bool], kinds: Sequence[QuestionType]) -> None:
        """One batch: whether each question was answered rightly, and its type."""
        self._asked.update(kinds)
        self._right.update(kind for kind, hit in zip(kinds, hits, strict=True) if hit)
        self._each += zip(kinds, hits, strict=True)

    def compute(self) -> AvqaScore:
        """The score of all batches so far; raises ValueError before the first one."""
        if not self._asked:
            raise ValueError("no question was scored: call update() first")
        modalities = dict.fromkeys(modality for modality, _ in QUESTION_TYPES)
        groups = {m: [kind for kind in QUESTION_TYPES if kind[0] == m] for m in modalities}
        return AvqaScore(
            accuracy=self._accuracy(QUESTION_TYPES),
            per_type={kind: self._accuracy([kind]) for kind in QUESTION_TYPES if self._asked[kind]},
            per_modality={
                m: self._accuracy(kinds) for m, kinds in groups.items() if any(self._asked[k] for k in kinds)
            },
            questions={kind: self._asked[kind] for kind in QUESTION_TYPES if self._asked[kind]},
            each=tuple(self._each),
        )

    def _accuracy(self, kinds: Sequence[QuestionType]) -> float:
        return sum(self._right[kind] for kind in kinds) / sum(self._asked[kind] for kind in kinds)
