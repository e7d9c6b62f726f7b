"""Facts on the visual backbones, for the catalogue."""

from __future__ import annotations

from caeav.pipeline.backbones.base import Tap
from caeav.pipeline.backbones.catalogue import ModelFacts

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
    ModelFacts(
        "swinv2-large",
        "visual backbone",
        "Swin-V2-L, window 12, ImageNet-22k (timm swinv2_large_window12_192.ms_in22k), as the reference",
        "frames, 192 x 192",
        (
            Tap("visual.stage1", 2304, 192),
            Tap("visual.stage2", 576, 384),
            Tap("visual.stage3", 144, 768),
            Tap("visual.stage4", 36, 1536),
        ),
        weights="hub:timm/swinv2_large_window12_192.ms_in22k",
        file="model.safetensors",
        licence="MIT",
        parameters=195_202_932,
    ),
    ModelFacts(
        "swinv2-base",
        "visual backbone",
        "Swin-V2-B, window 12, ImageNet-22k (timm swinv2_base_window12_192.ms_in22k)",
        "frames, 192 x 192",
        (
            Tap("visual.stage1", 2304, 128),
            Tap("visual.stage2", 576, 256),
            Tap("visual.stage3", 144, 512),
            Tap("visual.stage4", 36, 1024),
        ),
        weights="hub:timm/swinv2_base_window12_192.ms_in22k",
        file="model.safetensors",
        licence="MIT",
        parameters=86_893_816,
    ),
    ModelFacts(
        "clip-vit-l14",
        "visual backbone",
        "CLIP ViT-L/14 of OpenAI through open_clip, picture tower",
        "frames, 224 x 224",
        tuple(Tap(f"visual.block{i}", 256, 1024) for i in (6, 12, 18, 24)),
        weights="hub:timm/vit_large_patch14_clip_224.openai",
        file="open_clip_model.safetensors",
        licence="Apache-2.0 (hub), MIT (OpenAI's code)",
        parameters=303_966_208,
    ),
    ModelFacts(
        "clip-vit-b32",
        "visual backbone",
        "CLIP ViT-B/32 of OpenAI through open_clip, picture tower",
        "frames, 224 x 224",
        tuple(Tap(f"visual.block{i}", 49, 768) for i in (3, 6, 9, 12)),
        weights="hub:timm/vit_base_patch32_clip_224.openai",
        file="open_clip_model.safetensors",
        licence="Apache-2.0 (hub), MIT (OpenAI's code)",
        parameters=87_849_216,
    ),
    ModelFacts(
        "timm:",
        "visual backbone",
        "any model of timm by its name, e.g. timm:resnet50.a1_in1k, with its own normalisation and size",
        "frames, size by model",
        file="model.safetensors",
        licence="by model",
    ),
    ModelFacts(
        "open_clip:",
        "visual backbone",
        "any ViT of open_clip by its architecture, e.g. open_clip:ViT-B-16; weights must be named",
        "frames, size by model",
        file="open_clip_model.safetensors",
        licence="by weights",
    ),
)
