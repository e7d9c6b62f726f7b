"""Any folder of media files as a data set, with or without a label file (`labels.py`).

Without labels each file is one clip from its start; with them, a file is cut into consecutive windows of the
clip length and each window a row touches becomes a clip, its events cut to it. Keys read like the file's
path; windows after the first also carry their start in milliseconds. No media is opened: a file's true
length is found when it is decoded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from caeav.manifests.clip import SPLITS, Clip, Event, Finding, Manifest
from caeav.manifests.errors import CaeavError
from caeav.manifests.findings import finding, leaks, without_length
from caeav.manifests.keys import Wish, assign_keys
from caeav.manifests.readers import MEDIA_EXTENSIONS, ReadOptions
from caeav.manifests.readers.ave_files import ANNOTATIONS, SPLIT_FILES
from caeav.manifests.readers.labels import LabelRow, read_labels

LABELS = "labels.csv"
SEGMENTS = 10
SEGMENT_S = 1.0

_SHOWN_FILES = 3
_EDGE_S = 1e-6
"""Times closer than this are one: a range that ends on a window's edge does not touch the next window."""


@dataclass
class _Window:
    """One clip in the making: what the rows that touch it said."""

    events: dict[tuple[str, float, float], None] = field(default_factory=dict)
    splits: set[str] = field(default_factory=set)


def read(root: Path, options: ReadOptions) -> Manifest:
    """The manifest of the media under `root`; raises `CaeavError` for a bad label file or a folder without media."""
    if not root.is_dir():
        raise CaeavError(f"{root} is not a folder", hint="name a folder that holds media files")
    segments = SEGMENTS if options.segments is None else options.segments
    segment_s = SEGMENT_S if options.segment_s is None else options.segment_s
    if segments < 1 or not 0 < segment_s < math.inf:
        raise CaeavError(
            f"clips of {segments} x {segment_s} s were asked for", hint="both must be more than 0"
        )
    seconds = segments * segment_s

    findings: list[Finding] = []
    sources: dict[str, str] = {}
    labels = options.labels or (root / LABELS if (root / LABELS).is_file() else None)
    files = _media_files(root, labels, options.exclude, findings)
    rows = read_labels(labels, sources) if labels else []
    named = _windows(rows, seconds, findings)
    if labels:
        absent = [
            file
            for file in sorted(named.keys() - set(files))
            if not os.path.isfile(root / file)  # noqa: PTH113 - Path.is_file raises for a name that is too long
        ]
        findings += [finding("missing_media", file, f"named in {labels.name}") for file in absent]
        findings += [
            finding("unlabelled_file", file, f"not in {labels.name}") for file in files if file not in named
        ]
    found = sorted(
        (file, index, window)
        for file in {*files, *named}
        for index, window in named.get(file, {0: _Window()}).items()
    )
    if not found:
        raise CaeavError(
            f"{root}: no media file in this folder (looked for {' '.join(MEDIA_EXTENSIONS)})",
            hint="name the folder that holds the videos, or name files in a label file: --labels",
        )
    keys = assign_keys([_wish(file, index * seconds) for file, index, _ in found])
    clips = tuple(
        Clip(
            key=key,
            media=file,
            start_s=index * seconds,
            seconds=seconds,
            split=max(window.splits, key=SPLITS.index, default=""),
            events=tuple(Event(*event) for event in sorted(window.events, key=lambda e: (e[1], e[2], e[0]))),
        )
        for key, (file, index, window) in zip(keys, found, strict=True)
    )
    if all((root / name).is_file() for name in (ANNOTATIONS, *SPLIT_FILES.values())):
        hint = f"for its labels use: --dataset ave --root {root}"
        findings.append(finding("official_files_ignored", ANNOTATIONS, hint))
    findings += leaks(clips) + without_length(clips)
    return Manifest(
        dataset=options.dataset,
        segments=segments,
        segment_s=segment_s,
        classes=tuple(sorted({row.label for row in rows if row.label})),
        clips=clips,
        media_root=str(root.absolute()),
        sources=sources,
        findings=tuple(findings),
    )


