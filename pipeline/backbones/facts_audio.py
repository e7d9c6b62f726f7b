"""Facts on the audio backbones, for the catalogue."""

from __future__ import annotations

from caeav.pipeline.backbones.base import Tap
from caeav.pipeline.backbones.catalogue import ModelFacts

_HTSAT_TINY = (
    Tap("audio.stage1", 4096, 96),
    Tap("audio.stage2", 1024, 192),
    Tap("audio.stage3", 256, 384),
    Tap("audio.stage4", 64, 768),
)

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
    ModelFacts(
        "hts-at",
        "audio backbone",
        "HTS-AT trained on AudioSet, as the reference uses it",
        "32 kHz mono, each segment repeated to 10 s",
        _HTSAT_TINY,
        file="HTSAT_AudioSet_Saved_1.ckpt",
        licence="none stated (its code: MIT)",
        parameters=27_532_952,
    ),
    ModelFacts(
        "clap",
        "audio backbone",
        "audio tower of LAION-CLAP (HTSAT-tiny by default, base and large from their files)",
        "48 kHz mono, each segment repeated to 10 s",
        _HTSAT_TINY,
        weights="hub:laion/clap-htsat-unfused",
        file="model.safetensors or a .pt of laion-clap",
        licence="Apache-2.0 (hub), CC0-1.0 (laion-clap)",
        parameters=28_190_872,
    ),
)
