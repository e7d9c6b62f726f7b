"""What both placements are built from: pairs of tokens, the adapters of a stage, and the trunk's output.

Visual tokens `[BT, L, C]`, audio `[BT, M, D]`, clip by clip in `T` segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from caeav.model.adapters.batch import AdapterError, TokenBatch, TrunkOutput
from caeav.model.adapters.case import CaptionGuidance, CaseOutput
from caeav.model.adapters.caste import Caste
from caeav.model.adapters.config import AdapterConfig, DgSctConfig, LavishConfig
from caeav.model.adapters.dg_sct import DgSctAdapter
from caeav.model.adapters.lavish import LavishAdapter
from caeav.model.adapters.layers import clip_view
from caeav.model.adapters.moe import AvMoe, ContextMaps, load_balance
from caeav.model.adapters.whole_batch import gather
from caeav.pipeline.store.record import Tap


@dataclass
class Pair:
    """Tokens of both modalities, `[BT, L, C]` and `[BT, M, D]`, or what adapters add to them."""

    visual: Tensor
    audio: Tensor

    def __add__(self, other: Pair) -> Pair:
        return Pair(self.visual + other.visual, self.audio + other.audio)


@dataclass
class Trace:
    """What the adapters report during a pass.

    `agreement` `[BT]` of the deepest CASTE; `shared`: the one that all of them were given, where they share it;
    `routing`: probabilities `[BT, E]` of every AVMoE layer; `imbalance`: how unevenly each used its experts (scalars);
    `maps`: `[BT, L]` and `[BT, M]`, the last ones of DG-SCT's adapters, by which the head pools.
    """

    agreement: Tensor | None = None
    shared: Tensor | None = None
    routing: dict[str, Tensor] = field(default_factory=dict)
    imbalance: list[Tensor] = field(default_factory=list)
    maps: tuple[Tensor, Tensor] | None = None


def build_caste(own: Tap, other: Tap, config: AdapterConfig, *, own_gate: bool = True) -> Caste:
    """CASTE for the tokens of `own`, which are compared with those of `other`."""
    return Caste(
        own.channels,
        other.channels,
        topk_ratio=config.caste.topk_ratio,
        gate_dim=config.caste.gate_dim,
        temporal=config.caste.temporal,
        gate_init=config.gate_init,
        map_rank=config.caste.map_rank,
        own_gate=own_gate,
    )


def caste_residuals(visual: Caste, audio: Caste, x: Pair, segments: int, trace: Trace) -> Pair:
    """The residuals of a stage's two CASTE adapters; their mean agreement is noted in `trace`."""
    on_visual = visual(x.visual, x.audio, segments, trace.shared)
    on_audio = audio(x.audio, x.visual, segments, trace.shared)
    trace.agreement = (on_visual.weights[:, 0] + on_audio.weights[:, 0]) / 2
    return Pair(on_visual.residual, on_audio.residual)


class MoePair(nn.Module):
    """AVMoE for both modalities at one place; each is the other's context."""

    def __init__(self, visual: Tap, audio: Tap, config: AdapterConfig) -> None:
        super().__init__()
        self.uniform_target = config.avmoe.uniform_target
        self.visual = _build_moe(visual, audio, config, out_gate=config.avmoe.out_gate_visual)
        self.audio = _build_moe(audio, visual, config, out_gate=config.avmoe.out_gate_audio)

    def forward(self, x: Pair, place: str, trace: Trace) -> Pair:
        """Both residuals; probabilities are noted in `trace` under `routing.<place>.<modality>`."""
        on_visual, on_audio = self.visual(x.visual, x.audio), self.audio(x.audio, x.visual)
        for modality, output in (("visual", on_visual), ("audio", on_audio)):
            trace.routing[f"routing.{place}.{modality}"] = output.probabilities
            used = gather(output.probabilities)
            trace.imbalance.append(load_balance(used, uniform_target=self.uniform_target))
        return Pair(on_visual.residual, on_audio.residual)


def _build_moe(own: Tap, other: Tap, config: AdapterConfig, *, out_gate: bool) -> AvMoe:
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


class LavishPair(nn.Module):
    """LAVISH's adapters for both modalities at one place; each is the other's context."""

    def __init__(self, visual: Tap, audio: Tap, config: AdapterConfig) -> None:
        super().__init__()
        lavish = config.lavish
        self.visual = LavishAdapter(
            **_peer_options(visual, audio, lavish, config.gate_init, lavish.out_gate_visual)
        )
        self.audio = LavishAdapter(
            **_peer_options(audio, visual, lavish, config.gate_init, lavish.out_gate_audio)
        )

    def forward(self, x: Pair, place: str, trace: Trace) -> Pair:
        """Both residuals."""
        return Pair(self.visual(x.visual, x.audio), self.audio(x.audio, x.visual))


