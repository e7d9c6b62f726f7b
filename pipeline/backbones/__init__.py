"""Frozen encoders of frames, audio and text, by name; each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable

from caeav.manifests.core.registry import Registry
from caeav.pipeline.backbones.base import MediaBackbone, TextBackbone
from caeav.pipeline.backbones.choice import ModelChoice

visual_backbones: Registry[Callable[[ModelChoice], MediaBackbone]] = Registry("visual backbone")
audio_backbones: Registry[Callable[[ModelChoice], MediaBackbone]] = Registry("audio backbone")
text_backbones: Registry[Callable[[ModelChoice], TextBackbone]] = Registry("text backbone")

visual_backbones.register_lazily("classic", "caeav.pipeline.backbones.classic.visual:ClassicVisual")
visual_backbones.register_lazily("swinv2-large", "caeav.pipeline.backbones.timm_models:swin_v2")
visual_backbones.register_lazily("swinv2-base", "caeav.pipeline.backbones.timm_models:swin_v2")
visual_backbones.register_lazily("clip-vit-l14", "caeav.pipeline.backbones.clip_visual:clip_visual")
visual_backbones.register_lazily("clip-vit-b32", "caeav.pipeline.backbones.clip_visual:clip_visual")
visual_backbones.register_lazily(
    "efficientnet-lite0", "caeav.pipeline.backbones.efficientnet:efficientnet_lite0"
)
visual_backbones.register_lazily("timm:", "caeav.pipeline.backbones.timm_models:timm_visual")
visual_backbones.register_lazily("open_clip:", "caeav.pipeline.backbones.clip_visual:open_clip_visual")
audio_backbones.register_lazily("classic", "caeav.pipeline.backbones.classic.audio:ClassicAudio")
audio_backbones.register_lazily("yamnet", "caeav.pipeline.backbones.yamnet.audio:YamnetBackbone")
audio_backbones.register_lazily("hts-at", "caeav.pipeline.backbones.htsat.audioset:HtsAt")
audio_backbones.register_lazily("clap", "caeav.pipeline.backbones.clap.audio:ClapAudio")
text_backbones.register_lazily("hashed", "caeav.pipeline.backbones.classic.text:HashedText")
text_backbones.register_lazily("clip-vit-l14", "caeav.pipeline.backbones.clip_text:clip_text")
text_backbones.register_lazily("clip-vit-b32", "caeav.pipeline.backbones.clip_text:clip_text")
text_backbones.register_lazily("open_clip:", "caeav.pipeline.backbones.clip_text:open_clip_text")
text_backbones.register_lazily("clap", "caeav.pipeline.backbones.clap.text:ClapText")
