"""CASTE: enrich the most energetic tokens from space where audio and visual agree, else from time.

REFERENCE sections 2.1 to 2.5.

Own tokens `[BT, L, C]`, the other modality's `[BT, M, D]`, clip by clip in `T` segments; `k` selected tokens a segment.
Train and eval are the same. `Caste` returns a residual that is not yet added.

The mask depends only on the input, so everything behind it (value, out and pointwise maps, both norms) is computed for
the `k` selected tokens alone; the numbers are the reference's up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.config import TemporalMode
from caeav.model.adapters.kernels.pooling import pool_and_select
from caeav.model.adapters.layers import (
    DepthwiseOverTime,
    clip_view,
    last_map,
    make_linear,
    top_tokens,
)

INIT_STD = 0.001
UNIT_EPS = 1e-12


class AgreementGate(nn.Module):
    """How well audio and visual of a segment agree, as two weights that add up to 1: of space and of time (2.1).

    Both token means are projected to `width`; a small MLP on `[p, q, p-q, p*q]` plus their cosine with
    opposite signs gives the logits. The gradient flows through the cosine as well.
    """

    def __init__(self, channels: int, other_channels: int, width: int = 128) -> None:
        super().__init__()
        self.self_proj = nn.Linear(channels, width)
        self.other_proj = nn.Linear(other_channels, width)
        self.mlp_in = nn.Linear(4 * width, width // 2)
        self.mlp_out = nn.Linear(width // 2, 2)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """`[BT, L, C]` and `[BT, M, D]` -> weights `[BT, 2]` (spatial, temporal)."""
        return self.weigh(own.mean(dim=1), other.mean(dim=1))

    def weigh(self, own_mean: Tensor, other_mean: Tensor) -> Tensor:
        """The same weights from token means `[BT, C]`, `[BT, D]`."""
        p, q = self.self_proj(own_mean), self.other_proj(other_mean)  # [BT, width]
        cosine = (F.normalize(p, dim=-1, eps=UNIT_EPS) * F.normalize(q, dim=-1, eps=UNIT_EPS)).sum(-1)
        hidden = F.relu(self.mlp_in(torch.cat([p, q, p - q, p * q], dim=-1)))
        logits = self.mlp_out(hidden) + torch.stack([cosine, -cosine], dim=-1)
        return torch.softmax(logits, dim=-1)


class SeparableAttention(nn.Module):
    """`out(value(x) * key(sum_l a_l x_l))` with `a = softmax_l score(x)`: attention at linear cost (2.2).

    The softmax over a segment's tokens pools them into one vector, which scales every token's value. The weights `a`
    add up to 1, so the key map of the pooled tokens equals the pooled key map: it is computed once a segment. All
    weights start N(0, 0.001^2), biases 0; `score.bias` never has an effect. `map_rank` above 0 gives the three maps
    that rank.
    """

    def __init__(self, channels: int, map_rank: int = 0) -> None:
        super().__init__()
        self.score = nn.Linear(channels, 1)
        self.key = make_linear(channels, channels, map_rank)
        self.value = make_linear(channels, channels, map_rank)
        self.out = make_linear(channels, channels, map_rank)
        for layer in (self.score, *map(last_map, (self.key, self.value, self.out))):
            nn.init.normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`."""
        weights = torch.softmax(self.score(x), dim=1)  # [BT, L, 1]
        return self.spread(x, torch.bmm(weights.transpose(1, 2), x)[:, 0])

    def spread(self, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The output for tokens `[BT, k, C]` of segments whose attention-pooled vector is `pooled` `[BT, C]`."""
        return self.out(self.value(tokens) * self.key(pooled).unsqueeze(1))  # type: ignore[no-any-return]


class SpatialEnrichment(nn.Module):
    """`x + gamma * norm(attn(x))`; `gamma` starts at 0 in the reference (2.2)."""

    def __init__(self, channels: int, gate_init: float = 0.0, map_rank: int = 0) -> None:
        super().__init__()
        self.attn = SeparableAttention(channels, map_rank)
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(torch.full((1,), gate_init))

    def forward(self, x: Tensor) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`, every token (CASTE computes only the selected ones)."""
        return x + self.gamma * self.norm(self.attn(x))  # type: ignore[no-any-return]


@torch.no_grad()
def shift_over_time(x: Tensor, segments: int) -> Tensor:
    """Channels `[0, f)` from the segment before, `[f, 2f)` from the one after, `f = max(1, C // 8)`; no gradient."""
    fold = max(1, x.shape[-1] // 8)
    shifted = x.clone()
    clips, out = clip_view(x, segments), clip_view(shifted, segments)
    out[:, 1:, :, :fold] = clips[:, :-1, :, :fold]
    out[:, 0, :, :fold] = 0
    out[:, :-1, :, fold : 2 * fold] = clips[:, 1:, :, fold : 2 * fold]
    out[:, -1, :, fold : 2 * fold] = 0
    return shifted


class TemporalEnrichment(nn.Module):
    """`x + gamma * norm(h)` with `h` mixed over time (2.3).

    Modes: `dwconv` convolves; `tsm` shifts an eighth of the channels each way; `tsm+dw` convolves the shifted
    tokens. The shift passes no gradient to `x`, as in the reference.
    """

    def __init__(
        self, channels: int, mode: TemporalMode = "dwconv", gate_init: float = 0.0, map_rank: int = 0
    ) -> None:
        super().__init__()
        self.mode = mode
        if mode != "tsm":
            self.depthwise = DepthwiseOverTime(channels)
            self.pointwise = make_linear(channels, channels, map_rank)
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(torch.full((1,), gate_init))

    def forward(self, x: Tensor, segments: int) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`, every token (CASTE computes only the selected ones)."""
        mixed = x if self.mode == "dwconv" else shift_over_time(x, segments)
        if self.mode != "tsm":
            mixed = self.depthwise(mixed, segments)
        return x + self.gamma * self.increment(mixed)

    def increment(self, mixed: Tensor) -> Tensor:
        """`norm(pointwise(mixed))` of tokens already mixed over time: what `gamma` scales."""
        return self.norm(mixed if self.mode == "tsm" else self.pointwise(mixed))  # type: ignore[no-any-return]


class CasteOutput(NamedTuple):
    """`residual` `[BT, L, C]`; `weights` `[BT, 2]` of space (the agreement) and of time."""

    residual: Tensor
    weights: Tensor


class Caste(nn.Module):
    """`gamma * mask * (w_space * spatial(x) + w_time * temporal(x))`; the outer `gamma` starts at 0.

    The two weights add up to 1, so with increments `s` and `t` this is `gamma * mask * (x + w_space gamma_s s +
    w_time gamma_t t)`: the residual holds a copy of the selected tokens. `gate_init` starts the inner gammas; 0
    as in the reference lets the enrichments learn only after the outer gate has opened. `map_rank` above 0 gives the
    four `C x C` maps that rank. Without `own_gate` the weight of space is handed in.
    """

    def __init__(
        self,
        channels: int,
        other_channels: int,
        *,
        topk_ratio: float = 0.3,
        gate_dim: int = 128,
        temporal: TemporalMode = "dwconv",
        gate_init: float = 0.0,
        map_rank: int = 0,
        own_gate: bool = True,
    ) -> None:
        super().__init__()
        self.topk_ratio = topk_ratio
        self.gate = AgreementGate(channels, other_channels, gate_dim) if own_gate else None
        self.spatial = SpatialEnrichment(channels, gate_init, map_rank)
        self.temporal = TemporalEnrichment(channels, temporal, gate_init, map_rank)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(
        self, own: Tensor, other: Tensor, segments: int, agreement: Tensor | None = None
    ) -> CasteOutput:
        """`own` `[BT, L, C]`, `other` `[BT, M, D]` -> residual of `own` and the gate's weights.

        `agreement` `[BT]`, the weight of space, where the adapter has no gate of its own.
        """
        index = top_tokens(own, self.topk_ratio)  # [BT, k]
        score = self.spatial.attn.score.weight[0]
        if self.temporal.mode == "dwconv":
            conv = self.temporal.depthwise
            mean, pooled, rows, mixed = pool_and_select(own, score, conv.weight, conv.bias, index, segments)
        else:
            # The shifted tokens are constants: nothing is convolved over time here.
            zeros = own.new_zeros(own.shape[-1], 3)
            mean, pooled, rows, _ = pool_and_select(own, score, zeros, zeros[:, 0], index, segments)
            mixed = shift_over_time(own, segments)
            if self.temporal.mode == "tsm+dw":
                mixed = self.temporal.depthwise(mixed, segments)
            mixed = mixed.gather(1, index.unsqueeze(-1).expand_as(rows))
        if self.gate is not None:
            weights = self.gate.weigh(mean, other.mean(dim=1))
        else:
            assert agreement is not None
            weights = torch.stack([agreement, 1 - agreement], dim=-1).to(mean.dtype)
        gates = weights * torch.cat([self.spatial.gamma, self.temporal.gamma])  # [BT, 2]
        space, time = gates[:, :1, None], gates[:, 1:, None]
        within = self.spatial.norm(self.spatial.attn.spread(rows, pooled))
        enriched = rows + space * within + time * self.temporal.increment(mixed)
        return CasteOutput(scatter_tokens(self.gamma * enriched, index, own.shape[1]), weights)


def scatter_tokens(values: Tensor, index: Tensor, tokens: int) -> Tensor:
    """Tokens `[BT, L, C]` that are `values` `[BT, k, C]` at `index` `[BT, k]` and 0 elsewhere."""
    rows, _, channels = values.shape
    start = torch.arange(rows, device=index.device).unsqueeze(1) * tokens
    full = values.new_zeros(rows * tokens, channels)
    return full.index_copy(0, (index + start).flatten(), values.flatten(0, 1)).view(rows, tokens, channels)