class DgSctPair(nn.Module):
    """DG-SCT's adapters for both modalities at one place; each is the other's context."""

    def __init__(self, visual: Tap, audio: Tap, config: AdapterConfig) -> None:
        super().__init__()
        dg_sct, own = config.dg_sct, {}
        for name in ("alpha", "beta", "gamma", "spatial_last"):
            own[name] = getattr(dg_sct, name)
        self.visual = DgSctAdapter(
            **_peer_options(visual, audio, dg_sct, config.gate_init, dg_sct.out_gate_visual), **own
        )
        self.audio = DgSctAdapter(
            **_peer_options(audio, visual, dg_sct, config.gate_init, dg_sct.out_gate_audio), **own
        )

    def forward(self, x: Pair, place: str, trace: Trace) -> Pair:
        """Both residuals; the spatial maps are left in `trace`, those of the last pair remain."""
        on_visual, on_audio = self.visual(x.visual, x.audio), self.audio(x.audio, x.visual)
        trace.maps = on_visual.spatial_map, on_audio.spatial_map
        return Pair(on_visual.residual, on_audio.residual)


def _peer_options(
    own: Tap, other: Tap, peer: LavishConfig, gate_init: float, out_gate: bool
) -> dict[str, Any]:
    """What LAVISH's and DG-SCT's adapters for the tokens of `own`, with `other` as context, are built from."""
    guided = isinstance(peer, DgSctConfig)
    alike = (own.tokens, own.channels) == (other.tokens, other.channels)
    maps = None
    if guided or not alike:
        maps = ContextMaps(
            own.channels,
            own.tokens,
            other.channels,
            other.tokens,
            token_rank=peer.token_rank,
            channel_rank=peer.channel_rank,
            resize=isinstance(peer, DgSctConfig) and peer.context_map == "resize",
        )
    return {
        "channels": own.channels,
        "bottleneck": peer.bottleneck(own.channels),
        "groups": peer.groups,
        "latents": peer.latents,
        "maps": maps,
        "latent_start": peer.latent_start,
        "gate_init": gate_init,
        "scaled": peer.scaled_attention,
        "batch_norm": peer.batch_norm,
        "pre_norm": peer.pre_norm,
        "post_norm": peer.post_norm,
        "out_gate": out_gate,
        "gate_first": peer.gate_first,
    }


PAIRS: dict[str, type[MoePair | LavishPair | DgSctPair]] = {
    "avmoe": MoePair,
    "lavish": LavishPair,
    "dg_sct": DgSctPair,
}


def build_pair(visual: Tap, audio: Tap, config: AdapterConfig) -> MoePair | LavishPair | DgSctPair:
    """The kind of pair that is enabled: how the modalities read each other at one place."""
    (kind,) = config.exchanges()
    return PAIRS[kind](visual, audio, config)


def trunk_output(
    x: Pair,
    trace: Trace,
    guidance: CaptionGuidance | None,
    batch: TokenBatch,
    segments: int,
    visual_norm: Callable[[Tensor], Tensor] = lambda x: x,
    *,
    keep_unguided: bool = False,
) -> TrunkOutput:
    """A trunk's output from its last stage's tokens: caption guidance, then the backbone's final norm if given.

    `keep_unguided`: leave the tokens before caption guidance in `aux`, as `unguided.visual`.
    """
    aux = {name: clip_view(p, segments) for name, p in trace.routing.items()}
    if guidance is not None:
        if keep_unguided:
            aux["unguided.visual"] = clip_view(visual_norm(x.visual), segments)
        guided: CaseOutput = guidance(x.visual, x.audio, batch, segments)
        x = Pair(guided.visual, guided.audio)
        aux |= _caption_aux(guided, segments)
    losses = {}
    if trace.imbalance:
        losses["load_balance"] = torch.stack(trace.imbalance).sum()
    pooling = None if trace.maps is None else tuple(clip_view(weights, segments) for weights in trace.maps)
    return TrunkOutput(
        visual=clip_view(visual_norm(x.visual), segments),
        audio=clip_view(x.audio, segments),
        visual_weights=None if pooling is None else pooling[0],
        audio_weights=None if pooling is None else pooling[1],
        agreement=None if trace.agreement is None else clip_view(trace.agreement, segments),
        losses=losses,
        aux=aux,
    )


def _caption_aux(guided: CaseOutput, segments: int) -> dict[str, Tensor]:
    """CASE's auxiliary outputs: those of segments as `[B, T, ...]`, those of captions as `[B, ...]`."""
    aux = {
        "proj_visual": clip_view(guided.proj_visual, segments),
        "proj_audio": clip_view(guided.proj_audio, segments),
        "proj_visual_caption": guided.proj_visual_caption,
        "proj_audio_caption": guided.proj_audio_caption,
        "caption_fit_visual": clip_view(guided.gate_visual, segments),
        "caption_fit_audio": clip_view(guided.gate_audio, segments),
        "chosen.visual": clip_view(guided.chosen_visual, segments),
        "chosen.audio": clip_view(guided.chosen_audio, segments),
        "contrastive_temperature": guided.contrastive_temperature,
    }
    for name, p in (("selected_visual", guided.prob_visual), ("selected_audio", guided.prob_audio)):
        if p is not None:
            aux[name] = clip_view(p, segments)
    return aux
