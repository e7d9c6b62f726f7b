"""Facts on the visual backbones, for the catalogue."""

from __future__ import annotations

from caeav.pipeline.backbones.protocol import Tap
from caeav.pipeline.catalogue import ModelFacts

FACTS = (
    ModelFacts(
        "classic",
        "visual backbone",
        "fixed patch descriptors, nothing learned",
        "frames of any size, stretched to 64 x 64",
        (
            Tap("visual.stage1", 64, 64),
            Tap("visual.stage2", 16, 128),
            Tap("visual.stage3", 4, 192),
            Tap("visual.stage4", 4, 256),
        ),
    ),
)
