"""Features made elsewhere, a `.npy` file a clip and tap, as a store of tokens: published ones, or of networks that look
at more than a frame a segment (motion). No media is read and nothing is computed.

A clip's file is called after its key, its official name, its official id or its media file. It holds `[T, F]`,
`[T, L, F]`, or `[T n, F]` with `n` rows a segment. The recipe knows the files by one digest over all that belong to
clips of the manifest. Shapes: `T` segments, `L` tokens a segment, `F` features.
"""

from __future__ import annotations

import hashlib
import re
import tokenize
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.errors import CaeavError, choices
from caeav.manifests.home import Home
from caeav.manifests.keys import slug
from caeav.pipeline.beforehand import other_recipes
from caeav.pipeline.lookup import run_lookup
from caeav.pipeline.store import Quarantined, Recipe, Record
from caeav.pipeline.store.backend import DEFAULT_BACKEND, backend_field
from caeav.pipeline.store.dtypes import DTYPES, floats, stored
from caeav.pipeline.summary import Remark, Report, RunOptions, StageSummary, unheard

IMPORTED = "features"
"""Name of such a component in a recipe, and the stage that quarantine names."""
SUFFIX = ".npy"
MAX_BYTES = 1 << 28
TAP = re.compile(r"(visual|audio|motion)\.[A-Za-z0-9_]+")


class FeatureError(CaeavError):
    """Features that cannot be taken as they are."""


@dataclass(frozen=True)
class FeatureOptions:
    """`folders`: tap -> its folder of files; `name` of the store, by default the taps'; the rest as for extraction."""

    folders: Mapping[str, Path]
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
    files = {tap: _of_clips(manifest.clips, tap, folder) for tap, folder in options.folders.items()}
    recipe = _recipe(manifest, options, files)
    shapes = {
        tap["name"]: (manifest.segments, tap["tokens"], tap["channels"]) for tap in imported_taps(recipe)
    }

    def find(key: str) -> Record | Quarantined:
        arrays = {}
        for tap, folder in options.folders.items():
            if key not in files[tap]:
                return Quarantined(key, IMPORTED, f"no file: in {folder.name} for {tap}", 1)
            try:
                arrays[tap] = read_features(files[tap][key], manifest.segments, shapes[tap])
            except FeatureError as error:
                return Quarantined(key, IMPORTED, error.problem, 1)
        return Record(key, stored(arrays, options.dtype), _info(manifest.segments))

    for text in other_recipes(home, manifest.dataset, recipe):
        remark(text)
    return run_lookup(manifest, recipe, home, run, find, _as_it_is, report, remark)


def read_features(
    path: Path, segments: int, shape: tuple[int, int, int] | None = None
) -> NDArray[np.float32]:
    """One file as `[T, L, F]`, float32; raises `FeatureError` for what is no such file, or not of `shape`."""
    held = _mapped(path, segments)
    if shape is not None and held.shape != shape:
        raise FeatureError(
            f"shape {list(held.shape)} is not that of most clips, {list(shape)}: {path.name}",
            hint="all files of a folder must have one shape",
        )
    return np.array(held, dtype=np.float32)