def _media_files(root: Path, labels: Path | None, exclude: Path | None, findings: list[Finding]) -> list[str]:
    """Posix paths below `root` of all media by extension, sorted; hidden files and folders are left out."""
    files: list[str] = []
    others: list[str] = []
    for path in _walk(root, exclude.resolve() if exclude else None, (), findings):
        name = path.relative_to(root).as_posix()
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            findings.append(finding("unreadable_name", _shown(path), "not UTF-8"))
            continue
        if path.suffix.lower() in MEDIA_EXTENSIONS:
            files.append(name)
        elif labels is None or path.absolute() != labels.absolute():
            others.append(name)
    if others:
        more = f", ... ({len(others)} in all)" if len(others) > _SHOWN_FILES else ""
        findings.append(
            finding(
                "skipped_files",
                _shown(Path(root.resolve().name)),
                ", ".join(sorted(others)[:_SHOWN_FILES]) + more,
            )
        )
    return sorted(files)


def _walk(
    folder: Path, exclude: Path | None, above: tuple[Path, ...], findings: list[Finding]
) -> Iterator[Path]:
    """All files under `folder`, links followed; a link back to a folder above is a loop and left out."""
    try:
        real = folder.resolve()
        if real in above or real == exclude:
            return
        entries = [
            (path, path.is_dir()) for path in sorted(folder.iterdir()) if not path.name.startswith(".")
        ]
    except OSError as error:
        findings.append(finding("unreadable_folder", _shown(folder), error.strerror or str(error)))
        return
    for path, is_folder in entries:
        if is_folder:
            yield from _walk(path, exclude, (*above, real), findings)
        elif path.is_file() or path.is_symlink():  # a dangling link is media that is missing, not nothing
            yield path


def _shown(path: Path) -> str:
    """The path as text that can be written as UTF-8, whatever bytes the file system holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _windows(rows: list[LabelRow], seconds: float, findings: list[Finding]) -> dict[str, dict[int, _Window]]:
    """By file, the windows its rows touch; window `i` is `[i * seconds, (i + 1) * seconds)` of the media."""
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.file, set()).update({row.split} - {""})
    files: dict[str, dict[int, _Window]] = {}
    seen: dict[tuple[str, tuple[float, float] | None, str, str], int] = {}
    for row in rows:
        twin = seen.setdefault((row.file, row.times, row.label, row.split), row.line)
        if twin != row.line:
            findings.append(finding("duplicate_row", f"line {row.line}", f"as line {twin}: {row.file}"))
            continue
        start_s, end_s = row.times or (0.0, seconds)
        first = math.floor((start_s + _EDGE_S) / seconds)
        last = max(first, math.ceil((end_s - _EDGE_S) / seconds) - 1)
        for index in range(first, last + 1):
            window = files.setdefault(row.file, {}).setdefault(index, _Window())
            # a row without a split goes where the file's other rows go, if they agree
            window.splits |= {row.split} if row.split or len(splits[row.file]) != 1 else splits[row.file]
            if row.label:
                inside = (round(time - index * seconds, 6) for time in (start_s, end_s))
                begin, end = (min(max(time, 0.0), seconds) for time in inside)
                window.events[row.label, begin, end] = None
    for file, windows in files.items():
        for index, window in windows.items():
            window.splits.discard("")
            if len(window.splits) > 1:
                named = ", ".join(sorted(window.splits))
                findings.append(finding("row_in_two_splits", file, f"from {index * seconds:g} s on: {named}"))
    return files


def _wish(file: str, start_s: float) -> Wish:
    """`a/b.mp4` reads `a__b`, its window from 10 s on `a__b__10000ms`."""
    path = PurePosixPath(file)
    start_ms = round(start_s * 1000)
    text = "__".join((*path.parent.parts, path.stem)) + (f"__{start_ms}ms" if start_ms else "")
    return Wish(text, f"{file}@{start_s!r}")
