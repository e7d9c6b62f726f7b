"""The decoders there are, by name; each library is imported only when its decoder is asked for.

Which one is the default was decided by measurement: docs/DECODING.md, `benchmarks/decoders.py`.
"""

from __future__ import annotations

from caeav.manifests.registry import Registry
from caeav.pipeline.decode.media import Decoder

DEFAULT_DECODER = "pyav"

decoders: Registry[type[Decoder]] = Registry("decoder")
decoders.register_lazily("pyav", "caeav.pipeline.decode.with_pyav:PyAVDecoder")
decoders.register_lazily("decord", "caeav.pipeline.decode.with_decord:DecordDecoder")
decoders.register_lazily("torchcodec", "caeav.pipeline.decode.with_torchcodec:TorchCodecDecoder")
