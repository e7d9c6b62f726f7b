"""The attention and feed-forward units CASE and the caption mapper are made of (REFERENCE sections 2.6, 2.10).

Post-norm transformer units with separate query, key and value maps. `N` rows, `Q` query and `S` source tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.kernels import cpu_units as leanunits
from caeav.model.attention import merge_heads, require_divisible, split_heads


class SplitAttention(nn.Module):
    """Multi-head attention with four separate `C x C` maps; `key.bias` never has an effect."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        require_divisible(channels, heads, "heads")
        self.heads = heads
        self.dropout = dropout
        self.value = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.query = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, query: Tensor, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """`[N, Q, C]` attends `[N, S, C]`; `source_mask` `[N, S]` is True at tokens that may be attended."""
        mixed = F.scaled_dot_product_attention(
            split_heads(self.query(query), self.heads),
            split_heads(self.key(source), self.heads),
            split_heads(self.value(source), self.heads),
            attn_mask=None if source_mask is None else source_mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(merge_heads(mixed))  # type: ignore[no-any-return]


class AttentionUnit(nn.Module):
    """`LN(query + dropout(attention(query, source)))`, CASE's unit; the mapper differs in its dropout only."""

    def __init__(
        self, channels: int, heads: int = 8, *, weight_dropout: float = 0.1, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.attn = SplitAttention(channels, heads, weight_dropout)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """`[N, Q, C]`, `[N, S, C]`, mask `[N, S]` -> `[N, Q, C]`."""
        if leanunits.pays(query):
            attn = self.attn
            return leanunits.attention(
                query,
                source,
                (attn.query, attn.key, attn.value, attn.out),
                self.norm,
                mask=source_mask,
                heads=attn.heads,
                weight_dropout=attn.dropout if self.training else 0.0,
                dropout=self.dropout.p if self.training else 0.0,
            )
        return self.norm(query + self.dropout(self.attn(query, source, source_mask)))  # type: ignore[no-any-return]


class FeedForwardUnit(nn.Module):
    """`LN(x + dropout(fc_out(dropout(relu(fc_in(x))))))`, hidden width `2C`."""

    def __init__(self, channels: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.fc_in = nn.Linear(channels, 2 * channels)
        self.fc_out = nn.Linear(2 * channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, S, C]` -> `[N, S, C]`."""
        if leanunits.pays(x):
            rate = self.dropout.p if self.training else 0.0
            return leanunits.feed_forward(x, self.fc_in, self.fc_out, self.norm, dropout=rate)
        hidden = self.dropout(F.relu(self.fc_in(x)))
        return self.norm(x + self.dropout(self.fc_out(hidden)))  # type: ignore[no-any-return]
