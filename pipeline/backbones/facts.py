"""Facts on the visual backbones, for the catalogue.

Facts on the audio backbones, for the catalogue.

Facts on the text encoders, for the catalogue.

Facts on the captioners, for the catalogue.
"""

from __future__ import annotations

from caeav.pipeline.backbones.catalogue import ModelFacts
from caeav.pipeline.store.record import Tap

_HTSAT_TINY = (
    Tap("audio.stage1", 4096, 96),
    Tap("audio.stage2", 1024, 192),
    Tap("audio.stage3", 256, 384),
    Tap("audio.stage4", 64, 768),
)

AUDIO_FACTS = (
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


TEXT_FACTS = (
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


FILE = "model.safetensors with config.json and the files of its processor and tokenizer"

CAPTIONER_FACTS = (
    ModelFacts(
        "descriptor", "visual captioner", "measures the picture and says so in words", "frames of any size"
    ),
    ModelFacts(
        "blip2",
        "visual captioner",
        "BLIP-2, continues a prompt after the picture; any checkpoint of the class",
        "3 frames a clip, 224 x 224 (as the checkpoint says)",
        weights="hub:Salesforce/blip2-opt-2.7b",
        file=FILE,
        licence="MIT, its OPT language model: OPT licence, research only",
        parameters=3_744_761_856,
    ),
    ModelFacts(
        "vlm:",
        "visual captioner",
        "any image-text-to-text model of transformers, asked by its chat template",
        "3 frames a clip, as the checkpoint says",
        file=FILE,
        licence="by model",
    ),
    ModelFacts("file", "visual captioner", "captions made elsewhere, looked up by key", "csv or JSON lines"),
    ModelFacts("descriptor", "audio captioner", "measures the sound and says so in words", "16 kHz mono"),
    ModelFacts(
        "whisper",
        "audio captioner",
        "Whisper trained to caption, the light one; any checkpoint of the class",
        "16 kHz mono, windows of 30 s",
        weights="hub:MU-NLPC/whisper-tiny-audio-captioning",
        file=FILE,
        licence="CC BY-NC 4.0",
        parameters=37_760_640,
    ),
    ModelFacts(
        "qwen2-audio",
        "audio captioner",
        "Qwen2-Audio, an audio-language model asked by its chat template, a strong one",
        "16 kHz mono, windows of 30 s",
        weights="hub:Qwen/Qwen2-Audio-7B-Instruct",
        file=FILE,
        licence="Apache-2.0",
        parameters=8_397_094_912,
    ),
    ModelFacts(
        "audio-flamingo-3",
        "audio captioner",
        "Audio Flamingo 3, an audio-language model asked by its chat template, a strong one",
        "16 kHz mono, windows of 30 s",
        weights="hub:nvidia/audio-flamingo-3-hf",
        file=FILE,
        licence="NVIDIA OneWay Noncommercial",
        parameters=8_267_215_360,
    ),
    ModelFacts("file", "audio captioner", "captions made elsewhere, looked up by key", "csv or JSON lines"),
)


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
