"""Captions applied: mapper, adapters to each modality's width, then CASE on the last stage (REFERENCE section 3).

Captions come as `[B, W, C]` with masks `[B, W]`, one a clip. Both must be there: CASE relates each modality to its
own caption and the modalities to each other.
"""

from __future__ import annotations

from torch import Tensor, nn

from caeav.model.adapters.build import AdapterError
from caeav.model.adapters.captions import CaptionAdapter, CaptionMapper, usable_mask
from caeav.model.adapters.case import Case, CaseOutput
from caeav.model.adapters.config import CaseConfig
from caeav.model.adapters.batch import InputSpec, TokenBatch

NO_CAPTIONS_HINT = "join a caption store (caeav caption ...), or set case.enabled to false"


def _require(caption: Tensor | None, modality: str) -> Tensor:
    if caption is None:
        raise AdapterError(f"CASE needs a {modality} caption, this batch has none", hint=NO_CAPTIONS_HINT)
    return caption


class CaptionGuidance(nn.Module):
    """`mapper` is one module for both captions, as in the reference, unless their widths differ.

    With a `width` narrower than a caption, captions are mapped down to it in front of the mapper.
    """

    def __init__(self, spec: InputSpec, config: CaseConfig) -> None:
        super().__init__()
        if spec.visual_caption is None or spec.audio_caption is None:
            absent = [n for n in ("visual_caption", "audio_caption") if getattr(spec, n) is None]
            raise AdapterError(f"CASE needs both captions, the inputs lack {absent}", hint=NO_CAPTIONS_HINT)
        seen, heard = spec.visual_caption.channels, spec.audio_caption.channels
        visual, audio = spec.visual[-1].channels, spec.audio[-1].channels
        self.mask_padding = config.mask_padding
        same = seen == heard
        self.reduce = self.audio_reduce = None
        if config.width and config.width < max(seen, heard):
            self.reduce = nn.Linear(seen, config.width)
            self.audio_reduce = None if same else nn.Linear(heard, config.width)
            seen = heard = config.width
        self.mapper = CaptionMapper(seen, config.heads)
        self.audio_mapper = None if same else CaptionMapper(heard, config.heads)
        self.case = Case(
            visual,
            audio,
            proj_dim=config.proj_dim,
            heads=config.heads,
            topk_ratio=config.topk_ratio,
            weight_dropout=config.weight_dropout,
            dropout=config.dropout,
            width=config.width,
            selective_injection=config.selective_injection,
            gate_gradient=config.gate_gradient,
        )
        self.visual_adapter = CaptionAdapter(seen, config.caption_bottleneck, self.case.widths[0])
        self.audio_adapter = CaptionAdapter(heard, config.caption_bottleneck, self.case.widths[1])

    def forward(self, visual: Tensor, audio: Tensor, batch: TokenBatch, segments: int) -> CaseOutput:
        """`[BT, L, C]`, `[BT, M, D]` and the batch's captions -> `CaseOutput`."""
        seen, heard = _require(batch.visual_caption, "visual"), _require(batch.audio_caption, "audio")
        visual_mask = self._mask(batch.visual_caption_mask)
        audio_mask = self._mask(batch.audio_caption_mask)
        audio_mapper = self.mapper if self.audio_mapper is None else self.audio_mapper
        if self.reduce is not None:
            seen = self.reduce(seen)
            heard = (self.reduce if self.audio_reduce is None else self.audio_reduce)(heard)
        return self.case(  # type: ignore[no-any-return]
            visual,
            audio,
            self.visual_adapter(self.mapper(seen, source_mask=visual_mask)),
            self.audio_adapter(audio_mapper(heard, source_mask=audio_mask)),
            segments,
            visual_mask=visual_mask,
            audio_mask=audio_mask,
        )

    def _mask(self, mask: Tensor | None) -> Tensor | None:
        return usable_mask(mask) if self.mask_padding and mask is not None else None
