"""Layers that the heads of several tasks share: input normalisation, transformers over time, pooling of seconds.

Batch-first: `B` clips, `T` segments, `K` classes, `d` model width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.layers import PackedAttention, TokenBatchNorm

NORMS = {"none": nn.Identity, "batch": TokenBatchNorm, "layer": nn.LayerNorm}
EPS = 1e-6


class ChannelNorm(nn.Module):
    """Normalises a head's inputs, since backbones differ in scale; `HeadConfig.input_norm` names the kinds."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.norm: nn.Module = NORMS[kind](channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` -> the same shape."""
        return self.norm(x)  # type: ignore[no-any-return]

    def with_running_statistics(self, x: Tensor) -> Tensor:
        """Normalise `[..., C]` by the statistics of earlier inputs, without updating them.

        For inputs that only training has (negatives), which would shift what scoring normalises by.
        """
        norm = self.norm
        return norm.with_running_statistics(x) if isinstance(norm, TokenBatchNorm) else norm(x)


class StackConfig(Protocol):
    """What a `TemporalStack` reads of a head's configuration."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def dropout(self) -> float: ...


class TemporalLayer(nn.Module):
    """Post-norm attention and feed-forward; given a memory, the tokens attend `[memory ; tokens]` over time."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attn = PackedAttention(width, heads, dropout)
        self.ffn_in = nn.Linear(width, hidden)
        self.ffn_out = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """`[B, T, d]`, memory `[B, S, d]` -> `[B, T, d]`."""
        source = None if memory is None else torch.cat([memory, x], dim=1)
        x = self.norm1(x + self.dropout(self.attn(x, source)))
        hidden = self.dropout(F.relu(self.ffn_in(x)))
        return self.norm2(x + self.dropout(self.ffn_out(hidden)))  # type: ignore[no-any-return]


class TemporalStack(nn.Module):
    """An input map and `layers` equal layers: an encoder, or, given a memory, a decoder.

    The layers start as copies of one another, as in the reference.
    """

    def __init__(self, in_width: int, layers: int, config: StackConfig) -> None:
        super().__init__()
        width = config.width
        self.in_proj = nn.Linear(in_width, width)
        first = TemporalLayer(width, config.heads, config.hidden, config.dropout)
        self.layers = nn.ModuleList(copy.deepcopy(first) for _ in range(layers))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """`[B, T, in_width]`, memory `[B, S, d]` -> `[B, T, d]`."""
        x = self.in_proj(x)
        for layer in self.layers:
            x = layer(x, memory)
        return x


def linear_pool(p: Tensor) -> Tensor:
    """Mean of `[B, T, K]` over time weighted by the probabilities themselves, which rewards sure seconds."""
    return (p * p).sum(dim=1) / p.sum(dim=1).clamp_min(EPS)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda p: p.mean(dim=1),
    "max": lambda p: p.amax(dim=1),
    "linear": linear_pool,
}
"""Multiple instance pooling of seconds `[B, T, K]` to the clip `[B, K]`, where only clips are labelled."""
