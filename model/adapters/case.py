"""CASE: captions of both modalities guide which tokens are strengthened (REFERENCE sections 2.6 to 2.11).

Visual tokens `[BT, L, C]`, audio `[BT, M, D]`, clip by clip in `T` segments; captions `[B, W, C]` with masks
`[B, W]`, True at real tokens. Captions pass one mapper and an adapter to their modality's width (`CaptionGuidance`);
then CASE relates each modality to its caption and the modalities to each other (`Case`), so it needs both captions.
CASE is not an identity at the start.

A caption holds for the whole clip, so everything that concerns captions alone is computed for `B` rows and never
repeated; captions given a segment at a time (`[BT, W, C]`) work too. In training the dropout of a clip's caption is
therefore the same in all its segments (the reference draws it for each).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.batch import AdapterError, InputSpec, TokenBatch
from caeav.model.adapters.caste import UNIT_EPS
from caeav.model.adapters.config import CaseConfig
from caeav.model.adapters.dropout import Dropout, attend
from caeav.model.adapters.layers import (
    TemporalConv,
    TokenSelector,
    merge_heads,
    require_divisible,
    split_heads,
)
from caeav.model.adapters.memory import return_free_memory_before

NO_CAPTIONS_HINT = "join a caption store (caeav caption ...), or set case.enabled to false"


class SplitAttention(nn.Module):
    """Multi-head attention with four separate `C x C` maps (2.6); `key.bias` never has an effect."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        require_divisible(channels, heads, "heads")
        self.heads = heads
        self.dropout = dropout
        self.value = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.query = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, query: Tensor, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """`query` `[N, Q, C]` attends `source` `[N, S, C]`; `source_mask` `[N, S]` is True where it may."""
        mixed = attend(
            split_heads(self.query(query), self.heads),
            split_heads(self.key(source), self.heads),
            split_heads(self.value(source), self.heads),
            mask=None if source_mask is None else source_mask[:, None, None, :],
            rate=self.dropout if self.training else 0.0,
        )
        return self.out(merge_heads(mixed))  # type: ignore[no-any-return]


