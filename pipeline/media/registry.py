"""The decoders by name. Each library is imported only when its decoder is asked for.

The default was chosen by measurement: docs/DECODING.md, `benchmarks/decoders.py`.
"""

from __future__ import annotations

from caeav.manifests.core.registry import Registry
from caeav.pipeline.media.clip import Decoder

DEFAULT_DECODER = "pyav"

decoders: Registry[type[Decoder]] = Registry("decoder")
decoders.register_lazily("pyav", "caeav.pipeline.media.pyav:PyAVDecoder")
decoders.register_lazily("decord", "caeav.pipeline.media.decord:DecordDecoder")
decoders.register_lazily("torchcodec", "caeav.pipeline.media.torchcodec:TorchCodecDecoder")
