"""One media file through the recipes of existing stores, for prediction; nothing is stored.

The components are built anew from the recipes and must describe themselves as they did then, or tokens would
silently differ from those a model was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.errors import CaeavError
from caeav.manifests.keys import slug
from caeav.pipeline.caption import Embedder
from caeav.pipeline.decode.pool import WorkerPool
from caeav.pipeline.recipes import check_recipe, decoder_remark
from caeav.pipeline.stage import SETUP, unfit
from caeav.pipeline.store import Recipe, Record
from caeav.pipeline.summary import DEFAULT_DEADLINE_S
from caeav.pipeline.worker import FRAMES, worker_settings


class Processed(NamedTuple):
    """One file's tokens, its captions when a caption recipe was given, and its frames uint8 `[T, H, W, 3]`."""

    tokens: Record
    captions: Record | None
    frames: NDArray[np.uint8]


def process_file(
    path: Path,
    token_recipe: Recipe,
    caption_recipe: Recipe | None = None,
    start_s: float = 0.0,
    deadline_s: float = DEFAULT_DEADLINE_S,
) -> Processed:
    """Decode `path` from `start_s` and make what the stores of these recipes hold for a clip.

    Runs in killable child processes. Raises `CaeavError` when the file is missing or cannot be decoded, or when a
    component is no longer what its recipe says, naming the fields. Another version of the decoder is no error; it
    is said in the record's notes (`decoder_version`).
    """
    if not path.is_file():
        raise CaeavError(f"no file {path}", hint="give the path of a media file")
    for recipe in (token_recipe, caption_recipe):
        if recipe is not None:
            check_recipe(recipe)
    arrays, info = _run(path, token_recipe, start_s, deadline_s, keep_frames=True)
    frames = arrays.pop(FRAMES)
    tokens = _sound(Record(slug(path.stem), arrays, info))
    if caption_recipe is None:
        return Processed(tokens, None, frames)
    _, info = _run(path, caption_recipe, start_s, deadline_s, keep_frames=False)
    captions = Embedder(caption_recipe).embed([Record(tokens.key, {}, info)])[0]
    return Processed(tokens, _sound(captions), frames)


def _run(
    path: Path, recipe: Recipe, start_s: float, deadline_s: float, *, keep_frames: bool
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    settings = worker_settings(recipe, keep_frames=keep_frames)
    with WorkerPool(SETUP, settings, workers=1, deadline_s=deadline_s) as pool:
        [outcome] = pool.map([{"id": path.name, "path": str(path), "start_s": start_s}])
    if outcome.failure is not None:
        raise CaeavError(
            f"{path}: {outcome.failure.reason}",
            hint="choose another file or start; caeav doctor shows which decoders work here",
        )
    info = dict(outcome.info)
    remark = decoder_remark(recipe)
    if remark:
        info["notes"] = [*info["notes"], {"code": "decoder_version", "detail": remark}]
    return dict(outcome.arrays), info


def _sound(record: Record) -> Record:
    reason = unfit(record)
    if reason:
        raise CaeavError(
            f"{record.key}: {reason}", hint="the file is decoded to something no backbone can use"
        )
    return record
