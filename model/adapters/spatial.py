"""Enrichment from within one segment: separable attention at linear cost (REFERENCE section 2.2).

One softmax over the tokens of a segment pools them into a context vector; the vector scales every token's value.
Tokens `[BT, L, C]`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caeav.model.adapters.lowrank import last_map, make_linear

INIT_STD = 0.001


class SeparableAttention(nn.Module):
    """`out(value(x) * key(sum_l a_l x_l))` with `a = softmax_l score(x)`.

    The weights `a` add up to 1, so the key map of the pooled tokens equals the pooled key map: it is computed for
    one vector a segment. All weights start N(0, 0.001^2), biases 0; `score.bias` never has an effect. `map_rank`
    above 0 gives the three maps that rank.
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
        """Some tokens `[BT, k, C]` of segments whose attention-pooled vector is `pooled` `[BT, C]`."""
        return self.out(self.value(tokens) * self.key(pooled).unsqueeze(1))  # type: ignore[no-any-return]


class SpatialEnrichment(nn.Module):
    """`x + gamma * norm(attn(x))`; `gamma` starts at 0 in the reference."""

    def __init__(self, channels: int, gate_init: float = 0.0, map_rank: int = 0) -> None:
        super().__init__()
        self.attn = SeparableAttention(channels, map_rank)
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(torch.full((1,), gate_init))

    def forward(self, x: Tensor) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`, every token (CASTE computes only the selected ones)."""
        return x + self.gamma * self.norm(self.attn(x))  # type: ignore[no-any-return]
