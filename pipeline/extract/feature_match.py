"""Which feature belongs to which clip: from a folder, a pattern or a file of all clips to one array per clip.

A clip is known by its key, its official name, its official id or its media file. Features carry the same names, as
files of a folder, arrays of an archive or rows with a list of names; or the names with one shared ending, such as
`_vggish`. AVE's own files, with rows in the order of `Annotations.txt`, are recognised by their shape, and their splits
are compared with the `*_order.h5` beside them. Whatever is ambiguous is refused, naming what is there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.util import counted, file_sha256, some_of
from caeav.pipeline.extract.feature_files import (
    FORMATS,
    SHOWN,
    FeatureError,
    FileArray,
    arrays_in,
    numbers,
    one_array,
    texts_in,
    texts_of,
)

ORDERED_BY = "Annotations.txt"
IDS = ("ids", "names", "keys", "video_ids", "id", "name", "video_id", "videos", "filenames")
"""Names for lists of the names of rows: arrays beside the features, or `<word>.txt` beside the file."""
_SIDECARS = ("_fps", "_timestamps_ms")
"""Endings of other arrays that feature extractors write."""
_ENDING = re.compile(r"[_\-.][A-Za-z][\w.\-]*")


@dataclass(frozen=True)
class Entry:
    """One clip's feature: `name` for messages, `find` returns its array, `digest` that of its file and place there."""

    name: str
    find: Callable[[], FileArray]
    digest: Callable[[], str]


@dataclass(frozen=True)
class Matched:
    """`entries`: features by key; `source`: their name in a recipe; `remarks`: what a user should know."""

    entries: Mapping[str, Entry]
    source: str
    remarks: tuple[str, ...] = ()


def match_features(manifest: Manifest, tap: str, given: Path) -> Matched:
    """The features in `given` of a manifest's clips; raises `FeatureError` for none, or where it is ambiguous."""
    path, _, array = str(given).partition("#")
    place, word = Path(path).absolute(), tap.partition(".")[2]
    if "*" in place.name:
        return _of_pattern(manifest, tap, place, array, word)
    if place.is_dir():
        return _of_folder(manifest, tap, place, array, word)
    if place.is_file() and place.suffix.lower() in FORMATS:
        return _of_file(manifest, tap, place, array, word)
    if place.is_file():
        raise FeatureError(f"{place.name} is of no known format", hint=f"give one of {', '.join(FORMATS)}")
    raise FeatureError(
        f"no folder {place}",
        hint=f"--tap {tap}=FOLDER with one file per clip, FOLDER/*_rgb.npy, or a file of all clips",
    )


def file_entry(path: Path, array: str = "", word: str = "") -> Entry:
    """The feature in a file of one clip."""
    return Entry(path.name, lambda: one_array(path, array, word), lambda: file_sha256(path))


def clip_names(clips: Sequence[Clip]) -> tuple[dict[str, list[str]], list[str]]:
    """Each clip's names by its key, the best first; and the names left out because several clips share them."""
    names: dict[str, list[str]] = {}
    times: dict[str, set[tuple[float, float]]] = {}
    for clip in clips:
        every = (clip.key, clip.extra.get("name"), clip.extra.get("id"), Path(clip.media).stem)
        names[clip.key] = list(dict.fromkeys(name for name in every if isinstance(name, str) and name))
        for name in names[clip.key]:
            times.setdefault(name, set()).add((clip.start_s, clip.seconds))
    shared = {name for name, found in times.items() if len(found) > 1}
    return {key: [n for n in found if n == key or n not in shared] for key, found in names.items()}, sorted(
        shared
    )


def _of_pattern(manifest: Manifest, tap: str, place: Path, array: str, word: str) -> Matched:
    before, _, after = place.name.partition("*")
    if "*" in after or not place.parent.is_dir():
        raise FeatureError(
            f"no files {place}", hint=f"--tap {tap}=FOLDER/*_rgb.npy, where * stands for a clip's name"
        )
    there = {
        path.name[len(before) : len(path.name) - len(after)]: path
        for path in sorted(place.parent.iterdir())
        if path.is_file()
        and path.suffix.lower() in FORMATS
        and path.name.startswith(before)
        and path.name.endswith(after)
        and len(path.name) > len(before) + len(after)
    }
    names, shared = clip_names(manifest.clips)
    found = _by_name(names, there)
    if not found:
        raise _nothing(manifest, place.parent, [path.name for path in there.values()], shared)
    return _matched(
        manifest, tap, {k: file_entry(p, array, word) for k, p in found.items()}, place.parent.name
    )


