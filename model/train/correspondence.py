"""The correspondence objective: teaches the agreement of audio and frames (formulas in docs/OBJECTIVES.md).

It knows no task: what labels say comes as `Together`. `B` clips, `T` segments; logits are those of `Match`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caeav.model.adapters.batch import TokenBatch
from caeav.model.adapters.correspondence import Match
from caeav.model.tasks.base import Together

SHARPNESS = 8.0
"""How much the seconds of a clip that already agree best count more than the others; 0 would count all alike."""
OTHER_CLIP = 2


def correspondence(match: Match, together: Together, batch: TokenBatch) -> Tensor:
    """Mean of two terms, a scalar: own pairs of seconds belong together, pairs from different clips do not.

    Own pairs with labels of seconds are held to these, and pairs from different clips whose seconds have an event in
    common belong together, too. Without, some second of every clip counts as belonging together: a clip's seconds are
    weighted by a sharpened softmax of their present agreement, without gradient. Other pairs from clips that share a
    label of clips are left out; so are segments that lack a medium. Where stress put another clip's sound to the
    frames, an own pair counts as a mismatched one; at another time of the same clip it is left out.
    """
    own, every = match.logits(), match.all_logits()  # [B, T], [B * T, B * T]
    present = batch.frames_ok & batch.audio_ok
    moved = batch.sound_from if batch.sound_from is not None else torch.zeros_like(own, dtype=torch.long)
    natural = present & (moved == 0)
    strangers = own[present & (moved == OTHER_CLIP)]
    apart = _apart(len(own), together.clips, own.device)
    mismatched = torch.cat([every[_crossed(apart, present)], strangers])
    if together.seconds is not None:
        events = together.seconds.to(own.dtype)
        known = F.binary_cross_entropy_with_logits(own, events.amax(dim=-1), reduction="none")
        belongs = 2 * _mean(known, natural) + _mean(F.softplus(-every), _alike(events, natural))
    elif not len(mismatched):
        return own.sum() * 0.0  # nothing to tell them from
    else:
        sure = (SHARPNESS * F.logsigmoid(own.detach())).masked_fill(~natural, -torch.inf)
        weights = sure.softmax(dim=1).nan_to_num()  # a clip without natural seconds has none
        clips = natural.any(dim=1)
        belongs = _mean((weights * F.softplus(-own)).sum(dim=1), clips)
    return (belongs + (F.softplus(mismatched).mean() if len(mismatched) else 0.0)) / 2


def _apart(clips: int, labels: Tensor | None, device: torch.device) -> Tensor:
    """Which clips `[B, B]` may be held against each other: different ones without a common label `[B, K]`."""
    other = ~torch.eye(clips, dtype=torch.bool, device=device)
    if labels is None:
        return other
    held = labels.float()
    return other & (held @ held.t() == 0)


def _crossed(apart: Tensor, present: Tensor) -> Tensor:
    """Bool `[B * T, B * T]`: pairs of seconds with both media, from clips that are `apart`."""
    flat = present.flatten()
    return _pairs(apart, present.shape[1]) & flat.unsqueeze(1) & flat.unsqueeze(0)


def _alike(events: Tensor, natural: Tensor) -> Tensor:
    """Bool `[B * T, B * T]`: pairs of two clips' seconds, both as recorded, that share one of `events` `[B, T, K]`."""
    held = (events * natural.unsqueeze(-1)).flatten(0, 1)  # [B * T, K]
    other = _apart(len(events), None, events.device)
    return (held @ held.t() > 0) & _pairs(other, events.shape[1])


def _pairs(of_clips: Tensor, segments: int) -> Tensor:
    """`[B, B]` -> `[B * T, B * T]`: what holds for two clips, for all their seconds."""
    return of_clips.repeat_interleave(segments, 0).repeat_interleave(segments, 1)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Of the values at `where`; 0 where there are none."""
    return values.masked_fill(~where, 0.0).sum() / where.sum().clamp_min(1)
