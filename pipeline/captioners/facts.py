"""Facts on the captioners, for the catalogue."""

from __future__ import annotations

from caeav.pipeline.backbones.catalogue import ModelFacts

FILE = "model.safetensors with config.json and the files of its processor and tokenizer"

FACTS = (
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
