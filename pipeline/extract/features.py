"""Features made elsewhere as a store of tokens: published ones, or those of networks for motion, which need several
frames per segment. No media is read and nothing is computed.

`feature_match.py` finds a clip's array, `feature_files.py` reads the files. An array is `[T, F]`, `[T, L, F]`,
`[T, h, w, F]`, or `[T n, F]` with `n` rows per segment. The recipe knows the files by one digest over all that belong
to clips of the manifest. Shapes: `T` segments, `L` tokens per segment (`h w` of a grid, row by row), `F` features.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import Manifest
from caeav.manifests.keys import slug
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.engine import run_lookup
from caeav.pipeline.extract.feature_files import MAX_BYTES, FeatureError, FileArray, numbers, one_array
from caeav.pipeline.extract.feature_match import Entry, match_features
from caeav.pipeline.extract.jobs import keep_as_is, known_dtype
from caeav.pipeline.extract.preflight import other_recipes
from caeav.pipeline.extract.progress import StageSummary
from caeav.pipeline.store import Quarantined, Recipe, Record
from caeav.pipeline.store.backend import DEFAULT_BACKEND, backend_field
from caeav.pipeline.store.dtypes import floats, not_finite, stored

IMPORTED = "features"
"""Name of an imported component in a recipe, and the stage that quarantine names."""
TAP = re.compile(r"(visual|audio|motion)\.[A-Za-z0-9_]+")


@dataclass(frozen=True)
class FeatureOptions:
    """`sources`: tap -> folder, pattern or file (see `match_features`). `name`: of the store, by default the taps'."""

    sources: Mapping[str, Path]
    name: str = ""
    dtype: str = "float16"
    shard_clips: int = 64
    backend: str = DEFAULT_BACKEND


def import_features(context: RunContext, options: FeatureOptions) -> StageSummary:
    """Store the features of every clip; one without a file, or whose file does not fit, is quarantined.

    Raises `CaeavError` when no clip has a file, or for names, formats and folders that are none.
    """
    manifest = context.manifest
    for tap in options.sources:
        if not TAP.fullmatch(tap):
            raise FeatureError(
                f"{tap!r} is not a tap's name",
                hint="visual.NAME, audio.NAME or motion.NAME, e.g. motion.r2plus1d",
            )
    matched = {tap: match_features(manifest, tap, given) for tap, given in options.sources.items()}
    files = {tap: found.entries for tap, found in matched.items()}
    recipe = _recipe(manifest, options, files, {tap: found.source for tap, found in matched.items()})
    shapes = {
        tap["name"]: (manifest.segments, tap["tokens"], tap["channels"]) for tap in imported_taps(recipe)
    }

    def find(key: str) -> Record | Quarantined:
        arrays = {}
        for tap, found in matched.items():
            if key not in found.entries:
                return Quarantined(key, IMPORTED, f"no file: in {found.source} for {tap}", 1)
            try:
                arrays[tap] = _read(found.entries[key], manifest.segments, shapes[tap])
                _check_values(arrays[tap], tap, options.dtype)
            except FeatureError as error:
                return Quarantined(key, IMPORTED, error.problem, 1)
        return Record(key, stored(arrays, options.dtype), _info(manifest.segments))

    remarks = [text for found in matched.values() for text in found.remarks]
    for text in [*remarks, *other_recipes(context, recipe)]:
        context.remark(text)
    return run_lookup(context, recipe, find, keep_as_is)


def read_features(
    path: Path, segments: int, shape: tuple[int, int, int] | None = None, word: str = ""
) -> NDArray[np.float32]:
    """One clip's file as `[T, L, F]`, float32; `PATH#NAME` names one of several arrays, else `word` does.

    Raises `FeatureError` for a file that has no such array, or not of `shape`.
    """
    place, _, array = str(path).partition("#")
    return _read(Entry(Path(place).name, lambda: one_array(Path(place), array, word), str), segments, shape)


def _read(entry: Entry, segments: int, shape: tuple[int, int, int] | None) -> NDArray[np.float32]:
    held = entry.find()
    wanted = tokens_shape(held, segments, entry.name)
    if shape is not None and wanted != shape:
        raise FeatureError(
            f"shape {list(wanted)} is not that of most clips, {list(shape)}: {entry.name}",
            hint="all features of a tap must have one shape",
        )
    with np.errstate(over="ignore"):
        return np.array(numbers(held, entry.name), dtype=np.float32).reshape(wanted)


def tokens_shape(held: FileArray, segments: int, name: str) -> tuple[int, int, int]:
    """`(T, L, F)` of an array as it will be stored, its values unread; raises `FeatureError` where it does not fit."""
    if held.kind not in "fiu":
        raise FeatureError(f"{name} cannot be read: it holds no numbers", hint="give an array of numbers")
    shape = held.shape[1:] if held.shape[:1] == (1,) and segments > 1 and len(held.shape) > 2 else held.shape
    rows = shape[0] if shape else 0
    fits = len(shape) in (2, 3, 4) and rows and rows % segments == 0 and (len(shape) == 2 or rows == segments)
    why = ""
    if len(shape) == 2 and shape[1] == segments != shape[0]:
        why = f"looks transposed, [F, {segments}]"
    elif len(shape) == 4 and shape[2] == shape[3] != shape[1]:
        why = f"looks like [{segments}, F, h, w], features before places"
    if not fits or why or 0 in shape:
        raise FeatureError(
            f"shape {list(held.shape)} {why or 'does not fit'}: {name}",
            hint=f"allowed: [{segments}, F], [{segments}, L, F], [{segments}, h, w, F], or a multiple of "
            f"{segments} rows of F" + (", so turn its axes" if why else ""),
        )
    if math.prod(shape) * 4 > MAX_BYTES:
        raise FeatureError(
            f"{name} cannot be read: larger than {MAX_BYTES} bytes", hint="give fewer tokens per segment"
        )
    return segments, math.prod(shape) // segments // shape[-1], shape[-1]


