"""AVMoE: a router mixes cross-modal and unimodal experts, segment by segment (REFERENCE section 2.14).

Own tokens `[BT, N, C]`, the other modality's `[BT, M, D]`, `E` experts (cross first, then unimodal). The mixture is
dense: every expert is evaluated. The residual is not yet added.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.experts import CrossExpert, UniAttention, UniExpert
from caeav.model.adapters.kernels.fused import weighted_ends
from caeav.model.adapters.latentreads import read_through_maps
from caeav.model.adapters.lowrank import LowRankContext
from caeav.model.adapters.layers import mix_tokens


class MoeOutput(NamedTuple):
    """`residual` `[BT, N, C]`; `probabilities` `[BT, E]` of the experts."""

    residual: Tensor
    probabilities: Tensor


def load_balance(probabilities: Tensor, *, uniform_target: bool = False) -> Tensor:
    """`-sum_e log mean(p_e)` of `[BT, E]` probabilities, a scalar; smallest when experts are used equally often.

    The reference means the divergence from the uniform distribution but fills its target with 1 instead of 1/E: the
    minimum is in the same place, but lies at `E log E`, and the force is `E` times as large. `uniform_target` gives
    the divergence itself, which is 0 at its minimum.
    """
    used = probabilities.mean(dim=0).log()
    return -used.mean() - math.log(used.numel()) if uniform_target else -used.sum()


class Router(nn.Module):
    """Three layers from token means to a distribution over experts."""

    def __init__(self, channels: int, experts: int, width: int = 128) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * channels, width)
        self.fc2 = nn.Linear(width, 32)
        self.fc3 = nn.Linear(32, experts)

    def forward(self, means: Tensor, logit_noise: Tensor | None = None) -> Tensor:
        """`[BT, 2C]` -> probabilities `[BT, E]`; `logit_noise` `[BT, E]` is added before the softmax."""
        logits = self.fc3(F.relu(self.fc2(F.relu(self.fc1(means)))))
        return torch.softmax(logits if logit_noise is None else logits + logit_noise, dim=-1)


class AvMoe(nn.Module):
    """Brings the other modality to this one's tokens and width, routes, and adds up the experts.

    `router_noise`: standard deviation of normal noise on the router's logits in training (AVS: 0.01). `token_rank`
    above 0 brings the other modality here through that many tokens, with a channel map of `channel_rank`.
    """

    def __init__(
        self,
        channels: int,
        tokens: int,
        other_channels: int,
        other_tokens: int,
        *,
        bottleneck: int,
        groups: int = 2,
        latents: int = 32,
        cross_experts: int = 1,
        uni_experts: int = 1,
        uni_attention: UniAttention = "none",
        gate_init: float = 0.0,
        router_noise: float = 0.0,
        batch_norm: bool = False,
        pre_norm: bool = True,
        post_norm: bool = True,
        out_gate: bool = True,
        token_rank: int = 0,
        channel_rank: int = 0,
        router_width: int = 128,
        scaled_attention: bool = False,
        nonlinear_uni: bool = False,
    ) -> None:
        super().__init__()
        if cross_experts + uni_experts < 1:
            raise ValueError("an AVMoE layer needs at least one expert")
        self.router_noise = router_noise
        self.low_rank_context = None
        if token_rank:
            self.low_rank_context = LowRankContext(
                other_tokens, tokens, token_rank, other_channels, channels, channel_rank
            )
        else:
            self.token_proj = nn.Linear(other_tokens, tokens)
            self.channel_proj = nn.Linear(other_channels, channels)
        options = {
            "scaled": scaled_attention,
            "batch_norm": batch_norm,
            "pre_norm": pre_norm,
            "post_norm": post_norm,
            "out_gate": out_gate,
        }
        self.cross_experts = nn.ModuleList(
            CrossExpert(channels, bottleneck, groups, latents, gate_init=gate_init, **options)
            for _ in range(cross_experts)
        )
        self.uni_experts = nn.ModuleList(
            UniExpert(
                channels,
                bottleneck,
                groups,
                attention=uni_attention,
                latents=latents,
                gate_init=gate_init,
                nonlinear=nonlinear_uni,
                **options,
            )
            for _ in range(uni_experts)
        )
        self.router = Router(channels, cross_experts + uni_experts, router_width)

    def context(self, other: Tensor) -> Tensor:
        """The other modality `[BT, M, D]` as `[BT, N, C]`: tokens and channels mixed, cheaper order first."""
        if self.low_rank_context is not None:
            return self.low_rank_context(other)  # type: ignore[no-any-return]
        tokens, width = self.token_proj, self.channel_proj
        _, others, wide = other.shape
        n, c = tokens.out_features, width.out_features
        if others * n * wide + n * wide * c <= others * wide * c + others * n * c:
            return width(mix_tokens(tokens.weight, other, tokens.bias.unsqueeze(-1)))  # type: ignore[no-any-return]
        # The maps commute; the token bias, equal in all channels, then meets the row sums of the channel map.
        bias = torch.addcmul(width.bias, tokens.bias.unsqueeze(-1), width.weight.sum(dim=1))  # [N, C]
        return mix_tokens(tokens.weight, F.linear(other, width.weight), bias)

    def reads_through_maps(self) -> bool:
        """Whether the latents are few enough that reading through the maps is cheaper than the context."""
        if self.low_rank_context is not None or not self.cross_experts:
            return False
        latents = sum(cast(CrossExpert, expert).latent_tokens.shape[0] for expert in self.cross_experts)
        return 2 * latents < min(self.channel_proj.in_features, self.channel_proj.out_features)

    def forward(self, x: Tensor, other: Tensor, noise: Tensor | None = None) -> MoeOutput:
        """Residual of `x` and the experts' probabilities.

        `noise` `[BT, E]`: standard normal draws for the router, for reproducing a call.
        """
        if noise is None and self.training and self.router_noise > 0:
            noise = torch.randn(x.shape[0], self.router.fc3.out_features, device=x.device, dtype=x.dtype)
        cross = cast("list[CrossExpert]", list(self.cross_experts))
        uni = cast("list[UniExpert]", list(self.uni_experts))
        if self.reads_through_maps():
            asking = torch.cat([expert.asking() for expert in cross])
            read, context_mean = read_through_maps(other, asking, self.token_proj, self.channel_proj)
            pooled = torch.split(read, [expert.latent_tokens.shape[0] for expert in cross], dim=1)
            ends = [expert.end_of_reading(x, part) for expert, part in zip(cross, pooled, strict=True)]
        else:
            context = self.context(other)
            context_mean = context.mean(dim=1)
            ends = [expert.end(x, context) for expert in cross]
        ends += [expert.end(x) for expert in uni]
        means = torch.cat([x.mean(dim=1), context_mean], dim=-1)
        p = self.router(means, None if noise is None else self.router_noise * noise)
        shares = [expert.share(p[:, e]) for e, expert in enumerate((*cross, *uni))]
        return MoeOutput(weighted_ends(torch.stack(shares, dim=1), ends), p)
