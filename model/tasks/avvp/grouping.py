"""The group transformer of the AVVP head: segments become groups (REFERENCE section 4.2).

Segments and group tokens first attend each other; then every segment is assigned to groups, and every group becomes
the average of what was assigned to it. Shapes: `B` clips, `L` segments, `S` groups, `C` channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.case import SplitAttention
from caeav.model.adapters.layers import PackedAttention


class Grouped(NamedTuple):
    """`groups` `[B, S, C]`; `logits` `[B, S, L]`: how well every segment fits every group (softmax over `S`)."""

    groups: Tensor
    logits: Tensor


class GroupOutput(NamedTuple):
    """`groups`, `logits` as in `Grouped`; `segments` `[B, L, C]` as grouped, `own` as they left the blocks."""

    groups: Tensor
    logits: Tensor
    segments: Tensor
    own: Tensor


class DropPath(nn.Module):
    """In training a clip skips the branch with probability `rate`; the others are scaled up to compensate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`[B, ...]` -> `[B, ...]`."""
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.empty(x.shape[0], *(1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * keep.bernoulli_(1 - self.rate) / (1 - self.rate)


class Mlp(nn.Module):
    """`fc_out(gelu(fc_in(x)))`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(width, hidden)
        self.fc_out = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` -> `[..., width]`."""
        return self.fc_out(F.gelu(self.fc_in(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = PackedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, S + L, C]` -> the same."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PreAssign(nn.Module):
    """Group tokens attend the segments before these are assigned to them."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.attn = SplitAttention(width, heads, dropout=0.0)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width)
        self.post_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """`[B, S, C]`, `[B, L, C]` -> `[B, S, C]`."""
        tokens = tokens + self.attn(tokens, segments)
        return self.post_norm(tokens + self.mlp(self.norm2(tokens)))  # type: ignore[no-any-return]


class Assign(nn.Module):
    """Assigns segments to groups and averages what each group got.

    Soft: softmax over groups. Hard: the best group only, with the gradient of the soft assignment (straight through);
    in training the choice is drawn (Gumbel). A group's weights are divided by their sum plus 1, so an empty group stays
    near zero.
    """

    def __init__(self, width: int, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor, segments: Tensor) -> Grouped:
        """`[B, S, C]`, `[B, L, C]` -> `Grouped`."""
        query = self.query(tokens) * tokens.shape[-1] ** -0.5
        logits = query @ self.key(segments).transpose(1, 2)  # [B, S, L]
        assignment = self._assign(logits)
        weights = assignment / (assignment.sum(dim=-1, keepdim=True) + 1.0)
        return Grouped(self.out(weights @ self.value(segments)), logits)

    def _assign(self, logits: Tensor) -> Tensor:
        if not self.hard:
            return logits.softmax(dim=1)
        if self.training:
            logits = logits - torch.empty_like(logits).exponential_().log()
        soft = logits.softmax(dim=1)
        chosen = torch.zeros_like(soft).scatter_(1, soft.argmax(dim=1, keepdim=True), 1.0)
        return chosen - soft.detach() + soft


class Grouping(nn.Module):
    """`S` group tokens and `L` segments in, `S` groups out."""

    def __init__(self, width: int, groups: int, heads: int, mlp_ratio: int, *, hard: bool = False) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_x = nn.LayerNorm(width)
        self.token_mixer = Mlp(groups, width // 2)
        self.token_mixer_norm = nn.LayerNorm(width)
        self.pre_assign = PreAssign(width, heads, mlp_ratio)
        self.assign = Assign(width, hard)
        self.new_norm = nn.LayerNorm(width)
        self.channel_mlp = Mlp(width, mlp_ratio * width)

    def forward(self, tokens: Tensor, segments: Tensor) -> Grouped:
        """`[B, S, C]`, `[B, L, C]` -> `Grouped`."""
        segments = self.norm_x(segments)
        mixed = self.token_mixer(self.norm_tokens(tokens).transpose(1, 2)).transpose(1, 2)
        tokens = self.pre_assign(self.token_mixer_norm(mixed), segments)
        assigned = self.assign(tokens, segments)
        groups = tokens + assigned.groups
        return Grouped(groups + self.channel_mlp(self.new_norm(groups)), assigned.logits)


class GroupTransformer(nn.Module):
    """Blocks over `[segments ; tokens]`, then the grouping of the segments by the tokens.

    With `other_segments` (a number `T`) the segments are first regrouped by the other modality's `T` segments: they are
    then indexed by those and keep their own values.
    """

    def __init__(
        self,
        width: int,
        groups: int,
        depth: int,
        heads: int = 8,
        *,
        mlp_ratio: int = 4,
        drop_path: float = 0.1,
        other_segments: int | None = None,
        hard_segments: bool = True,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, drop_path) for _ in range(depth))
        self.han: Grouping | None = None
        if other_segments is not None:
            self.han = Grouping(width, other_segments, heads, mlp_ratio, hard=hard_segments)
        self.grouping = Grouping(width, groups, heads, mlp_ratio)

    def forward(self, segments: Tensor, tokens: Tensor, other: Tensor | None = None) -> GroupOutput:
        """`[B, L, C]`, tokens `[S, C]` or `[B, S, C]`, other `[B, T, C]` -> `GroupOutput`."""
        count = segments.shape[1]
        x = torch.cat([segments, tokens.expand(segments.shape[0], -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        own, tokens = x[:, :count], x[:, count:]
        segments = own
        if self.han is not None and other is not None:
            segments = self.han(other, own).groups
        grouped = self.grouping(tokens, segments)
        return GroupOutput(grouped.groups, grouped.logits, segments, own)