def _mapped(path: Path, segments: int) -> NDArray[Any]:
    """A file's values as `[T, L, F]`, not read yet."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        # A mapped file cannot hold objects, nor claim more values than it has bytes.
        held = np.lib.format.open_memmap(path, mode="r")
        if held.dtype.kind not in "fiu":
            raise ValueError("holds no numbers")
    except (
        OSError,
        ValueError,
        TypeError,
        OverflowError,
        EOFError,
        SyntaxError,
        tokenize.TokenError,
    ) as error:
        text = " ".join(str(error).split())
        raise FeatureError(
            f"{path.name} cannot be read: {text}", hint="name a file that numpy.save wrote"
        ) from error
    rows = held.shape[0] if held.ndim else 0
    fits = held.ndim in (2, 3) and rows and rows % segments == 0 and (held.ndim == 2 or rows == segments)
    if not fits or 0 in held.shape:
        raise FeatureError(
            f"shape {list(held.shape)} does not fit: {path.name}",
            hint=f"allowed: [{segments}, F], [{segments}, L, F], or a multiple of {segments} rows of F",
        )
    return held.reshape(segments, -1, held.shape[-1])  # [T, L, F]


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
        arrays |= floats(stored({name: read_features(given[name], segments, shape)}, dtype))
    return Record(key, arrays, _info(max(segments for _, _, segments in dtypes.values())))


def _of_clips(clips: Sequence[Clip], tap: str, folder: Path) -> dict[str, Path]:
    """Key -> its file, for the clips that have one."""
    if not TAP.fullmatch(tap):
        raise FeatureError(
            f"{tap!r} is no name of a tap",
            hint="visual.NAME, audio.NAME or motion.NAME, e.g. motion.r2plus1d",
        )
    if not folder.is_dir():
        raise FeatureError(f"no folder {folder}", hint=f"--tap {tap}=FOLDER, with a {SUFFIX} file a clip")
    there = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == SUFFIX and path.is_file()}
    found = {}
    for clip in clips:
        names = (clip.key, clip.extra.get("name"), clip.extra.get("id"), Path(clip.media).stem)
        name = next((name for name in names if isinstance(name, str) and name in there), None)
        if name is not None:
            found[clip.key] = there[name]
    if not found:
        example = clips[0].key if clips else "KEY"
        raise FeatureError(
            f"none of the {len(there)} {SUFFIX} files in {folder} belongs to one of {len(clips)} clips",
            hint=f"call them after keys, official names or ids, or media files, as {example}{SUFFIX}",
        )
    return found


def _recipe(manifest: Manifest, options: FeatureOptions, files: Mapping[str, Mapping[str, Path]]) -> Recipe:
    if options.dtype not in DTYPES:
        raise CaeavError(f"unknown dtype {options.dtype!r}", hint=choices(options.dtype, DTYPES))
    if not files:
        raise FeatureError("no tap is asked for", hint="--tap motion.r2plus1d=FOLDER")
    sides: dict[str, dict[str, Any]] = {}
    for tap, found in files.items():
        shape = _usual_shape(found, manifest.segments)
        side = sides.setdefault(tap.partition(".")[0], {"name": IMPORTED, "taps": [], "files": {}})
        side["taps"].append({"name": tap, "tokens": shape[1], "channels": shape[2]})
        side["files"][tap] = {"source": options.folders[tap].name, "digest": _digest(found)}
    name = options.name or "-".join(tap.partition(".")[2] for tap in files)
    fields = {
        **sides,
        "segments": manifest.segments,
        "dtype": options.dtype,
        "shard_clips": options.shard_clips,
        **backend_field(options.backend),
    }
    return Recipe("tokens", slug(name.replace("_", "-")), fields)


def _usual_shape(files: Mapping[str, Path], segments: int) -> tuple[int, ...]:
    """`[T, L, F]` of most files that can be read; raises the last one's `FeatureError` when none can."""
    shapes: Counter[tuple[int, ...]] = Counter()
    last: FeatureError | None = None
    for path in files.values():
        try:
            shapes[_mapped(path, segments).shape] += 1
        except FeatureError as error:
            last = error
    if not shapes and last is not None:
        raise last
    return shapes.most_common(1)[0][0]


def _digest(files: Mapping[str, Path]) -> str:
    """Over the keys and the contents of their files, in the manifest's order."""
    whole = hashlib.sha256()
    for key, path in files.items():
        with path.open("rb") as file:
            whole.update(f"{key} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _info(segments: int) -> dict[str, Any]:
    """What is known of a clip whose media were not looked at."""
    return {"frames_ok": [True] * segments, "audio_ok": [True] * segments, "notes": [], "facts": {}}


def _as_it_is(records: Sequence[Record], place: object) -> list[Record]:
    return list(records)
