"""Facts on the captioners, for the catalogue."""

from __future__ import annotations

from caeav.pipeline.catalogue import ModelFacts

FACTS = (
    ModelFacts(
        "descriptor", "visual captioner", "measures the picture and says so in words", "frames of any size"
    ),
    ModelFacts("descriptor", "audio captioner", "measures the sound and says so in words", "16 kHz mono"),
)
