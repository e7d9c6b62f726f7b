"""Events on a time axis: maximal runs of ones in binary tracks, and how many of them are found again.

Exact integer arithmetic on all tracks at once. Tracks are `[..., T]`; every run is known by the second it begins at.
"""

from __future__ import annotations

import torch
from torch import Tensor


def run_bounds(active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bool tracks `[..., T]` -> `begins` (bool: a run begins here), `first` and `last` second of that run.

    `first` and `last` mean something only where a run begins.
    """
    length = active.shape[-1]
    time = torch.arange(length, device=active.device).expand(active.shape)
    before = torch.nn.functional.pad(active, (1, 0))[..., :-1]
    pauses = torch.where(active, length, time)  # the next second without activity, or the end of the track
    ends = pauses.flip(-1).cummin(dim=-1).values.flip(-1) - 1
    return active & ~before, time, ends


def run_hits(predicted: Tensor, truth: Tensor, min_share: tuple[int, int] = (1, 2)) -> Tensor:
    """Runs that overlap: bool tracks `[..., T]` twice -> counts `[..., 3]` of hits, false alarms and misses.

    A predicted run is a hit if its intersection over union with *some* true run reaches `min_share` (numerator,
    denominator), else a false alarm; a true run that no predicted run reaches is a miss. There is no one-to-one
    matching, so that two predicted runs may hit the same true run where `min_share` allows it.
    """
    begins, first, last = (x.unsqueeze(-1) for x in run_bounds(predicted))  # [..., T, 1]
    true_begins, true_first, true_last = (x.unsqueeze(-2) for x in run_bounds(truth))  # [..., 1, T]
    shared = (torch.minimum(last, true_last) - torch.maximum(first, true_first) + 1).clamp(min=0)
    union = (last - first + 1) + (true_last - true_first + 1) - shared
    numerator, denominator = min_share
    reached = begins & true_begins & (denominator * shared >= numerator * union)
    found = reached.any(dim=-1).sum(dim=-1)
    false_alarms = begins.squeeze(-1).sum(dim=-1) - found
    misses = true_begins.squeeze(-2).sum(dim=-1) - reached.any(dim=-2).sum(dim=-1)
    return torch.stack([found, false_alarms, misses], dim=-1)
