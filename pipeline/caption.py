"""Stage one, second half: media files to a store of captions, their texts and their token embeddings.

Shapes: `W` caption tokens, `C` channels. Texts are written beside the decoder and embedded here, a shard at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from caeav.manifests.clip import Manifest
from caeav.manifests.home import Home
from caeav.pipeline.recipes import CaptionOptions, caption_recipe, text_parts
from caeav.pipeline.stage import run_stage
from caeav.pipeline.store import Recipe, Record
from caeav.pipeline.summary import Remark, Report, RunOptions, StageSummary, unheard


def caption(
    manifest: Manifest,
    home: Home,
    options: CaptionOptions,
    run: RunOptions,
    report: Report,
    remark: Remark = unheard,
) -> StageSummary:
    """Write and embed one visual and one audio caption of every clip; what is stored already is not done again.

    `report` is told after every clip, `remark` before any work. Raises `CaeavError` (unknown
    names, a changed recipe, a busy store).
    """
    recipe = caption_recipe(manifest.segments, manifest.segment_s, options)
    embedder = Embedder(recipe)
    return run_stage(manifest, recipe, home, run, embedder.embed, report, remark)


class Embedder:
    """Adds `visual_caption` and `audio_caption` `[W, C]` with their masks `[W]` to records that hold `texts`.

    An empty text (a missing modality) gives zeros and a mask without a true value.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._texts = text_parts(recipe)
        self._dtype = np.dtype(recipe.fields["dtype"])

    def embed(self, records: Sequence[Record]) -> list[Record]:
        """Records with `info["texts"]` -> the same with arrays; each text is embedded as if alone."""
        arrays: list[dict[str, Any]] = [{} for _ in records]
        for side, backbone in self._texts.items():
            tokens, mask = backbone.encode([record.info["texts"][side] for record in records])
            for i, found in enumerate(arrays):
                found[f"{side}_caption"] = tokens[i].astype(self._dtype)
                found[f"{side}_caption_mask"] = mask[i]
        return [Record(r.key, found, r.info) for r, found in zip(records, arrays, strict=True)]