def _check_values(array: NDArray[np.float32], tap: str, dtype: str) -> None:
    """Raises `FeatureError` for values that are not finite, or too large for the number format of the store."""
    wrong = not_finite(array)
    if wrong:
        raise FeatureError(f"{tap} has values not finite: {wrong} of {array.size}", hint="fix the features")
    largest = float(np.abs(array).max(initial=0.0))
    if dtype in ("float16", "int8") and largest > float(np.finfo(np.float16).max):
        raise FeatureError(
            f"{tap} has values too large for {dtype}, give --dtype bfloat16 or float32: up to {largest:.5g}",
            hint="--dtype bfloat16, or float32",
        )


def is_imported(recipe: Recipe) -> bool:
    """Whether a store of this recipe was imported, so that its tokens cannot be made from media."""
    return any(isinstance(x, Mapping) and x.get("name") == IMPORTED for x in recipe.fields.values())


def imported_taps(recipe: Recipe) -> list[dict[str, Any]]:
    """Name, tokens and channels of each tap of an imported store."""
    parts = [x for x in recipe.fields.values() if isinstance(x, Mapping) and x.get("name") == IMPORTED]
    return [tap for part in parts for tap in part["taps"]]


def features_of(recipes: Sequence[Recipe], given: Mapping[str, Path], key: str) -> Record | None:
    """What imported stores would hold for a clip outside any data set; None without such stores.

    `given`: tap -> file. Raises `FeatureError` when a tap has no file, or a file no tap.
    """
    dtypes = {
        tap["name"]: (tap, r.fields["dtype"], r.fields["segments"])
        for r in recipes
        for tap in imported_taps(r)
    }
    unknown = sorted(set(given) - set(dtypes))
    if unknown:
        raise FeatureError(
            f"this run reads no imported {', '.join(unknown)}",
            hint=f"it reads {', '.join(dtypes)}" if dtypes else "leave out --features",
        )
    missing = [tap for tap in dtypes if tap not in given]
    if missing:
        raise FeatureError(
            f"this run reads {', '.join(missing)}, imported from files, which cannot be made from media",
            hint="give the clip's: " + " ".join(f"--features {tap}=FILE.npy" for tap in missing),
        )
    if not dtypes:
        return None
    arrays: dict[str, NDArray[Any]] = {}
    for name, (tap, dtype, segments) in dtypes.items():
        shape = (segments, tap["tokens"], tap["channels"])
        arrays |= floats(
            stored({name: read_features(given[name], segments, shape, name.partition(".")[2])}, dtype)
        )
    return Record(key, arrays, _info(max(segments for _, _, segments in dtypes.values())))


def _recipe(
    manifest: Manifest,
    options: FeatureOptions,
    files: Mapping[str, Mapping[str, Entry]],
    sources: Mapping[str, str],
) -> Recipe:
    dtype = known_dtype(options.dtype)
    if not files:
        raise FeatureError("no tap is asked for", hint="--tap motion.r2plus1d=FOLDER")
    parts: dict[str, dict[str, Any]] = {}
    for tap, found in files.items():
        shape = _usual_shape(found, manifest.segments)
        part = parts.setdefault(tap.partition(".")[0], {"name": IMPORTED, "taps": [], "files": {}})
        part["taps"].append({"name": tap, "tokens": shape[1], "channels": shape[2]})
        part["files"][tap] = {"source": sources[tap], "digest": _digest(found)}
    name = options.name or "-".join(tap.partition(".")[2] for tap in files)
    fields = {
        **parts,
        "segments": manifest.segments,
        "dtype": dtype,
        "shard_clips": options.shard_clips,
        **backend_field(options.backend),
    }
    return Recipe("tokens", slug(name.replace("_", "-")), fields)


def _usual_shape(files: Mapping[str, Entry], segments: int) -> tuple[int, int, int]:
    """The `[T, L, F]` that most readable features have; raises the last one's `FeatureError` when none is readable."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    last: FeatureError | None = None
    for entry in files.values():
        try:
            shapes[tokens_shape(entry.find(), segments, entry.name)] += 1
        except FeatureError as error:
            last = error
    if not shapes and last is not None:
        raise last
    return shapes.most_common(1)[0][0]


def _digest(files: Mapping[str, Entry]) -> str:
    """Digest over the keys and the features of each, in the manifest's order."""
    whole = hashlib.sha256()
    for key, entry in files.items():
        whole.update(f"{key} {entry.digest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _info(segments: int) -> dict[str, Any]:
    """A record's info for a clip whose media were not read."""
    return {"frames_ok": [True] * segments, "audio_ok": [True] * segments, "notes": [], "facts": {}}
