"""Captions on their way into CASE: one mapper, then an adapter to each modality's width (REFERENCE 2.10, 2.11).

Caption tokens `[B, W, C]`, one caption a clip; nothing is repeated over the segments here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.units import AttentionUnit


class CaptionMapper(AttentionUnit):
    """Self attention over a caption's tokens, `LN(x + dropout(attention(x)))`, 0.2 dropout at both places."""

    def __init__(self, channels: int, heads: int = 8, *, dropout: float = 0.2) -> None:
        super().__init__(channels, heads, weight_dropout=dropout, dropout=dropout)

    def forward(
        self, query: Tensor, source: Tensor | None = None, source_mask: Tensor | None = None
    ) -> Tensor:
        """`[B, W, C]` -> `[B, W, C]`; `source_mask` `[B, W]` is True at real tokens (None: attend padding too)."""
        return super().forward(query, query if source is None else source, source_mask)


class CaptionAdapter(nn.Module):
    """`up(gelu(down(x)))`, no residual; `up` starts at 0, so captions enter CASE as zeros at first."""

    def __init__(self, channels: int, bottleneck: int, out_channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, bottleneck)
        self.up = nn.Linear(bottleneck, out_channels)
        nn.init.kaiming_normal_(self.down.weight)  # N(0, 2 / channels)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, W, C]` -> `[B, W, out_channels]`."""
        return self.up(F.gelu(self.down(x)))  # type: ignore[no-any-return]


def usable_mask(mask: Tensor) -> Tensor:
    """`[B, W]` mask without empty rows: a caption with no token attends its padding instead of nothing."""
    return mask | ~mask.any(dim=-1, keepdim=True)
