"""CASE's dropout. On a CPU its draws are cheap, and its mask is a byte for each number.

There torch makes a draw for each element and keeps a float. Here a draw of 64 bits serves four elements, which meets
the rate to 1/131072 and takes two fifths of the time. Under autocast and on a GPU the draws are torch's. Version 0.1.0
did the same, so a training that it left interrupted continues with its masks.

In several processes every one draws for the whole batch, see `whole_batch.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.whole_batch import draw_rows


class Dropout(nn.Dropout):
    """`nn.Dropout` with cheap draws."""

    def forward(self, x: Tensor) -> Tensor:
        """`[N, ...]` -> `[N, ...]`."""
        return drop(x, self.p) if self.training and self.p > 0 else x


def drop(x: Tensor, rate: float) -> Tensor:
    """`x` `[N, ...]` with dropped elements at 0 and the others divided by `1 - rate`."""
    if not _draws_cheaply(x):
        return torch.native_dropout(x, rate, True)[0]
    kept = draw_rows(x, lambda shape: _draw_kept(shape, rate))
    return (x * kept).mul_(1 / (1 - rate))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """`scaled_dot_product_attention` with dropout of its weights.

    `query` `[N, heads, Q, c]`, `key` and `value` `[N, heads, S, c]`; `mask` `[N, 1, 1, S]` is True at what may be
    attended.
    """
    if rate == 0 or not _draws_cheaply(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    logits = (query @ key.transpose(-2, -1)).mul_(query.shape[-1] ** -0.5)  # [N, heads, Q, S]
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    return drop(logits.softmax(dim=-1), rate) @ value


def _draws_cheaply(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _draw_kept(shape: torch.Size, rate: float) -> Tensor:
    """1 at what stays, with probability `1 - rate`, else 0: `shape`, uint8, which torch multiplies by faster than by
    bools, let alone `masked_fill`."""
    numbers = shape.numel()
    drawn = torch.empty(-(-numbers // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = torch.empty(shape, dtype=torch.uint8)
    return torch.ge(drawn.view(torch.int16)[:numbers].view(shape), round(rate * 2**16) - 2**15, out=kept)
