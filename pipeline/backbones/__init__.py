"""Frozen encoders of pictures, sound and text, found by name; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from caeav.manifests.registry import Registry
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.protocol import MediaBackbone, TextBackbone

visual_backbones: Registry[Callable[[ModelChoice], MediaBackbone]] = Registry("visual backbone")
audio_backbones: Registry[Callable[[ModelChoice], MediaBackbone]] = Registry("audio backbone")
text_backbones: Registry[Callable[[ModelChoice], TextBackbone]] = Registry("text backbone")

visual_backbones.register_lazily("classic", "caeav.pipeline.backbones.classic_visual:ClassicVisual")
audio_backbones.register_lazily("classic", "caeav.pipeline.backbones.classic_audio:ClassicAudio")
text_backbones.register_lazily("hashed", "caeav.pipeline.backbones.hashed:HashedText")
