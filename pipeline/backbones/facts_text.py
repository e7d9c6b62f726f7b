"""Facts on the text encoders, for the catalogue."""

from __future__ import annotations

from caeav.pipeline.backbones.protocol import Tap
from caeav.pipeline.catalogue import ModelFacts

FACTS = (
    ModelFacts(
        "hashed",
        "text encoder",
        "fixed random word vectors, nothing learned",
        "text, cut after 32 words",
        (Tap("tokens", 32, 128),),
    ),
)
