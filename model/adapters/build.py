"""Adapters from settings and input shapes, the same for every placement."""

from __future__ import annotations

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.caste import Caste
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.moe import AvMoe
from caeav.pipeline.store.record import Tap


class AdapterError(CaeavError):
    """Adapters asked for what the inputs do not offer."""


def build_caste(own: Tap, other: Tap, config: AdapterConfig) -> Caste:
    """CASTE for the tokens of `own`, judged against `other`."""
    return Caste(
        own.channels,
        other.channels,
        topk_ratio=config.caste.topk_ratio,
        gate_dim=config.caste.gate_dim,
        temporal=config.caste.temporal,
        gate_init=config.gate_init,
        map_rank=config.caste.map_rank,
    )


def build_moe(own: Tap, other: Tap, config: AdapterConfig, *, out_gate: bool) -> AvMoe:
    """An AVMoE layer for the tokens of `own` with `other` as context."""
    moe = config.avmoe
    if moe.cross_experts + moe.uni_experts == 0:
        raise AdapterError(
            "avmoe has 0 cross and 0 uni experts",
            hint="set one of them to at least 1, or avmoe.enabled to false",
        )
    return AvMoe(
        own.channels,
        own.tokens,
        other.channels,
        other.tokens,
        bottleneck=moe.bottleneck(own.channels),
        groups=moe.groups,
        latents=moe.latents,
        cross_experts=moe.cross_experts,
        uni_experts=moe.uni_experts,
        uni_attention=moe.uni_attention,
        gate_init=config.gate_init,
        router_noise=moe.router_noise,
        batch_norm=moe.batch_norm,
        pre_norm=moe.pre_norm,
        post_norm=moe.post_norm,
        out_gate=out_gate,
        token_rank=moe.token_rank,
        channel_rank=moe.channel_rank,
        router_width=moe.router_width,
        scaled_attention=moe.scaled_attention,
        nonlinear_uni=moe.nonlinear_uni,
    )
