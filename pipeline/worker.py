"""What runs inside a killable child process: decode one clip, then tokens or captions of it.

`setup` is called once a child with JSON settings and returns the function that answers requests; nothing here
touches the store. A missing modality becomes silence or black frames and a note, so the clip is kept and told.
Shapes: `T` segments, `L` tokens, `C` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.errors import CaeavError
from caeav.pipeline.decode.media import DecodedClip, Decoder, Note, Sampling
from caeav.pipeline.recipes import CaptionParts, TokenParts, caption_parts, token_parts
from caeav.pipeline.store.recipe import Recipe

BLACK_SIDE = 64
FRAMES = "frames"
"""Name under which the decoded frames come back when they are asked for."""

Answer = tuple[dict[str, NDArray[Any]], dict[str, Any]]


def worker_settings(recipe: Recipe, keep_frames: bool = False) -> dict[str, Any]:
    """Settings for `setup`: the recipe, and whether decoded frames are wanted back (uint8 `[T, H, W, 3]`)."""
    return {
        "kind": recipe.kind,
        "name": recipe.name,
        "fields": dict(recipe.fields),
        "keep_frames": keep_frames,
    }


class ComputeError(CaeavError):
    """A decoded clip could not be turned into tokens or captions; `stage` is what quarantine names."""

    stage = "compute"


def setup(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Answer]:
    """Build a recipe's components; the function returned answers `{"path": ..., "start_s": ...}`.

    Raises `CaeavError` when the components are no longer what the recipe says.
    """
    recipe = Recipe(settings["kind"], settings["name"], settings["fields"])
    parts = token_parts(recipe) if recipe.kind == "tokens" else caption_parts(recipe)
    dtype = np.dtype(recipe.fields["dtype"])

    def answer(request: Mapping[str, Any]) -> Answer:
        clip = _decode(parts.decoder, request["path"], request["start_s"], parts.sampling)
        try:
            arrays, more = (
                _tokens(parts, clip, dtype) if isinstance(parts, TokenParts) else _captions(parts, clip)
            )
        except Exception as error:
            raise ComputeError(f"{type(error).__name__}: {error}") from error
        if settings["keep_frames"]:
            arrays[FRAMES] = _frames(clip, parts.sampling)
        return arrays, {**_record_info(clip), **more}

    return answer


def _decode(decoder: Decoder, path: str, start_s: float, sampling: Sampling) -> DecodedClip:
    """Decode, and see that a modality that is missing is said so in the notes."""
    clip = decoder.decode(path, start_s, sampling)
    said = {note.code for note in clip.notes}
    missing = [Note("no_video", "the file has no video: black frames")] if clip.frames is None else []
    missing += [Note("no_audio", "the file has no sound: silence")] if clip.wave is None else []
    return replace(clip, notes=[*clip.notes, *(note for note in missing if note.code not in said)])


def _frames(clip: DecodedClip, sampling: Sampling) -> NDArray[np.uint8]:
    if clip.frames is not None:
        return clip.frames
    return np.zeros((sampling.segments, BLACK_SIDE, BLACK_SIDE, 3), dtype=np.uint8)


def _tokens(parts: TokenParts, clip: DecodedClip, dtype: np.dtype[Any]) -> Answer:
    """All taps `[T, L, C]` of a clip."""
    sampling = parts.sampling
    wave = np.zeros(sampling.samples, dtype=np.float32) if clip.wave is None else clip.wave
    if wave.shape != (sampling.samples,):
        raise ValueError(f"the decoder gave {wave.shape[0]} samples instead of {sampling.samples}")
    windows = wave.reshape(sampling.segments, sampling.segment_samples)
    found = parts.visual.tokens([_frames(clip, sampling)])[0] | parts.audio.tokens([windows])[0]
    with np.errstate(over="ignore"):  # what does not fit the dtype becomes infinite, which is refused later
        return {name: x.astype(dtype) for name, x in found.items()}, {}


def _captions(parts: CaptionParts, clip: DecodedClip) -> Answer:
    """The texts of a clip; they are embedded later, many at a time."""
    texts = {"visual": parts.visual.caption([clip])[0], "audio": parts.audio.caption([clip])[0]}
    return {}, {"texts": texts}


def _record_info(clip: DecodedClip) -> dict[str, Any]:
    """What the record says besides its arrays; JSON values."""
    return {
        "frames_ok": [bool(ok) for ok in clip.frames_ok],
        "audio_ok": [bool(ok) for ok in clip.audio_ok],
        "notes": [asdict(note) for note in clip.notes],
        "facts": dict(clip.facts),
    }
