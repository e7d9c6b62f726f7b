"""CASE's dropout as version 0.1.0 drew it on a CPU, for trainings that it began.

That version took four numbers of 16 bits out of each number of 64 where torch takes floats. With the same masks a
training that it left interrupted continues with its numbers, up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caeav.model.adapters.case import AttentionUnit, FeedForwardUnit
from caeav.model.adapters.memory import Dropout

VERSION = "0.1.0"


def use_earlier_draws(model: nn.Module) -> bool:
    """Let every unit of CASE in `model` draw as version 0.1.0 did; whether there is any."""
    units = [part for part in model.modules() if isinstance(part, AttentionUnit | FeedForwardUnit)]
    for unit in units:
        unit.dropout = EarlierDropout(unit.dropout.p).train(unit.training)
        if isinstance(unit, AttentionUnit):
            unit.attn.attend = attend
    return bool(units)


class EarlierDropout(Dropout):
    """Dropout with masks of 16-bit draws; the rate is met to 1/131072."""

    def forward(self, x: Tensor) -> Tensor:
        """`[...]` -> `[...]`."""
        return drop(x, self.p) if self.training and self.p > 0 else x


def drop(x: Tensor, rate: float) -> Tensor:
    """`x` with the dropped elements at 0 and the others scaled up."""
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    dropped = drawn.view(torch.int16)[: x.numel()] < round(rate * 2**16) - 2**15
    return x.masked_fill(dropped.view(x.shape), 0) * (1 / (1 - rate))


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, dropout_p: float
) -> Tensor:
    """`scaled_dot_product_attention`: `[N, heads, Q, c]`, keys and values `[N, heads, S, c]`; True may be attended."""
    logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, float("-inf"))
    weights = logits.softmax(dim=-1)  # [N, heads, Q, S]
    return (drop(weights, dropout_p) if dropout_p > 0 else weights) @ value
