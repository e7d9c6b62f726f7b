"""Multi-head attention with one packed query/key/value matrix, as heads and frame-attention experts use it.

`N` rows, `S`/`Q` source and query tokens, `C` channels. Batch-first throughout; the units of CASE, which keep
separate matrices, live in `adapters/units.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError


class WidthError(CaeavError):
    """A width that does not fit the number of heads or groups it is split into."""


def require_divisible(width: int, parts: int, what: str) -> None:
    """Raise `WidthError` unless `width` splits evenly into `parts` (`what` names them)."""
    if parts < 1 or width % parts:
        raise WidthError(
            f"a width of {width} channels does not split into {parts} {what}",
            hint=f"choose a number of {what} that divides {width}",
        )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[N, S, C]` -> `[N, heads, S, C / heads]`."""
    rows, tokens, channels = x.shape
    return x.view(rows, tokens, heads, channels // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[N, heads, S, C / heads]` -> `[N, S, C]`."""
    return x.transpose(1, 2).flatten(-2)


class PackedAttention(nn.Module):
    """`softmax(Q K^T / sqrt(C / heads)) V`, dropout on the weights, one output map (REFERENCE section 0, MHA).

    Initial values: packed weight Xavier-uniform as one `[3C, C]` matrix, biases 0, output weight as a plain Linear.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        require_divisible(channels, heads, "heads")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, query: Tensor, source: Tensor | None = None) -> Tensor:
        """`query` `[N, Q, C]` attends `source` `[N, S, C]` (itself by default) -> `[N, Q, C]`."""
        if source is None:
            q, k, v = self.qkv(query).chunk(3, dim=-1)
        else:
            width = query.shape[-1]
            q = F.linear(query, self.qkv.weight[:width], self.qkv.bias[:width])
            k, v = F.linear(source, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(
            split_heads(q, self.heads),
            split_heads(k, self.heads),
            split_heads(v, self.heads),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(merge_heads(mixed))  # type: ignore[no-any-return]
