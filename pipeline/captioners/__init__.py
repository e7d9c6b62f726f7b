"""Writers of captions for pictures and sound, found by name; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from caeav.manifests.registry import Registry
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.captioners.protocol import Captioner

visual_captioners: Registry[Callable[[ModelChoice], Captioner]] = Registry("visual captioner")
audio_captioners: Registry[Callable[[ModelChoice], Captioner]] = Registry("audio captioner")

visual_captioners.register_lazily("descriptor", "caeav.pipeline.captioners.describe_picture:DescribePicture")
audio_captioners.register_lazily("descriptor", "caeav.pipeline.captioners.describe_sound:DescribeSound")
