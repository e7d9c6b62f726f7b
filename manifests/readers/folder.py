"""Any folder of media files as a data set: with a label file (`labels.py`, `lists.py`), class folders, or no labels.

Without labels each file is one clip from its start. With labels a file is cut into clips, see `windows.py`; with a
stride every file is cut over its whole length. Keys read like the file's path; those of clips that begin later also
carry their start in milliseconds, and clips of a published list keep its names. No media is opened: where the length
of files matters, `ReadOptions.lengths` tells it.

Class folders give labels and splits: `<class>/<file>`, or `<split>/<class>/<file>` as image folders have it. Nothing
is guessed: files that lie deeper, and split folders beside class folders, are refused with the ways out. A file in no
class folder has no label and no split; a class called background is background.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted, some_of
from caeav.manifests.findings import leaks, zero_length_events
from caeav.manifests.keys import KeyRequest, assign_keys
from caeav.manifests.readers import CLASS_FOLDERS, MEDIA_EXTENSIONS, NO_LABELS, ReadOptions
from caeav.manifests.readers.ave import ANNOTATIONS, SPLIT_FILES
from caeav.manifests.readers.common import ReadLog
from caeav.manifests.readers.labels import LabelRow, read_labels
from caeav.manifests.readers.lists import list_format, read_list
from caeav.manifests.readers.names import MediaNames
from caeav.manifests.readers.times import (
    AS_MILLISECONDS,
    Range,
    describe_past_end,
    doubt_seconds,
    farthest_ranges,
    past_the_end,
)
from caeav.manifests.readers.windows import (
    Window,
    Windows,
    windows_by_stride,
    windows_of_events,
    windows_of_rows,
)

LABELS = "labels.csv"
SEGMENTS = 10
SEGMENT_S = 1.0
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_FOLDERS_HINT = (
    "lay files as <class>/<file> or <split>/<class>/<file>, or write a label file: --labels labels.csv"
)
_UNMERGED = re.compile(r"(.+)\.f\d+(?:-\d+)?\.\w+")
"""What yt-dlp calls the streams of a video that it did not merge."""


@dataclass(frozen=True)
class _Cut:
    """How clips are cut: `seconds` each, one every `stride_s` where that is given."""

    segments: int
    segment_s: float
    stride_s: float | None

    @property
    def seconds(self) -> float:
        return self.segments * self.segment_s


def read(root: Path, options: ReadOptions) -> Manifest:
    """The manifest of the media under `root`; raises `CaeavError` for a bad label file or a folder without media."""
    if not root.is_dir():
        raise CaeavError(f"{root} is not a folder", hint="name a folder that holds media files")
    cut = _cut(options)
    log = ReadLog()
    labels = _label_file(root, options)
    files = _media_files(root, labels, options.exclude, log)
    media = MediaNames(root, files)
    rows: list[LabelRow] = []
    if options.labels == CLASS_FOLDERS:
        rows = read_folders(root, files, log)
    elif labels is not None and _is_list(labels):
        rows, spare = read_list(labels, log, media, files, options.lengths)
        files = [file for file in files if file not in spare]
    elif labels is not None:
        rows = read_labels(labels, log, media)
    _report_unmerged(root, files, log)
    named = {row.file for row in rows}
    absent = [file for file in sorted(named - set(files)) if not media.is_there(file)]
    windows = _windows(root, cut, files, rows, set(absent), labels, options, log)
    if labels is not None or rows:
        if labels is not None and not any(row.name for row in rows):  # a list has counted its own
            for file in absent:
                log.add("missing_media", file, f"named in {labels.name}")
        where = "in no class folder" if labels is None else f"not in {labels.name}"
        for file in files:
            if file not in named:
                log.add("unlabelled_file", file, where)
    for file in files:
        windows.setdefault(file, {0.0: Window()})
    found = [(file, begins_s) for file in sorted(windows) for begins_s in sorted(windows[file])]
    if not found:
        raise CaeavError(
            f"{root}: no media file in this folder (looked for {' '.join(MEDIA_EXTENSIONS)})",
            hint="name the folder that holds the videos, or name files in a label file: --labels",
        )
    keys = assign_keys(
        [_key_request(file, begins_s, windows[file][begins_s].name) for file, begins_s in found]
    )
    clips = tuple(
        _clip(key, file, begins_s, cut.seconds, windows[file][begins_s])
        for key, (file, begins_s) in zip(keys, found, strict=True)
    )
    if all((root / name).is_file() for name in (ANNOTATIONS, *SPLIT_FILES.values())):
        detail = f"for its labels use: --dataset ave --root {root}"
        log.add("official_files_ignored", ANNOTATIONS, detail)
    log.findings += leaks(clips) + zero_length_events(clips)
    classes = tuple(sorted({row.label for row in rows if row.label}))
    return log.manifest(root, options.dataset, cut.segments, cut.segment_s, classes, clips)


def _cut(options: ReadOptions) -> _Cut:
    """The lengths that are asked for; raises `CaeavError` when one is not positive."""
    segments = SEGMENTS if options.segments is None else options.segments
    segment_s = SEGMENT_S if options.segment_s is None else options.segment_s
    if segments < 1 or not 0 < segment_s < math.inf:
        raise CaeavError(
            f"clips of {segments} x {segment_s} s were asked for", hint="both must be more than 0"
        )
    if options.stride_s is not None and not 0 < options.stride_s < math.inf:
        raise CaeavError(
            f"a clip every {options.stride_s} s was asked for",
            hint=f"--stride-seconds must be more than 0; {segments * segment_s:g} cuts files without gaps and overlaps",
        )
    return _Cut(segments, segment_s, options.stride_s)


def _label_file(root: Path, options: ReadOptions) -> Path | None:
    """The label file that is named, or lies in the folder; None where class folders or no labels are asked for."""
    if options.labels in (CLASS_FOLDERS, NO_LABELS):
        return None
    if options.labels:
        return Path(options.labels)
    return root / LABELS if (root / LABELS).is_file() else None


def _is_list(labels: Path) -> bool:
    """Whether a label file is a published list; one that cannot be read is none."""
    try:
        with labels.open(encoding="utf-8-sig", errors="replace") as text:
            return bool(list_format(text.read(1 << 16)))
    except OSError:
        return False


def read_folders(root: Path, files: Sequence[str], log: ReadLog) -> list[LabelRow]:
    """A row without times for each file in a class folder; raises `CaeavError` where the classes are not clear."""
    parts = {file: PurePosixPath(file).parts for file in files}
    tops = dict.fromkeys(path[0] for path in parts.values() if len(path) > 1)
    if files and not tops:
        raise CaeavError(
            f"{root}: its files lie in no folder, so no folder names a class", hint=_FOLDERS_HINT
        )
    splits = [top for top in tops if top.lower() in SPLIT_FOLDERS]
    inner = [top for top in splits if any(path[0] == top and len(path) > 2 for path in parts.values())]
    if inner and len(splits) < len(tops):
        other = next(top for top in tops if top not in splits)
        raise CaeavError(
            f"{root}: {inner[0]!r} is a split by its name, {other!r} beside it is none; which are the classes?",
            hint=_FOLDERS_HINT,
        )
    if splits and not inner and len(splits) == len(tops):
        raise CaeavError(
            f"{root}: files lie in {', '.join(map(repr, splits))}, which are splits by their names, and in no class",
            hint=_FOLDERS_HINT,
        )
    depth = 3 if inner else 2
    deeper = [file for file, path in parts.items() if len(path) > depth]
    if deeper:
        raise CaeavError(
            f"{root}: {counted(len(deeper), 'file')} too deep for {'<split>/' if inner else ''}<class>/<file>, such as "
            f"{some_of(deeper)}; which folder is their class?",
            hint=_FOLDERS_HINT,
        )
    rows = []
    for file, path in parts.items():
        if len(path) == depth:
            label = unicodedata.normalize("NFC", path[-2])
            split = SPLIT_FOLDERS[path[0].lower()] if inner else ""
            rows.append(LabelRow(0, file, None, "" if label.lower() == "background" else label, split))
    classes = sorted({row.label for row in rows if row.label})
    if inner:
        taken = ", ".join(f"{top}/ as {SPLIT_FOLDERS[top.lower()]}" for top in splits)
    else:
        taken = "no splits (lay files as <split>/<class>/<file> for them)"
    count = counted(len(classes), "class folder")
    log.add("labels_read_as", root.name, f"{count} ({some_of(classes)}), {taken}")
    return rows


def _windows(
    root: Path,
    cut: _Cut,
    files: Sequence[str],
    rows: Sequence[LabelRow],
    absent: set[str],
    labels: Path | None,
    options: ReadOptions,
    log: ReadLog,
) -> Windows:
    """The clips of the files that rows name, and with a stride those of all files."""
    rows_have_clips = any(row.clip for row in rows)
    if cut.stride_s is not None and rows_have_clips:
        raise CaeavError(
            f"{labels}: its rows say where clips begin, and a clip every {cut.stride_s:g} s was asked for",
            hint="leave out --stride-seconds, or the columns clip_start_s and clip_end_s",
        )
    ranges = [
        Range(row.line, row.file, *span)
        for row in rows
        if row.file not in absent and not row.name and (span := _span(row, cut.seconds))
    ]
    if cut.stride_s is None:
        if labels is not None:
            looked_at = farthest_ranges(ranges)
            length_of = _lengths(root, [r.file for r in looked_at], options)
            _doubt_times(labels, ranges, looked_at, length_of, log)
        return (windows_of_rows if rows_have_clips else windows_of_events)(rows, cut.seconds, log)
    if options.lengths is None:
        raise ValueError("a stride needs ReadOptions.lengths: nothing here opens media")
    there = [file for file in dict.fromkeys([*files, *(row.file for row in rows)]) if file not in absent]
    length_of = _lengths(root, there, options)
    if labels is not None:
        _doubt_times(labels, ranges, ranges, length_of, log)
    for row in rows:
        if row.file in absent:  # as long as its labels reach
            ends_s = row.times[1] if row.times else 0.0
            length_of[row.file] = max(length_of.get(row.file) or cut.seconds, ends_s)
    return windows_by_stride(files, rows, cut.seconds, cut.stride_s, length_of, log)


def _span(row: LabelRow, seconds: float) -> tuple[float, float] | None:
    """The seconds of its media that a row is about; None where it does not say."""
    if row.times or row.clip is None:
        return row.times
    return row.clip[0], row.clip[0] + seconds if row.clip[1] is None else row.clip[1]


def _lengths(root: Path, files: Sequence[str], options: ReadOptions) -> dict[str, float | None]:
    """Seconds by file, where `options.lengths` can tell."""
    files = list(dict.fromkeys(files))
    if options.lengths is None or not files:
        return {}
    return dict(zip(files, options.lengths([root / file for file in files]), strict=True))


def _doubt_times(
    labels: Path,
    ranges: Sequence[Range],
    looked_at: Sequence[Range],
    length_of: Mapping[str, float | None],
    log: ReadLog,
) -> None:
    """Compare labelled times with their media; raises `CaeavError` when none of those looked at can be right."""
    past, hopeless = past_the_end(looked_at, length_of)
    if past:
        first = describe_past_end(past)
        if hopeless:
            raise CaeavError(
                f"{labels}: all rows looked at ({len(past)}) lie past the end of their media, {first}",
                hint=AS_MILLISECONDS
                if "as milliseconds" in first
                else "times are seconds of the media file as it lies here",
            )
        count = f"{len(past)} of {counted(len(looked_at), 'row')} looked at"
        log.add("past_the_end", labels.name, f"{count}, {first}")
    if not any(length is not None for length in length_of.values()):
        doubt = doubt_seconds(ranges)
        if doubt:
            log.add("doubtful_times", labels.name, doubt)


def _clip(key: str, file: str, begins_s: float, seconds: float, window: Window) -> Clip:
    extra: dict[str, Any] = {}
    if window.id:
        extra = {"id": window.id, "name": window.name}
    if window.columns:
        extra["columns"] = {name: list(values) for name, values in window.columns.items()}
    return Clip(
        key=key,
        media=file,
        start_s=begins_s,
        seconds=seconds,
        split=window.split,
        events=tuple(Event(*event) for event in sorted(window.events, key=lambda e: (e[1], e[2], e[0]))),
        extra=extra,
    )


def _report_unmerged(root: Path, files: Sequence[str], log: ReadLog) -> None:
    """Video and audio streams that were downloaded apart and never merged are two files of half a clip each."""
    streams: dict[str, list[str]] = {}
    for file in files:
        named = _UNMERGED.fullmatch(file)
        if named:
            streams.setdefault(named[1], []).append(file)
    pairs = {name: parts for name, parts in streams.items() if len(parts) > 1}
    if not pairs:
        return
    name, parts = next(iter(pairs.items()))
    merged = any(f"{name}{extension}" in files for extension in MEDIA_EXTENSIONS)
    inputs = " ".join(f"-i {shlex.quote(str(root / part))}" for part in parts)
    cure = (
        f"{name} lies there whole, too: remove the parts"
        if merged
        else f"put them together, then remove the parts: ffmpeg {inputs} -c copy {shlex.quote(f'{root / name}.mkv')}"
    )
    log.add("unmerged_streams", name, f"{', '.join(parts)} ({counted(len(pairs), 'such video')}); {cure}")


def _media_files(root: Path, labels: Path | None, exclude: Path | None, log: ReadLog) -> list[str]:
    """Posix paths below `root` of all media by extension, sorted; hidden files and folders are left out."""
    files: list[str] = []
    others: list[str] = []
    for path in _walk(root, exclude.resolve() if exclude else None, (), log):
        name = path.relative_to(root).as_posix()
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            log.add("unreadable_name", _shown(path), "not UTF-8")
            continue
        if path.suffix.lower() in MEDIA_EXTENSIONS:
            files.append(name)
        elif labels is None or path.absolute() != labels.absolute():
            others.append(name)
    if others:
        log.add("skipped_files", _shown(Path(root.resolve().name)), some_of(sorted(others)))
    return sorted(files)


def _walk(folder: Path, exclude: Path | None, above: tuple[Path, ...], log: ReadLog) -> Iterator[Path]:
    """All files under `folder`, links followed; a link to a folder above is a loop and left out."""
    try:
        real = folder.resolve()
        if real in above or real == exclude:
            return
        entries = [
            (path, path.is_dir()) for path in sorted(folder.iterdir()) if not path.name.startswith(".")
        ]
    except OSError as error:
        log.add("unreadable_folder", _shown(folder), error.strerror or str(error))
        return
    for path, is_folder in entries:
        if is_folder:
            yield from _walk(path, exclude, (*above, real), log)
        elif path.is_file() or path.is_symlink():  # a dangling link is media that is missing, not nothing
            yield path


def _shown(path: Path) -> str:
    """The path as text that can be written as UTF-8, whatever bytes the file system holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _key_request(file: str, start_s: float, name: str = "") -> KeyRequest:
    """`a/b.mp4` becomes `a__b`, its window from 10 s on `a__b__10000ms`; a clip that has a name is called by it."""
    path = PurePosixPath(file)
    start_ms = round(start_s * 1000)
    text = "__".join((*path.parent.parts, path.stem)) + (f"__{start_ms}ms" if start_ms else "")
    return KeyRequest(name or text, f"{file}@{start_s!r}")
