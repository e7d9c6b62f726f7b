"""Events on a time axis: maximal runs of ones in binary tracks, and how many of them are found again.

Exact integer arithmetic on all tracks at once. Tracks are `[..., T]`; every run is known by the second it begins at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def run_bounds(active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bool tracks `[..., T]` -> where runs begin (bool), and the first and last second of the run, meant only there."""
    length = active.shape[-1]
    time = torch.arange(length, device=active.device).expand(active.shape)
    before = F.pad(active, (1, 0))[..., :-1]
    pauses = torch.where(active, length, time)  # the next second without activity, or the end of the track
    ends = pauses.flip(-1).cummin(dim=-1).values.flip(-1) - 1
    return active & ~before, time, ends


def run_hits(predicted: Tensor, truth: Tensor) -> Tensor:
    """Runs found again: bool tracks `[..., T]` twice -> counts `[..., 3]` of hits, false alarms and misses.

    A predicted run is a hit if its intersection over union with some true run is one half or more, else a false
    alarm; a true run without such a predicted run is a miss. Runs of one track are apart, so at one half no run can
    reach two others, and the official code's lack of a one-to-one matching makes no difference.
    """
    begins, first, last = (x.unsqueeze(-1) for x in run_bounds(predicted))  # [..., T, 1]
    true_begins, true_first, true_last = (x.unsqueeze(-2) for x in run_bounds(truth))  # [..., 1, T]
    shared = (torch.minimum(last, true_last) - torch.maximum(first, true_first) + 1).clamp(min=0)
    union = (last - first + 1) + (true_last - true_first + 1) - shared
    reached = begins & true_begins & (2 * shared >= union)  # in whole seconds: a tie is a tie
    found = reached.any(dim=-1).sum(dim=-1)
    false_alarms = begins.squeeze(-1).sum(dim=-1) - found
    misses = true_begins.squeeze(-2).sum(dim=-1) - reached.any(dim=-2).sum(dim=-1)
    return torch.stack([found, false_alarms, misses], dim=-1)
