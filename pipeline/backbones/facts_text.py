"""Facts on the text encoders, for the catalogue."""

from __future__ import annotations

from caeav.pipeline.backbones.base import Tap
from caeav.pipeline.backbones.catalogue import ModelFacts

FACTS = (
    ModelFacts(
        "hashed",
        "text encoder",
        "fixed random word vectors, nothing learned",
        "text, cut after 32 words",
        (Tap("tokens", 32, 128),),
    ),
    ModelFacts(
        "clip-vit-l14",
        "text encoder",
        "text tower of OpenAI's CLIP ViT-L/14, before pooling",
        "text, cut after 77 tokens",
        (Tap("tokens", 77, 768),),
        weights="hub:timm/vit_large_patch14_clip_224.openai",
        file="open_clip_model.safetensors",
        licence="Apache-2.0 (hub), MIT (OpenAI's code)",
        parameters=123_650_304,
    ),
    ModelFacts(
        "clip-vit-b32",
        "text encoder",
        "text tower of OpenAI's CLIP ViT-B/32, before pooling",
        "text, cut after 77 tokens",
        (Tap("tokens", 77, 512),),
        weights="hub:timm/vit_base_patch32_clip_224.openai",
        file="open_clip_model.safetensors",
        licence="Apache-2.0 (hub), MIT (OpenAI's code)",
        parameters=63_428_096,
    ),
    ModelFacts(
        "open_clip:",
        "text encoder",
        "any text tower of open_clip with CLIP's own tokenizer, by its name there",
        "text, cut after 77 tokens",
        file="open_clip_model.safetensors",
        licence="by weights",
    ),
    ModelFacts(
        "clap",
        "text encoder",
        "RoBERTa as LAION-CLAP trained it, before pooling",
        "text, cut after 77 tokens",
        (Tap("tokens", 77, 768),),
        weights="hub:laion/clap-htsat-unfused",
        file="model.safetensors with tokenizer.json, or a .pt of laion-clap",
        licence="Apache-2.0 (hub), CC0-1.0 (laion-clap)",
        parameters=124_055_040,
    ),
)
