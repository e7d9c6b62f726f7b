"""The AVVP objective (REFERENCE section 5): clip labels for clip and modalities, classes for the class tokens.

Labels are multi-hot per clip, `[B, K]`, whichever modality an event is in. The visual target is smoothed, because
frames often do not show what is heard.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caeav.model.tasks.avvp.config import VISUAL_KEEP
from caeav.model.tasks.avvp.head import AvvpOutput

CLAMP = 1e-7


class AvvpLoss(NamedTuple):
    """Scalars; the reference minimises their sum and load balancing, which the trunk adds."""

    clip: Tensor
    audio: Tensor
    visual: Tensor
    audio_token: Tensor
    visual_token: Tensor


def avvp_loss(
    output: AvvpOutput, labels: Tensor, *, visual_keep: float = VISUAL_KEEP, audio_keep: float = 1.0
) -> AvvpLoss:
    """BCE of clip, audio and (smoothed) visual probabilities, and cross entropy of the class tokens; weights 1.

    `labels` `[B, K]` in 0..1. A keep of `s` turns a label `y` into `s y + (1 - s) / 2`.
    """
    labels = labels.to(torch.promote_types(output.clip_prob.dtype, torch.float32))
    clip = _bce(output.clip_prob, labels)
    audio = _bce(output.audio_prob, audio_keep * labels + (1 - audio_keep) / 2)
    visual = _bce(output.visual_prob, visual_keep * labels + (1 - visual_keep) / 2)
    tokens = (output.audio_token_logits, output.visual_token_logits)
    return AvvpLoss(clip, audio, visual, *(_own_class(logits, clip) for logits in tokens))


def _own_class(logits: Tensor | None, like: Tensor) -> Tensor:
    """Cross entropy of the class tokens' scores `[K, K]` against their own classes; 0 without tokens."""
    if logits is None:
        return torch.zeros_like(like)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _bce(probability: Tensor, target: Tensor) -> Tensor:
    # torch refuses its own BCE under autocast, and half precision cannot represent 1 - 1e-7.
    wide = torch.promote_types(probability.dtype, torch.float32)
    p = probability.to(wide).clamp(CLAMP, 1 - CLAMP)
    return -(target * p.log() + (1 - target) * (1 - p).log()).mean()
