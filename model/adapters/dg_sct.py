"""DG-SCT's adapter (NeurIPS 2023): LAVISH's, with channels and places of its tokens weighted by the other's mean.

With the context `c` `[BT, N, C]`, its mean `m`, and `x'` as in LAVISH:

    q  = mean_N(relu(channel_guide m) * relu(channel_own x'))
    ch = sigmoid(channel_out(relu(channel_mix q)))                           [BT, 1, C]
    s  = spatial_out(relu(spatial_own(x' (1 + ch))) * relu(spatial_guide m)) [BT, N, 1]
    x''= x' * (alpha ch + beta sigmoid(s) + 1 - alpha [+ gamma sigmoid(temporal_gate m)])
    y  = LAVISH's bottleneck of x'';   map = softmax_N(tanh s)               [BT, N]

The maps of the last adapters pool the tokens for the head (`TrunkOutput.pooled_visual`). Own tokens `x` `[BT, N, C]`,
the other modality's `[BT, M, D]`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.kernels.latents import attend_latents
from caeav.model.adapters.lavish import LavishAdapter
from caeav.model.adapters.moe import ContextMaps


class DgSctOutput(NamedTuple):
    """`residual` `[BT, N, C]`, not yet added; `spatial_map` `[BT, N]`, which adds up to 1."""

    residual: Tensor
    spatial_map: Tensor


class Attended(NamedTuple):
    """`tokens` `[BT, N, C]` after the latents, `channel_map` `[BT, 1, C]`, `spatial_score` `[BT, N, 1]`, and
    `temporal_map` `[BT, 1, 1]`, None without that gate."""

    tokens: Tensor
    channel_map: Tensor
    spatial_score: Tensor
    temporal_map: Tensor | None


class DgSctAdapter(LavishAdapter):
    """One adapter. alpha, beta, gamma: weights of the channel, spatial and temporal terms; gamma 0: no temporal gate.

    spatial_last: scale the output by the spatial and temporal terms, where no norm follows, instead of the tokens in
    front of a LayerNorm, which divides a scale that is equal in all channels out again.
    """

    def __init__(
        self,
        channels: int,
        bottleneck: int,
        groups: int,
        latents: int,
        *,
        maps: ContextMaps,
        alpha: float = 0.3,
        beta: float = 0.05,
        gamma: float = 0.0,
        spatial_last: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(channels, bottleneck, groups, latents, maps=maps, **options)
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.spatial_last = spatial_last
        half = channels // 2
        self.channel_guide = nn.Linear(channels, channels)
        self.channel_own = nn.Linear(channels, channels)
        self.channel_mix = nn.Linear(channels, half)
        self.channel_out = nn.Linear(half, channels)
        self.spatial_own = nn.Linear(channels, half)
        self.spatial_guide = nn.Linear(channels, half)
        self.spatial_out = nn.Linear(half, 1)
        self.temporal_gate = nn.Linear(channels, 1) if gamma else None

    def attend(self, x: Tensor, other: Tensor) -> Attended:
        """The attended tokens and what the other modality says of channels, places and frames."""
        read, mean = self.read(other)
        x = attend_latents(x, self.latent_tokens + read, self.attn_gate, self.scale)
        guide = mean.unsqueeze(1)  # [BT, 1, C]
        own = F.relu(self.channel_own(x)).mean(dim=1, keepdim=True)
        mixed = self.channel_mix(F.relu(self.channel_guide(guide)) * own)
        channel_map = torch.sigmoid(self.channel_out(F.relu(mixed)))
        places = F.relu(self.spatial_own(x * (1 + channel_map)))  # [BT, N, C / 2]
        pointer = self.spatial_out.weight * F.relu(self.spatial_guide(guide))  # [BT, 1, C / 2]
        score = places @ pointer.transpose(1, 2) + self.spatial_out.bias
        gate = None if self.temporal_gate is None else torch.sigmoid(self.temporal_gate(guide))
        return Attended(x, channel_map, score, gate)

    def forward(self, x: Tensor, other: Tensor) -> DgSctOutput:  # type: ignore[override]
        """`x` `[BT, N, C]`, `other` `[BT, M, D]` -> `DgSctOutput`."""
        tokens, channel_map, score, temporal = self.attend(x, other)
        spatial_map = score.squeeze(-1).tanh().softmax(dim=-1)
        channel = self.alpha * channel_map + 1 - self.alpha
        place = self.beta * torch.sigmoid(score)
        place = place if temporal is None else place + self.gamma * temporal
        if self.spatial_last:
            residual = self.output(self.bottleneck(tokens * channel)) * (1 + place)
        else:
            residual = self.output(self.bottleneck(tokens * (channel + place)))
        return DgSctOutput(residual, spatial_map)
