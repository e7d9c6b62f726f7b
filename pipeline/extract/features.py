"""Features made elsewhere as a store of tokens: published ones, or of networks that look at more than a frame a segment
(motion). No media is read and nothing is computed.

Which array is a clip's: `feature_match.py`; the files: `feature_files.py`. A clip's array is `[T, F]`, `[T, L, F]`,
`[T, h, w, F]`, or `[T n, F]` with `n` rows a segment. The recipe knows the files by one digest over all that belong to
clips of the manifest. Shapes: `T` segments, `L` tokens a segment (`h w` of a grid, row by row), `F` features.

The engine of stores made of what is there already, in files (captions, features) or in another store (texts). No
media is read.

The promises are those of `stage.py`: every clip ends stored or quarantined with the true reason, an interrupted run
goes on where it was, and the bytes are a function of manifest and recipe.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError, choices
from caeav.manifests.core.home import Home
from caeav.manifests.keys import slug
from caeav.pipeline.extract.collect import Complete, Filling, Gatherer, open_stores
from caeav.pipeline.extract.engine import other_recipes
from caeav.pipeline.extract.feature_files import MAX_BYTES, FeatureError, Held, numbers, one_array
from caeav.pipeline.extract.feature_match import Entry, match_features
from caeav.pipeline.extract.options import (
    Meter,
    Remark,
    Report,
    RunOptions,
    StageSummary,
    failure_limit,
    unheard,
)
from caeav.pipeline.store import Quarantined, Recipe, Record
from caeav.pipeline.store.backend import DEFAULT_BACKEND, backend_field
from caeav.pipeline.store.dtypes import DTYPES, floats, not_finite, stored

Find = Callable[[str], Record | Quarantined]
"""A clip's record by its key, or why there is none."""


def run_lookup(
    manifest: Manifest,
    recipe: Recipe,
    home: Home,
    run: RunOptions,
    find: Find,
    complete: Complete,
    report: Report,
    remark: Remark,
) -> StageSummary:
    """Make or finish the store of `recipe` for `manifest` below `home` from what `find` gives.

    Raises `CaeavError` where nothing can be done; KeyboardInterrupt passes through, and finished shards stay.
    """
    began = time.monotonic()
    limit = failure_limit(run.max_failed, len(manifest.clips))
    if not manifest.clips:
        raise CaeavError(f"data set {manifest.dataset!r} has no clips", hint="caeav manifest check")
    folder = home.stores / manifest.dataset
    with ExitStack() as stack:
        (store,) = open_stores(stack, folder, manifest, [(recipe, complete)], run, remark)
        writer, meter = store.writer, Meter({"writer": 1})
        for text in writer.remarks:
            remark(text)
        due = len(store.shard_of)
        _fill(store, find, report, meter)
        done = writer.finish()
        return StageSummary(
            path=writer.path,
            recipe=writer.recipe,
            stored=done.stored,
            expected=done.expected,
            bytes=done.bytes,
            quarantined=writer.quarantined,
            due=due,
            seconds=time.monotonic() - began,
            notes={},
            remarks=tuple(writer.remarks),
            max_failed=limit,
            busy_s=meter.seconds(),
            limit=meter.limit(),
        )


def _fill(store: Filling, find: Find, report: Report, meter: Meter) -> None:
    broken: list[BaseException] = []
    gatherer = Gatherer([store], report, meter, broken.append, keep=False)  # to find again is cheap
    try:
        gatherer.begin()
        for key in store.shard_of:
            if broken:
                break
            gatherer.settle(store, key, find(key))
    finally:
        gatherer.close()
    if broken:
        raise broken[0]


IMPORTED = "features"
"""Name of such a component in a recipe, and the stage that quarantine names."""
TAP = re.compile(r"(visual|audio|motion)\.[A-Za-z0-9_]+")


@dataclass(frozen=True)
class FeatureOptions:
    """`sources`: tap -> its folder, pattern or file (`match_features`); `name` of the store, by default the taps'; the
    rest as for extraction."""

    sources: Mapping[str, Path]
    name: str = ""
    dtype: str = "float16"
    shard_clips: int = 64
    backend: str = DEFAULT_BACKEND


