"""The captions of one shard as token embeddings, by frozen text backbones.

Shapes: `W` caption tokens, `C` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.backbones.base import TextBackbone
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.store import Recipe, Record
from caeav.pipeline.store.dtypes import stored
from caeav.pipeline.store.layout import shard_clips

Encoded = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Tokens `[N, W, C]` and mask `[N, W]` of `N` texts."""


class Embedder:
    """Adds `visual_caption` and `audio_caption` `[W, C]` with their masks `[W]` to records that hold `texts`.

    An empty text (a missing modality) gives zeros and a mask that is False everywhere. Text backbones of torch modules
    run on the first of `devices`, in batches of one size in which the row of a text follows from its clip's place in
    the shard.
    """

    def __init__(
        self, recipe: Recipe, backbones: Mapping[str, TextBackbone], devices: Sequence[str] = ("cpu",)
    ) -> None:
        self._backbones = backbones
        self._dtype: str = recipe.fields["dtype"]
        self._compute = ComputeOptions(**recipe.fields.get("compute", {}))
        self._rows = min(self._compute.batch, shard_clips(recipe))
        self._devices = tuple(devices)
        self._encoders: dict[int, Callable[[Sequence[str]], Encoded]] = {}

    def embed(self, records: Sequence[Record], place: Callable[[str], int]) -> list[Record]:
        """Records with `info["texts"]` -> the same with arrays; `place(key)` is a clip's place in its shard."""
        arrays: list[dict[str, Any]] = [{} for _ in records]
        for modality, backbone in self._backbones.items():
            texts = {place(record.key): record.info["texts"][modality] for record in records}
            embedded = (
                self._in_batches(backbone, texts)
                if hasattr(backbone, "module")
                else _at_once(backbone, texts)
            )
            for record, found in zip(records, arrays, strict=True):
                tokens, mask = embedded[place(record.key)]
                found |= stored({f"{modality}_caption": tokens}, self._dtype)
                found[f"{modality}_caption_mask"] = mask
        return [Record(r.key, found, r.info) for r, found in zip(records, arrays, strict=True)]

    def _in_batches(self, backbone: TextBackbone, texts: Mapping[int, str]) -> dict[int, Encoded]:
        """Texts by place in a shard -> tokens and mask by place, from batches of one size with fixed rows."""
        encode = self._encoder(backbone)
        embedded: dict[int, Encoded] = {}
        for start in sorted({at - at % self._rows for at in texts}):
            places = range(start, start + self._rows)
            tokens, masks = encode([texts.get(at, "") for at in places])
            embedded |= {at: (tokens[at - start], masks[at - start]) for at in places if at in texts}
        return embedded

    def _encoder(self, backbone: TextBackbone) -> Callable[[Sequence[str]], Encoded]:
        """`backbone.encode` on a device; the backbone is placed there once."""
        if id(backbone) not in self._encoders:
            from caeav.pipeline.extract.device.network import text_encoder

            self._encoders[id(backbone)] = text_encoder(backbone, self._devices, self._compute)
        return self._encoders[id(backbone)]


def _at_once(backbone: TextBackbone, texts: Mapping[int, str]) -> dict[int, Encoded]:
    tokens, masks = backbone.encode(list(texts.values()))
    return dict(zip(texts, zip(tokens, masks, strict=True), strict=True))