def _of_folder(manifest: Manifest, tap: str, folder: Path, array: str, word: str) -> Matched:
    files = [
        path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".part-")
    ]
    readable = [path for path in files if path.suffix.lower() in FORMATS]
    names, shared = clip_names(manifest.clips)
    groups = _groups(names, [(path.stem, path.suffix.lower(), path) for path in readable])
    if not groups:
        raise _nothing(manifest, folder, [path.name for path in files], shared)
    ending, suffix = _choose_group(groups, word, folder, tap)
    found = groups[ending, suffix]
    remarks = [f"{tap}: files called NAME{ending}{suffix} in {folder.name}"] if ending else []
    taken = set(found.values())
    left = [path.name for path in readable if path not in taken and path.suffix.lower() == suffix]
    remarks += _left(tap, "file", folder, left)
    return _matched(
        manifest, tap, {k: file_entry(p, array, word) for k, p in found.items()}, folder.name, remarks
    )


def _of_file(manifest: Manifest, tap: str, path: Path, array: str, word: str) -> Matched:
    """A file of all clips: one named array per clip, or one array whose rows are clips."""
    held = arrays_in(path)
    names, shared = clip_names(manifest.clips)
    sha = cache(lambda: file_sha256(path))
    if not array:
        groups = _groups(names, [(name, "", name) for name, x in held.items() if x.kind in "fiu"])
        if groups:
            ending, _ = _choose_group(groups, word, path, tap)
            entries = {
                key: _array_entry(path, name, held[name], sha) for key, name in groups[ending, ""].items()
            }
            left = [name for name in held if name not in groups[ending, ""].values()]
            return _matched(manifest, tap, entries, path.name, _left(tap, "array", path, left))
    lists = {name: texts for name in IDS if name in held and (texts := texts_of(held[name], path.name))}
    features = one_array(path, array, word)
    rows, ids_from = _rows(manifest, path, features, lists)
    if rows is None:
        raise FeatureError(
            f"{path.name} holds one array {list(features.shape)}, and no names of its "
            f"{features.shape[0] if features.shape else 0} rows",
            hint=f"put the names of its clips, one line per row, beside it as {path.stem}_ids.txt or ids.txt",
        )
    known = {name for every in names.values() for name in every}
    called = [name if name in known else Path(name).stem for name in rows]  # lists of media files, too
    found = _by_name(names, {name: i for i, name in enumerate(called)})
    if not found:
        raise _nothing(manifest, path, rows, shared)
    entries = {key: _row_entry(path, i, features, f"#{array}[{i}]", sha) for key, i in found.items()}
    order = f"names of {ids_from}" if ids_from else f"the order of {ORDERED_BY}"
    taken = set(found.values())
    left = [name for i, name in enumerate(rows) if i not in taken]
    remarks = [f"{tap}: rows of {path.name} by {order}", *_left(tap, "row", path, left)]
    return _matched(manifest, tap, entries, path.name, remarks)


def _rows(
    manifest: Manifest, path: Path, features: FileArray, lists: Mapping[str, list[str]]
) -> tuple[list[str] | None, str]:
    """Names of the rows and where they come from; the keys and an empty text where rows are in the manifest's order."""
    count = features.shape[0] if features.shape else 0
    for name, found in lists.items():
        _count_fits(found, count, f"{path.name}#{name}", path)
        return found, f"{path.name}#{name}"
    beside = [path.with_name(f"{path.stem}{end}") for end in (*(f"_{word}.txt" for word in IDS), ".txt")]
    for place in [*beside, *(path.with_name(f"{word}.txt") for word in IDS)]:
        if place.is_file():
            found = texts_in(place)
            _count_fits(found, count, place.name, path)
            return found, place.name
    if ORDERED_BY in manifest.sources and len(features.shape) > 2 and count == len(manifest.clips):
        _compare_orders(manifest, path)
        return [clip.key for clip in manifest.clips], ""
    if ORDERED_BY in manifest.sources and len(features.shape) > 2:
        raise FeatureError(
            f"{path.name} has {count} rows {list(features.shape)}, {ORDERED_BY} has {len(manifest.clips)} clips",
            hint="give the data set's own file, or the names of its rows in ids.txt beside it",
        )
    return None, ""


def _count_fits(names: Sequence[str], count: int, source: str, path: Path) -> None:
    if len(names) != count:
        raise FeatureError(
            f"{source} names {len(names)} rows, {path.name} has {count}",
            hint="give one name per row, in their order",
        )
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise FeatureError(
            f"{source} names {some_of(twice, SHOWN)} twice", hint="give each row a name of its own"
        )


def _compare_orders(manifest: Manifest, path: Path) -> None:
    """Rows that AVE's authors assign to a split must belong to clips of that split here, or the order differs."""
    for split in ("train", "val", "test"):
        place = path.with_name(f"{split}_order.h5")
        if not place.is_file():
            continue
        order = numbers(one_array(place, word="order"), place.name).ravel()
        inside = order[(order >= 0) & (order < len(manifest.clips))]
        wrong = [manifest.clips[int(i)].key for i in inside if manifest.clips[int(i)].split != split]
        if len(inside) != len(order) or wrong:
            raise FeatureError(
                f"{place.name} and the data set differ: "
                + (
                    f"{len(wrong)} clips are not in {split}, e.g. {wrong[0]}"
                    if wrong
                    else "rows that are not there"
                ),
                hint=f"give the features and the {ORDERED_BY} of the same release",
            )


