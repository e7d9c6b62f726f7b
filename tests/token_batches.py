"""A small input specification with captions, and random batches of any specification."""

from __future__ import annotations

import torch
from torch import Tensor

from caeav.model.adapters.batch import CaptionSpec, InputSpec, TokenBatch
from caeav.pipeline.store.record import Tap

SMALL = InputSpec(
    3,
    (Tap("visual.a", 16, 8), Tap("visual.b", 9, 16)),
    (Tap("audio.a", 16, 8), Tap("audio.b", 6, 16)),
    CaptionSpec(5, 16),
    CaptionSpec(6, 16),
)


def token_batch(spec: InputSpec, clips: int = 2) -> TokenBatch:
    torch.manual_seed(1)
    ok = torch.ones(clips, spec.segments, dtype=torch.bool)

    def taps(given: tuple[Tap, ...]) -> dict[str, Tensor]:
        return {tap.name: torch.randn(clips, spec.segments, tap.tokens, tap.channels) for tap in given}

    batch = TokenBatch(list(map(str, range(clips))), taps(spec.visual), taps(spec.audio), ok, ok)
    assert spec.visual_caption is not None and spec.audio_caption is not None
    for name, caption in (("visual", spec.visual_caption), ("audio", spec.audio_caption)):
        setattr(batch, f"{name}_caption", torch.randn(clips, caption.tokens, caption.channels))
        setattr(batch, f"{name}_caption_mask", torch.arange(caption.tokens).expand(clips, -1) < 3)
    return batch
