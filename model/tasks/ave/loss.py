"""The AVE objectives, supervised and weak (REFERENCE section 5).

Labels are one-hot per second, `[B, T, K + 1]`, background last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caeav.model.tasks.ave.head import LOG_ONE


class AveLoss(NamedTuple):
    """Scalars; the reference minimises their sum."""

    relevance: Tensor
    event: Tensor
    score: Tensor


def event_class(labels: Tensor) -> Tensor:
    """`[B, T, K + 1]` -> `[B]`: the clip's foreground class; 0 for a clip without any event, as the reference."""
    return labels[..., :-1].argmax(dim=-1).amax(dim=1)


def ave_loss(event_relevance: Tensor, event_scores: Tensor, av_score: Tensor, labels: Tensor) -> AveLoss:
    """Supervised: `BCE(relevance) + CE(event scores) + CE(av score)`, weights 1.

    `event_relevance` `[B, T]`, `event_scores`, `av_score` `[B, K]` are logits. Clips without an event still ask for
    class 0 (the reference's behaviour; AVE has no such clip).
    """
    target = labels[..., :-1].amax(dim=-1).to(event_relevance.dtype)  # [B, T]
    classes = event_class(labels)
    relevance = F.binary_cross_entropy_with_logits(event_relevance, target)
    event = F.cross_entropy(event_scores, classes)
    score = F.cross_entropy(av_score, classes)
    return AveLoss(relevance, event, score)


def gate_loss(gate: Tensor, labels: Tensor) -> Tensor:
    """DG-SCT's fourth: BCE of the temporal gates' logits `[B, T]` against whether the second has an event."""
    return F.binary_cross_entropy_with_logits(gate.float(), labels[..., :-1].amax(dim=-1).float())


def weak_ave_loss(clip: Tensor, labels: Tensor) -> Tensor:
    """Weak: BCE of log probabilities `clip` `[B, K]` against the events that occur anywhere in the clip."""
    log_p = clip.float().clamp(max=LOG_ONE)
    occurs = labels[..., :-1].amax(dim=1).to(log_p.dtype)
    return -(occurs * log_p + (1 - occurs) * torch.log(-torch.expm1(log_p))).mean()