class AttentionUnit(nn.Module):
    """`LN(query + dropout(attention(query, source)))`: CASE's post-norm attention unit (2.6)."""

    def __init__(
        self, channels: int, heads: int = 8, *, weight_dropout: float = 0.1, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.attn = SplitAttention(channels, heads, weight_dropout)
        self.norm = nn.LayerNorm(channels)
        self.dropout = Dropout(dropout)

    def forward(self, query: Tensor, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """`[N, Q, C]`, `[N, S, C]`, mask `[N, S]` -> `[N, Q, C]`."""
        out = self.norm(query + self.dropout(self.attn(query, source, source_mask)))
        return return_free_memory_before(out, self.attn.query.weight)


class FeedForwardUnit(nn.Module):
    """`LN(x + dropout(fc_out(dropout(relu(fc_in(x))))))`, hidden width `2C` (2.6)."""

    def __init__(self, channels: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.fc_in = nn.Linear(channels, 2 * channels)
        self.fc_out = nn.Linear(2 * channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, S, C]` -> `[N, S, C]`."""
        # The same as dropout behind the ReLU, but one copy less is kept for the backward pass.
        hidden = F.relu(self.dropout(self.fc_in(x)))
        out = self.norm(x + self.dropout(self.fc_out(hidden)))
        return return_free_memory_before(out, self.fc_in.weight)


class CaptionMapper(AttentionUnit):
    """Self attention over a caption's tokens: an attention unit with dropout 0.2 at both places (2.10)."""

    def __init__(self, channels: int, heads: int = 8, *, dropout: float = 0.2) -> None:
        super().__init__(channels, heads, weight_dropout=dropout, dropout=dropout)

    def forward(
        self, query: Tensor, source: Tensor | None = None, source_mask: Tensor | None = None
    ) -> Tensor:
        """`[B, W, C]` -> `[B, W, C]`; `source_mask` `[B, W]` is True at real tokens; None attends padding too."""
        return super().forward(query, query if source is None else source, source_mask)


class CaptionAdapter(nn.Module):
    """From a caption's width to its modality's: `up(gelu(down(x)))`, no residual (2.11).

    zero_start: `up` starts at 0, so captions enter CASE as zeros at first; few clips are learnt by heart from their
    tokens before it has moved, and then nothing asks for captions any more. False starts it as torch does.
    """

    def __init__(self, channels: int, bottleneck: int, out_channels: int, *, zero_start: bool = True) -> None:
        super().__init__()
        self.down = nn.Linear(channels, bottleneck)
        self.up = nn.Linear(bottleneck, out_channels)
        nn.init.kaiming_normal_(self.down.weight)  # N(0, 2 / channels)
        nn.init.zeros_(self.down.bias)
        if zero_start:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, W, C]` -> `[B, W, out_channels]`."""
        return self.up(F.gelu(self.down(x)))  # type: ignore[no-any-return]


def usable_mask(mask: Tensor) -> Tensor:
    """`[B, W]` mask without empty rows: a caption with no token attends its padding instead of nothing."""
    return mask | ~mask.any(dim=-1, keepdim=True)


@dataclass(frozen=True, slots=True)
class CaseOutput:
    """Refined tokens, refined captions, and what the auxiliary objectives need.

    `proj_visual`, `proj_audio`: `[BT, P]`; `proj_visual_caption`, `proj_audio_caption`: `[B, P]`, a row per caption.
    `prob_visual` `[BT, L]`, `prob_audio` `[BT, M]`: the selector's probabilities, None in eval mode.
    `gate_visual`, `gate_audio`: `[BT]`, how well a segment fits its caption. `chosen_visual` `[BT, L]`, `chosen_audio`
    `[BT, M]`: bool, the tokens that were selected.
    """

    visual: Tensor
    audio: Tensor
    visual_caption: Tensor
    audio_caption: Tensor
    proj_visual: Tensor
    proj_audio: Tensor
    proj_visual_caption: Tensor
    proj_audio_caption: Tensor
    prob_visual: Tensor | None
    prob_audio: Tensor | None
    gate_visual: Tensor
    gate_audio: Tensor
    chosen_visual: Tensor
    chosen_audio: Tensor
    contrastive_temperature: Tensor


class Projection(nn.Module):
    """LayerNorm, then a linear map into the space in which the objectives compare."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C]` -> `[N, width]`."""
        return self.linear(self.norm(x))  # type: ignore[no-any-return]


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens where `mask` `[N, W]` is True: `[N, W, C]` -> `[N, C]`."""
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype)
    return torch.bmm((weights / weights.sum(dim=1, keepdim=True)).unsqueeze(1), tokens)[:, 0]


class Case(nn.Module):
    """Self attention, caption attention, cross attention, feed-forward, time; then caption-gated injection (2.9).

    selective_injection: only the top-k tokens receive what was refined, weighted by the gate; the reference gives
    `1 - gate` of it to every token and `gate / k` more to the selected. gate_gradient: gradients flow through the gate
    to the captions; the reference cuts them off. width: the units work on tokens mapped down to this width and what is
    injected is mapped up again; 0 keeps the tokens' own width. `widths`: the resulting visual and audio width, which
    captions must have.
    """

    def __init__(
        self,
        visual_channels: int,
        audio_channels: int,
        *,
        proj_dim: int = 512,
        heads: int = 8,
        topk_ratio: float = 0.3,
        weight_dropout: float = 0.1,
        dropout: float = 0.2,
        width: int = 0,
        selective_injection: bool = False,
        gate_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.selective_injection = selective_injection
        self.gate_gradient = gate_gradient
        self.widths = tuple(min(width or c, c) for c in (visual_channels, audio_channels))
        self.selector = TokenSelector(topk_ratio, whole=selective_injection)
        self.contrastive_temperature = nn.Parameter(torch.tensor(0.2))

        def unit(channels: int) -> AttentionUnit:
            return AttentionUnit(channels, heads, weight_dropout=weight_dropout, dropout=dropout)

        full = (visual_channels, audio_channels)
        for name, wide, channels in zip(("visual", "audio"), full, self.widths, strict=True):
            if channels < wide:
                self.add_module(f"reduce_{name}", nn.Linear(wide, channels))
                self.add_module(f"lift_{name}", nn.Linear(channels, wide))
            self.add_module(f"self_attn_{name}", unit(channels))
            self.add_module(f"self_attn_{name}_caption", unit(channels))
            self.add_module(f"caption_attn_{name}", unit(channels))
            self.add_module(f"cross_attn_{name}", unit(channels))
            self.add_module(f"ffn_{name}", FeedForwardUnit(channels, dropout))
            self.add_module(f"ffn_{name}_caption", FeedForwardUnit(channels, dropout))
            self.add_module(f"temporal_{name}", TemporalConv(channels))
            self.add_module(f"out_norm_{name}", nn.LayerNorm(wide))
            self.add_module(f"proj_{name}", Projection(wide, proj_dim))
            self.add_module(f"proj_{name}_caption", Projection(channels, proj_dim))
        self.audio_to_visual = nn.Linear(self.widths[1], self.widths[0])
        self.visual_to_audio = nn.Linear(self.widths[0], self.widths[1])

    def forward(
        self,
        visual: Tensor,
        audio: Tensor,
        visual_caption: Tensor,
        audio_caption: Tensor,
        segments: int,
        *,
        visual_mask: Tensor | None = None,
        audio_mask: Tensor | None = None,
        visual_noise: Tensor | None = None,
        audio_noise: Tensor | None = None,
    ) -> CaseOutput:
        """Refine both modalities.

        Masks: `[rows of the caption, W]`, True at real caption tokens; None attends padding as the reference does.
        Noise: draws `[BT, L]`, `[BT, M]` from Exp(1) for the selector in training; None draws them here.
        """
        visual_mask = None if visual_mask is None else usable_mask(visual_mask)
        audio_mask = None if audio_mask is None else usable_mask(audio_mask)
        v2, vc1 = self._attend_caption("visual", visual, visual_caption, visual_mask)
        a2, ac1 = self._attend_caption("audio", audio, audio_caption, audio_mask)
        v4 = self._cross("visual", v2, self.audio_to_visual(a2), segments)
        a4 = self._cross("audio", a2, self.visual_to_audio(v2), segments)
        vc2 = self.get_submodule("ffn_visual_caption")(vc1)
        ac2 = self.get_submodule("ffn_audio_caption")(ac1)
        vc_mean, ac_mean = masked_mean(vc2, visual_mask), masked_mean(ac2, audio_mask)
        v_out, v_prob, v_gate, v_mask = self._inject("visual", visual, v4, vc_mean, visual_noise)
        a_out, a_prob, a_gate, a_mask = self._inject("audio", audio, a4, ac_mean, audio_noise)
        return CaseOutput(
            visual=v_out,
            audio=a_out,
            visual_caption=vc2,
            audio_caption=ac2,
            proj_visual=self.get_submodule("proj_visual")(v_out.mean(dim=1)),
            proj_audio=self.get_submodule("proj_audio")(a_out.mean(dim=1)),
            proj_visual_caption=self.get_submodule("proj_visual_caption")(vc_mean),
            proj_audio_caption=self.get_submodule("proj_audio_caption")(ac_mean),
            prob_visual=v_prob,
            prob_audio=a_prob,
            gate_visual=v_gate,
            gate_audio=a_gate,
            chosen_visual=v_mask,
            chosen_audio=a_mask,
            contrastive_temperature=self.contrastive_temperature,
        )

    def _attend_caption(
        self, name: str, tokens: Tensor, caption: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        tokens = self._through(f"reduce_{name}", tokens)
        own = self.get_submodule(f"self_attn_{name}")(tokens, tokens)  # [BT, L, C]
        words = self.get_submodule(f"self_attn_{name}_caption")(caption, caption, mask)  # [B, W, C]
        # All segments of a clip query its one caption together: keys and values are never repeated.
        together = own.reshape(caption.shape[0], -1, own.shape[-1])  # [B, T * L, C]
        attended = self.get_submodule(f"caption_attn_{name}")(together, words, mask)
        return attended.view_as(own), words

    def _cross(self, name: str, query: Tensor, source: Tensor, segments: int) -> Tensor:
        crossed = self.get_submodule(f"cross_attn_{name}")(query, source)
        return self.get_submodule(f"temporal_{name}")(  # type: ignore[no-any-return]
            self.get_submodule(f"ffn_{name}")(crossed), segments
        )

    def _inject(
        self, name: str, tokens: Tensor, refined: Tensor, caption_mean: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.gate_gradient):
            own = F.normalize(refined.mean(dim=1), dim=-1, eps=UNIT_EPS)
            caption = F.normalize(caption_mean, dim=-1, eps=UNIT_EPS)
            by_clip = own.view(caption.shape[0], -1, own.shape[-1])  # [B, T, C]
            fit = torch.sigmoid((by_clip * caption.unsqueeze(1)).sum(-1).flatten())  # [BT]
        mask, probabilities = self.selector(refined, noise)
        gate = fit[:, None, None]
        weights = gate * mask if self.selective_injection else gate * mask + (1 - gate)
        injected = torch.addcmul(tokens, self._through(f"lift_{name}", refined), weights)
        chosen = (mask > 0).squeeze(-1)  # [BT, L]
        return self.get_submodule(f"out_norm_{name}")(injected), probabilities, fit, chosen

    def _through(self, name: str, x: Tensor) -> Tensor:
        """`x` through the map to or from the units' width, where there is one."""
        return self.get_submodule(name)(x) if hasattr(self, name) else x


class CaptionGuidance(nn.Module):
    """Captions applied: mapper, adapters to each modality's width, then CASE (REFERENCE section 3).

    `mapper` is one module for both captions, as in the reference, unless their widths differ. With a `width` narrower
    than a caption, captions are mapped down to it before the mapper.
    """

    def __init__(self, spec: InputSpec, config: CaseConfig) -> None:
        super().__init__()
        if spec.visual_caption is None or spec.audio_caption is None:
            missing = [n for n in ("visual_caption", "audio_caption") if getattr(spec, n) is None]
            raise AdapterError(f"CASE needs both captions, the inputs lack {missing}", hint=NO_CAPTIONS_HINT)
        visual, audio = spec.visual_caption.channels, spec.audio_caption.channels
        self.mask_padding = config.mask_padding
        same = visual == audio
        self.reduce = self.audio_reduce = None
        if config.width and config.width < max(visual, audio):
            self.reduce = nn.Linear(visual, config.width)
            self.audio_reduce = None if same else nn.Linear(audio, config.width)
            visual = audio = config.width
        self.mapper = CaptionMapper(visual, config.heads)
        self.audio_mapper = None if same else CaptionMapper(audio, config.heads)
        self.case = Case(
            spec.visual[-1].channels,
            spec.audio[-1].channels,
            proj_dim=config.proj_dim,
            heads=config.heads,
            topk_ratio=config.topk_ratio,
            weight_dropout=config.weight_dropout,
            dropout=config.dropout,
            width=config.width,
            selective_injection=config.selective_injection,
            gate_gradient=config.gate_gradient,
        )
        inner, start = config.caption_bottleneck, config.zero_start
        self.visual_adapter = CaptionAdapter(visual, inner, self.case.widths[0], zero_start=start)
        self.audio_adapter = CaptionAdapter(audio, inner, self.case.widths[1], zero_start=start)

    def forward(self, visual: Tensor, audio: Tensor, batch: TokenBatch, segments: int) -> CaseOutput:
        """`[BT, L, C]`, `[BT, M, D]` and the batch's captions -> `CaseOutput`."""
        visual_caption = _require(batch.visual_caption, "visual")
        audio_caption = _require(batch.audio_caption, "audio")
        visual_mask = self._mask(batch.visual_caption_mask)
        audio_mask = self._mask(batch.audio_caption_mask)
        audio_mapper = self.mapper if self.audio_mapper is None else self.audio_mapper
        if self.reduce is not None:
            visual_caption = self.reduce(visual_caption)
            audio_caption = (self.reduce if self.audio_reduce is None else self.audio_reduce)(audio_caption)
        return self.case(  # type: ignore[no-any-return]
            visual,
            audio,
            self.visual_adapter(self.mapper(visual_caption, source_mask=visual_mask)),
            self.audio_adapter(audio_mapper(audio_caption, source_mask=audio_mask)),
            segments,
            visual_mask=visual_mask,
            audio_mask=audio_mask,
        )

    def _mask(self, mask: Tensor | None) -> Tensor | None:
        return usable_mask(mask) if self.mask_padding and mask is not None else None


def _require(caption: Tensor | None, modality: str) -> Tensor:
    if caption is None:
        raise AdapterError(f"CASE needs a {modality} caption, this batch has none", hint=NO_CAPTIONS_HINT)
    return caption