def _left(tap: str, what: str, place: Path, names: Sequence[str]) -> list[str]:
    """A remark on entries that belong to no clip; nothing when there are none."""
    return (
        [f"{tap}: {counted(len(names), what)} in {place.name} not taken: {some_of(names, SHOWN)}"]
        if names
        else []
    )


def _array_entry(path: Path, name: str, held: FileArray, sha: Callable[[], str]) -> Entry:
    return Entry(f"{path.name}#{name}", lambda: held, lambda: f"{sha()}#{name}")


def _row_entry(path: Path, i: int, features: FileArray, place: str, sha: Callable[[], str]) -> Entry:
    return Entry(f"{path.name}, row {i}", lambda: _row_of(features, i), lambda: f"{sha()}{place}")


def _row_of(features: FileArray, i: int) -> FileArray:
    shape = features.shape[1:]
    return FileArray(shape, features.kind, lambda: np.asarray(features.row(i)), _no_row)


def _no_row(_: int) -> NDArray[Any]:
    raise NotImplementedError


Group = dict[tuple[str, str], dict[str, Any]]


def _groups(names: Mapping[str, Sequence[str]], there: Iterable[tuple[str, str, Any]]) -> Group:
    """(ending, format) -> key -> value, for values named NAME, or NAME with an ending that has a letter in it."""
    known = {name for found in names.values() for name in found}
    by: dict[tuple[str, str], dict[str, Any]] = {}
    for stem, suffix, value in there:
        cuts = [stem, *(stem[:i] for i in range(len(stem) - 1, 0, -1) if _ENDING.fullmatch(stem[i:]))]
        name = next((cut for cut in cuts if cut in known), None)
        if name is not None and stem[len(name) :] not in _SIDECARS:
            by.setdefault((stem[len(name) :], suffix), {})[name] = value
    return {group: found for group, held in by.items() if (found := _by_name(names, held))}


def _by_name(names: Mapping[str, Sequence[str]], there: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: there[name]
        for key, every in names.items()
        if (name := next((name for name in every if name in there), None)) is not None
    }


def _choose_group(groups: Group, word: str, place: Path, tap: str) -> tuple[str, str]:
    """The group that is meant: the only one, the one without ending, or the one named like the tap."""
    if len(groups) == 1:
        return next(iter(groups))
    for fit in (lambda ending: not ending, lambda ending: ending[1:].lower() == word.lower()):
        fitting = [group for group in groups if fit(group[0])]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            break
    found = some_of(
        (f"NAME{ending}{suffix} ({len(held)})" for (ending, suffix), held in groups.items()), SHOWN
    )
    ending, suffix = next(iter(groups))
    raise FeatureError(
        f"{place} holds several features of a clip: {found}",
        hint=f"say which: --tap {tap}={place}/*{ending}{suffix}"
        if suffix
        else f"say which: --tap {tap}={place}#NAME",
    )


def _nothing(manifest: Manifest, place: Path, there: Sequence[str], shared: Sequence[str]) -> FeatureError:
    formats = Counter(Path(name).suffix or "no ending" for name in there)
    found = ", ".join(f"{n} {suffix}" for suffix, n in formats.most_common(5))
    shown = (
        f" ({found}: {some_of(there[:4], SHOWN)})"
        if there and place.is_dir()
        else f" ({some_of(there[:4], SHOWN)})"
    )
    names, _ = clip_names(manifest.clips[:1])
    example = next(iter(names.values()), ["KEY"])
    also = f"; {some_of(shared[:3])} would stand for several times of a file" if shared else ""
    kinds = "" if place.is_file() else f", and one of {', '.join(FORMATS)}"
    return FeatureError(
        f"none of the {counted(len(there), 'name' if place.is_file() else 'file')} in {place} belongs to one of "
        f"{counted(len(manifest.clips), 'clip')}{shown if there else ''}",
        hint=f"name them after keys, official names or ids, or media files (here {' or '.join(example)}){kinds}{also}",
    )


def _matched(
    manifest: Manifest, tap: str, entries: dict[str, Entry], source: str, remarks: Sequence[str] = ()
) -> Matched:
    absent = len(manifest.clips) - len(entries)
    remarks = [*remarks]
    if absent:
        remarks.append(
            f"{tap}: {counted(absent, 'clip')} of {len(manifest.clips)} without features in {source}"
        )
    return Matched(entries, source, tuple(remarks))
