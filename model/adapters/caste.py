"""CASTE: enrich the most energetic tokens from space where sound and picture agree, else from time.

REFERENCE section 2.5. Returns a residual that is not yet added. Own tokens `[BT, L, C]`, the other modality's
`[BT, M, D]`, clip by clip in `T` segments; `k` selected tokens a segment. Train and eval are the same.

The mask depends only on the input, so everything behind it (value, out and pointwise maps, both norms) is
computed for the `k` selected tokens alone; the numbers are the reference's up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from caeav.model.adapters.gate import AgreementGate
from caeav.model.adapters.select import top_tokens
from caeav.model.adapters.spatial import SpatialEnrichment
from caeav.model.adapters.temporal import TemporalEnrichment, TemporalMode, shift_over_time
from caeav.model.adapters.kernels.reads import read_tokens, scatter_rows


class CasteOutput(NamedTuple):
    """`residual` `[BT, L, C]`; `weights` `[BT, 2]`: trust in space (agreement) and in time."""

    residual: Tensor
    weights: Tensor


class Caste(nn.Module):
    """`gamma * mask * (w_space * spatial(x) + w_time * temporal(x))`; the outer `gamma` starts at 0.

    The two weights add up to 1, so with increments `s` and `t` this is `gamma * mask * (x + w_space gamma_s s +
    w_time gamma_t t)`: the residual holds a copy of the selected tokens. `gate_init` starts the inner gammas; 0
    as in the reference lets the enrichments learn only after the outer gate has opened. `map_rank` above 0 gives the
    four `C x C` maps that rank.
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
    ) -> None:
        super().__init__()
        self.topk_ratio = topk_ratio
        self.gate = AgreementGate(channels, other_channels, gate_dim)
        self.spatial = SpatialEnrichment(channels, gate_init, map_rank)
        self.temporal = TemporalEnrichment(channels, temporal, gate_init, map_rank)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, own: Tensor, other: Tensor, segments: int) -> CasteOutput:
        """`own` `[BT, L, C]`, `other` `[BT, M, D]` -> residual of `own` and the gate's weights."""
        index = top_tokens(own, self.topk_ratio)  # [BT, k]
        score = self.spatial.attn.score.weight[0]
        if self.temporal.mode == "dwconv":
            conv = self.temporal.depthwise
            mean, pooled, rows, mixed = read_tokens(own, score, conv.weight, conv.bias, index, segments)
        else:
            # The shifted tokens are constants: what is read from `own` needs no convolution.
            nothing = own.new_zeros(own.shape[-1], 3)
            mean, pooled, rows, _ = read_tokens(own, score, nothing, nothing[:, 0], index, segments)
            mixed = shift_over_time(own, segments)
            if self.temporal.mode == "tsm+dw":
                mixed = self.temporal.depthwise(mixed, segments)
            mixed = mixed.gather(1, index.unsqueeze(-1).expand_as(rows))
        weights = self.gate.weigh(mean, other.mean(dim=1))
        trust = weights * torch.cat([self.spatial.gamma, self.temporal.gamma])  # [BT, 2]
        space, time = trust[:, :1, None], trust[:, 1:, None]
        within = self.spatial.norm(self.spatial.attn.spread(rows, pooled))
        enriched = rows + space * within + time * self.temporal.increment(mixed)
        return CasteOutput(scatter_rows(self.gamma * enriched, index, own.shape[1]), weights)