def import_features(
    manifest: Manifest,
    home: Home,
    options: FeatureOptions,
    run: RunOptions,
    report: Report,
    remark: Remark = unheard,
) -> StageSummary:
    """Store the features of every clip; one without file, or whose file does not fit, ends in quarantine.

    Raises `CaeavError` when no clip has a file, or for names, formats and folders that are none.
    """
    for tap in options.sources:
        if not TAP.fullmatch(tap):
            raise FeatureError(
                f"{tap!r} is no name of a tap",
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

    for text in [text for found in matched.values() for text in found.remarks]:
        remark(text)
    for text in other_recipes(home, manifest.dataset, recipe):
        remark(text)
    return run_lookup(manifest, recipe, home, run, find, _as_it_is, report, remark)


def read_features(
    path: Path, segments: int, shape: tuple[int, int, int] | None = None, word: str = ""
) -> NDArray[np.float32]:
    """One clip's file as `[T, L, F]`, float32; `PATH#NAME` names one of several arrays, else it is called `word`.

    Raises `FeatureError` for what is no such file, or not of `shape`.
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


def tokens_shape(held: Held, segments: int, name: str) -> tuple[int, int, int]:
    """`(T, L, F)` of an array as it will be stored, its values unread; raises `FeatureError` for one that is none."""
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
            f"{name} cannot be read: larger than {MAX_BYTES} bytes", hint="give fewer tokens a segment"
        )
    return segments, math.prod(shape) // segments // shape[-1], shape[-1]


def _check_values(array: NDArray[np.float32], tap: str, dtype: str) -> None:
    """Raise for values that are no numbers, or too large for the format they are to be stored in."""
    wrong = not_finite(array)
    if wrong:
        raise FeatureError(f"{tap} has values not finite: {wrong} of {array.size}", hint="mend the features")
    largest = float(np.abs(array).max(initial=0.0))
    if dtype in ("float16", "int8") and largest > float(np.finfo(np.float16).max):
        raise FeatureError(
            f"{tap} has values too large for {dtype}, give --dtype bfloat16 or float32: up to {largest:.5g}",
            hint="--dtype bfloat16, or float32",
        )


def is_imported(recipe: Recipe) -> bool:
    """Whether a store of this recipe was imported, so that its tokens cannot be made of media."""
    return any(isinstance(x, Mapping) and x.get("name") == IMPORTED for x in recipe.fields.values())


def imported_taps(recipe: Recipe) -> list[dict[str, Any]]:
    """Name, tokens and channels of each tap of such a recipe."""
    parts = [x for x in recipe.fields.values() if isinstance(x, Mapping) and x.get("name") == IMPORTED]
    return [tap for part in parts for tap in part["taps"]]


def features_of(recipes: Sequence[Recipe], given: Mapping[str, Path], key: str) -> Record | None:
    """The record of one clip outside any data set for imported stores; None when there is no such store.

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
            hint=f"it reads {', '.join(dtypes)}" if dtypes else "leave --features away",
        )
    missing = [tap for tap in dtypes if tap not in given]
    if missing:
        raise FeatureError(
            f"this run reads {', '.join(missing)}, imported from files, which cannot be made of media",
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
    if options.dtype not in DTYPES:
        raise CaeavError(f"unknown dtype {options.dtype!r}", hint=choices(options.dtype, DTYPES))
    if not files:
        raise FeatureError("no tap is asked for", hint="--tap motion.r2plus1d=FOLDER")
    modalities: dict[str, dict[str, Any]] = {}
    for tap, found in files.items():
        shape = _usual_shape(found, manifest.segments)
        modality = modalities.setdefault(tap.partition(".")[0], {"name": IMPORTED, "taps": [], "files": {}})
        modality["taps"].append({"name": tap, "tokens": shape[1], "channels": shape[2]})
        modality["files"][tap] = {"source": sources[tap], "digest": _digest(found)}
    name = options.name or "-".join(tap.partition(".")[2] for tap in files)
    fields = {
        **modalities,
        "segments": manifest.segments,
        "dtype": options.dtype,
        "shard_clips": options.shard_clips,
        **backend_field(options.backend),
    }
    return Recipe("tokens", slug(name.replace("_", "-")), fields)


def _usual_shape(files: Mapping[str, Entry], segments: int) -> tuple[int, int, int]:
    """`[T, L, F]` of most features that can be read; raises the last one's `FeatureError` when none can."""
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
    """Over the keys and where their features lie, in the manifest's order."""
    whole = hashlib.sha256()
    for key, entry in files.items():
        whole.update(f"{key} {entry.digest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _info(segments: int) -> dict[str, Any]:
    """What is known of a clip whose media were not looked at."""
    return {"frames_ok": [True] * segments, "audio_ok": [True] * segments, "notes": [], "facts": {}}


def _as_it_is(records: Sequence[Record], place: object) -> list[Record]:
    return list(records)
