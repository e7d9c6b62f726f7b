"""Facts on the audio backbones, for the catalogue."""

from __future__ import annotations

from caeav.pipeline.backbones.protocol import Tap
from caeav.pipeline.catalogue import ModelFacts

FACTS = (
    ModelFacts(
        "classic",
        "audio backbone",
        "fixed log-mel descriptors, nothing learned",
        "16 kHz mono",
        (
            Tap("audio.stage1", 64, 32),
            Tap("audio.stage2", 16, 64),
            Tap("audio.stage3", 4, 128),
            Tap("audio.stage4", 4, 256),
        ),
    ),
)
