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
visual_backbones.register_lazily("swinv2-large", "caeav.pipeline.backbones.visual_timm:swin_v2_large")
visual_backbones.register_lazily("swinv2-base", "caeav.pipeline.backbones.visual_timm:swin_v2_base")
visual_backbones.register_lazily("clip-vit-l14", "caeav.pipeline.backbones.visual_clip:clip_visual")
visual_backbones.register_lazily("clip-vit-b32", "caeav.pipeline.backbones.visual_clip:clip_visual")
visual_backbones.register_lazily("timm:", "caeav.pipeline.backbones.visual_timm:timm_visual")
visual_backbones.register_lazily("open_clip:", "caeav.pipeline.backbones.visual_clip:open_clip_visual")
audio_backbones.register_lazily("classic", "caeav.pipeline.backbones.classic_audio:ClassicAudio")
audio_backbones.register_lazily("hts-at", "caeav.pipeline.backbones.hts_at:HtsAt")
audio_backbones.register_lazily("clap", "caeav.pipeline.backbones.clap_sound:ClapSound")
text_backbones.register_lazily("hashed", "caeav.pipeline.backbones.hashed:HashedText")
text_backbones.register_lazily("clip-vit-l14", "caeav.pipeline.backbones.clip_text:clip_text")
text_backbones.register_lazily("clip-vit-b32", "caeav.pipeline.backbones.clip_text:clip_text")
text_backbones.register_lazily("open_clip:", "caeav.pipeline.backbones.clip_text:open_clip_text")
text_backbones.register_lazily("clap", "caeav.pipeline.backbones.clap_text:ClapText")
