"""Captioners of audio: Whisper-style ones (`whisper`), and audio-language models (`qwen2-audio`, `audio-flamingo-3`).

All take mono audio at 16 kHz in windows of at most 30 s; a longer clip is cut into equal windows, each captioned.
Digital silence is called silence without asking a model, which would make something up.
Shapes: `N` windows, `W` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.weights.find import WeightsError
from caeav.pipeline.captioners.checkpoints import SILENCE, SILENT_BELOW, TOKEN_IDS, LearnedCaptioner
from caeav.pipeline.captioners.generate import transformers
from caeav.pipeline.media.clip import DecodedClip

RATE_HZ = 16_000
WINDOW_S = 30
Wave = NDArray[np.float32]


class AudioCaptioner(LearnedCaptioner):
    """Captions a clip's audio, window by window."""

    modality: Literal["visual", "audio"] = "audio"
    rate_hz: int | None = RATE_HZ

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's processor; it must take 30 s at 16 kHz."""
        found = super().processor
        extractor = found.feature_extractor
        if (extractor.sampling_rate, extractor.n_samples) != (RATE_HZ, RATE_HZ * WINDOW_S):
            raise WeightsError(
                f"{self.weights.source} takes {extractor.n_samples} samples at {extractor.sampling_rate} Hz; "
                f"allowed: {WINDOW_S} s at {RATE_HZ} Hz",
                hint="give a checkpoint made from Whisper's front end",
            )
        return found

    def describe(self) -> dict[str, Any]:
        """Settings, weights, and the amplitude below which audio is called silence."""
        return {**super().describe(), "silent_below": SILENT_BELOW}

    def inputs(self, clip: DecodedClip) -> list[Wave]:
        """Equal windows of the clip's audio."""
        if clip.wave is None:
            return []
        count = ceil(len(clip.wave) / (RATE_HZ * WINDOW_S))
        padded = np.pad(clip.wave, (0, -len(clip.wave) % count))
        return np.split(padded, count)

    def empty(self, like: Sequence[Wave]) -> list[Wave]:
        """Silence."""
        return [np.zeros_like(wave) for wave in like]

    def finish(self, clip: DecodedClip, texts: Sequence[str]) -> str:
        """The caption, or that there is only silence."""
        assert clip.wave is not None
        return super().finish(clip, texts) if float(np.abs(clip.wave).max()) >= SILENT_BELOW else SILENCE


class WhisperCaptioner(AudioCaptioner):
    """A Whisper trained to caption: the decoder continues `prompt`, which names the style it was trained with."""

    model_types = ("whisper",)
    kept: Sequence[str] = (*TOKEN_IDS, "suppress_tokens", "begin_suppress_tokens")
    defaults = {  # noqa: RUF012
        "prompt": "clotho > caption: ",
        "beams": 5,
        "max_tokens": 60,
        "repetition_penalty": 1.0,
        "dtype": "float32",
    }

    def factory(self) -> Any:
        """`WhisperForConditionalGeneration`."""
        return transformers().WhisperForConditionalGeneration

    def module(self) -> nn.Module:
        """The model; raises `CaeavError`, before any clip, when `max_tokens` is more than it has room for."""
        assert self.prefix
        return super().module()

    @cached_property
    def prefix(self) -> list[int]:
        """Start of transcript, language and task where the checkpoint has several, no timestamps, then the prompt."""
        tokenizer = self.processor.tokenizer
        several = tokenizer.convert_tokens_to_ids("<|en|>") not in (None, tokenizer.unk_token_id)
        language, task = ("english", "transcribe") if several else (None, None)
        tokenizer.set_prefix_tokens(language=language, task=task, predict_timestamps=False)
        style = tokenizer(self.settings["prompt"], add_special_tokens=False)["input_ids"]
        found = [*tokenizer.prefix_tokens, *style]
        room = self.model.config.max_target_positions - len(found)
        if self.settings["max_tokens"] > room:
            raise CaeavError(
                f"setting 'max_tokens' of {self.name} is {self.settings['max_tokens']}, the model has room for {room}",
                hint=f"give at most {room}: --set audio.max_tokens={room}",
            )
        return found

    def write(self, parts: Sequence[Wave]) -> list[str]:
        """All windows in one batch, each padded to 30 s by the front end."""
        # Whisper's own generate() cuts, joins and retries for transcripts; captions need the plain one.
        plain = transformers().GenerationMixin.generate
        inputs = self.processor.feature_extractor(list(parts), sampling_rate=RATE_HZ, return_tensors="pt")
        start = torch.tensor([self.prefix] * len(parts))
        placed = self.placed({"input_features": inputs["input_features"], "decoder_input_ids": start})
        return self.decode(plain(self.model, **placed), start)


class AudioChat(AudioCaptioner):
    """An audio-language model, prompted through its chat template."""

    model_class = ""
    defaults = {  # noqa: RUF012
        "prompt": "Describe the sounds in this recording in one sentence.",
        "beams": 1,
        "max_tokens": 60,
        "repetition_penalty": 1.0,
        "dtype": "bfloat16",
    }

    def factory(self) -> Any:
        """The family's class."""
        return getattr(transformers(), self.model_class)

    @cached_property
    def processor(self) -> Any:
        """The checkpoint's processor; raises `WeightsError` for a checkpoint without a chat template."""
        found = super().processor
        if found.chat_template is None:
            raise WeightsError(
                f"{self.weights.source} has no chat template", hint="give the instruction-tuned checkpoint"
            )
        return found

    def write(self, parts: Sequence[Wave]) -> list[str]:
        """All windows in one batch; they are equally long, so their prompts are too."""
        chats = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "audio", "audio": wave},
                        {"type": "text", "text": self.settings["prompt"]},
                    ],
                }
            ]
            for wave in parts
        ]
        inputs = dict(
            self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"return_tensors": "pt", "text_kwargs": {"padding": True}},
            )
        )
        return self.generate(inputs, inputs["input_ids"])


class Qwen2Audio(AudioChat):
    """Qwen2-Audio, the instruction-tuned checkpoint."""

    model_types = ("qwen2_audio",)
    model_class = "Qwen2AudioForConditionalGeneration"


class AudioFlamingo3(AudioChat):
    """Audio Flamingo 3, in the form for transformers."""

    model_types = ("audioflamingo3",)
    model_class = "AudioFlamingo3ForConditionalGeneration"
