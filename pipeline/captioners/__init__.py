"""Captioners for the frames and the audio of a clip, by name; each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable

from caeav.manifests.core.registry import Registry
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.captioners.base import Captioner

visual_captioners: Registry[Callable[[ModelChoice], Captioner]] = Registry("visual captioner")
audio_captioners: Registry[Callable[[ModelChoice], Captioner]] = Registry("audio captioner")

visual_captioners.register_lazily("descriptor", "caeav.pipeline.captioners.descriptor:DescribeFrames")
audio_captioners.register_lazily("descriptor", "caeav.pipeline.captioners.descriptor:DescribeAudio")

visual_captioners.register_lazily("tags", "caeav.pipeline.captioners.tags.visual:TagFrames")
audio_captioners.register_lazily("tags", "caeav.pipeline.captioners.tags.audio:TagAudio")

visual_captioners.register_lazily("blip2", "caeav.pipeline.captioners.visual:Blip2")
visual_captioners.register_lazily("vlm:", "caeav.pipeline.captioners.visual:ImageTextModel")
visual_captioners.register_lazily("file", "caeav.pipeline.captioners.from_file:visual_file")
audio_captioners.register_lazily("whisper", "caeav.pipeline.captioners.audio:WhisperCaptioner")
audio_captioners.register_lazily("qwen2-audio", "caeav.pipeline.captioners.audio:Qwen2Audio")
audio_captioners.register_lazily("audio-flamingo-3", "caeav.pipeline.captioners.audio:AudioFlamingo3")
audio_captioners.register_lazily("file", "caeav.pipeline.captioners.from_file:audio_file")
