"""The AVQA objective (REFERENCE section 5): the right answer, and the clip's own frames told apart from others."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

UNLISTED = -1
"""Index of an answer that is not listed, from which nothing can be learnt."""


class AvqaLoss(NamedTuple):
    """Scalars; the reference minimises `answer + 0.5 * match`."""

    answer: Tensor
    match: Tensor


def answer_loss(answer_logits: Tensor, answer: Tensor) -> Tensor:
    """Cross entropy of logits `[B, answers]` and indices `[B]`, mean over listed answers; 0 if there are none."""
    listed = (answer != UNLISTED).sum().clamp(min=1)
    return F.cross_entropy(answer_logits, answer, ignore_index=UNLISTED, reduction="sum") / listed


def avqa_loss(
    answer_logits: Tensor, match_positive: Tensor, match_negative: Tensor, answer: Tensor
) -> AvqaLoss:
    """Logits `[B, answers]`, `[B, T, 2]` twice (or `[BT, 2]`), answer index `[B]` -> `AvqaLoss`.

    A pair of the clip's own frames is class 1, of another video's frames class 0; the mean is over all of them.
    """
    positive, negative = match_positive.flatten(0, -2), match_negative.flatten(0, -2)
    truth = torch.cat([torch.ones_like(positive[:, 0]), torch.zeros_like(negative[:, 0])]).long()
    match = F.cross_entropy(torch.cat([positive, negative]), truth)
    return AvqaLoss(answer_loss(answer_logits, answer), match)
