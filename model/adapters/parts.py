"""What both placements are made of: tokens in pairs, AVMoE for both modalities, and the way to a trunk's output.

Visual tokens `[BT, L, C]`, audio `[BT, M, D]`, clip by clip in `T` segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from caeav.model.adapters.batch import TokenBatch, TrunkOutput
from caeav.model.adapters.build import build_moe
from caeav.model.adapters.case import CaptionGuidance, CaseOutput
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.layers import clip_view
from caeav.model.adapters.moe import load_balance
from caeav.pipeline.store.record import Tap


@dataclass
class Pair:
    """Tokens of both modalities, `[BT, L, C]` and `[BT, M, D]`, or their changes."""

    visual: Tensor
    audio: Tensor

    def __add__(self, other: Pair) -> Pair:
        return Pair(self.visual + other.visual, self.audio + other.audio)


@dataclass
class Trace:
    """What the adapters of a pass said: `agreement` `[BT]` of the deepest CASTE, probabilities `[BT, E]` of AVMoE
    and how unevenly each layer used its experts (scalars)."""

    agreement: Tensor | None = None
    routing: dict[str, Tensor] = field(default_factory=dict)
    imbalance: list[Tensor] = field(default_factory=list)


class MoePair(nn.Module):
    """AVMoE for both modalities at one place; each is the other's context."""

    def __init__(self, visual: Tap, audio: Tap, config: AdapterConfig) -> None:
        super().__init__()
        self.uniform_target = config.avmoe.uniform_target
        self.visual = build_moe(visual, audio, config, out_gate=config.avmoe.out_gate_visual)
        self.audio = build_moe(audio, visual, config, out_gate=config.avmoe.out_gate_audio)

    def forward(self, x: Pair, place: str, trace: Trace) -> Pair:
        """Both residuals; probabilities are noted in `trace` under `routing.<place>.<modality>`."""
        seen, heard = self.visual(x.visual, x.audio), self.audio(x.audio, x.visual)
        trace.routing[f"routing.{place}.visual"] = seen.probabilities
        trace.routing[f"routing.{place}.audio"] = heard.probabilities
        trace.imbalance += [
            load_balance(p, uniform_target=self.uniform_target)
            for p in (seen.probabilities, heard.probabilities)
        ]
        return Pair(seen.residual, heard.residual)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def finish(
    x: Pair,
    trace: Trace,
    guidance: CaptionGuidance | None,
    batch: TokenBatch,
    segments: int,
    visual_norm: Callable[[Tensor], Tensor] = _as_it_is,
    *,
    keep_unguided: bool = False,
) -> TrunkOutput:
    """Caption guidance over the last stage's tokens, then the backbone's own norm if given, then everything noted."""
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
    return TrunkOutput(
        visual=clip_view(visual_norm(x.visual), segments),
        audio=clip_view(x.audio, segments),
        agreement=None if trace.agreement is None else clip_view(trace.agreement, segments),
        losses=losses,
        aux=aux,
    )


def _caption_aux(guided: CaseOutput, segments: int) -> dict[str, Tensor]:
    """CASE's auxiliary outputs, a segment's as `[B, T, ...]`, a caption's as `[B, ...]`."""
    aux = {
        "proj_visual": clip_view(guided.proj_visual, segments),
        "proj_audio": clip_view(guided.proj_audio, segments),
        "proj_visual_caption": guided.proj_visual_caption,
        "proj_audio_caption": guided.proj_audio_caption,
        "caption_fit_visual": clip_view(guided.gate_visual, segments),
        "caption_fit_audio": clip_view(guided.gate_audio, segments),
        "contrastive_temperature": guided.contrastive_temperature,
    }
    for name, p in (("selected_visual", guided.prob_visual), ("selected_audio", guided.prob_audio)):
        if p is not None:
            aux[name] = clip_view(p, segments)
    return aux
