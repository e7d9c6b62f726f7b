"""The AVQA question encoder, loss and count of right answers equal the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from caeav.model.tasks.avqa.head import QuestionEncoder
from caeav.model.tasks.avqa.loss import avqa_loss
from caeav.model.tasks.avqa.metric import QUESTION_TYPES, AvqaMetric

GROUP = "avqa"

Vector = Any
Tensors = dict[str, Tensor]


def run_loss(m: nn.Module, x: Tensors, v: Vector) -> Tensors:
    # The reference interleaves the matches in a float32 buffer, which rounds their float64 gradients on the way back.
    precision = x["answer_logits"].dtype
    loss = avqa_loss(
        x["answer_logits"],
        x["match_positive"].float().to(precision),
        x["match_negative"].float().to(precision),
        x["answer"],
    )
    metric = AvqaMetric()
    types = [QUESTION_TYPES[0]] * len(x["answer"])
    metric.update(x["answer_logits"], x["answer"], types)
    score = metric.compute()
    return {
        "total": (loss.answer + v.hyper("match_weight") * loss.match).view(1),
        "answer_ce": loss.answer.view(1),
        "match_ce": loss.match.view(1),
        "correct": torch.tensor([round(score.accuracy * len(types))]),
    }


TABLE: dict[str, tuple[Callable[[Vector], nn.Module], Callable[..., Tensors]]] = {
    "avqa_question_encoder": (
        lambda v: QuestionEncoder(*v.shape("param.embedding.weight")),
        lambda m, x, v: {"y": m(x["question"])},
    ),
    "loss_avqa": (lambda v: nn.Module(), run_loss),
}


def test_equals_the_reference(vector: Vector, check_vector: Callable[..., None]) -> None:
    check_vector(vector, *TABLE[vector.kind])
