"""Manifest files: JSON Lines with a header and then one row per clip, in order; and the digests of a manifest.

The header says how many clips of each split follow, so a file that lost rows is noticed. Files are published
atomically and checked row by row when they are read. `manifest_digest` covers labels and splits, `source_digest`
only what decides a clip's tokens; neither covers `media_root`, so a data set has the same digests on every machine.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from caeav.manifests.clip import Finding, Manifest
from caeav.manifests.core.atomic import publishing
from caeav.manifests.key_index import KeyIndex
from caeav.manifests.keys import KEY_PATTERN
from caeav.manifests.lazy_clips import map_file, parse_line, same_bytes, scan
from caeav.manifests.rows import (
    ManifestError,
    check_clip,
    clip_from_row,
    clip_to_row,
    fields_of,
    number,
    refuse,
    text,
)

FORMAT = "caeav-manifest"
VERSION = 1

HEADER_FIELDS = (
    "format",
    "version",
    "dataset",
    "segments",
    "segment_s",
    "classes",
    "media_root",
    "clips",
    "splits",
    "sources",
    "findings",
)
FINDING_FIELDS = ("code", "where", "detail")
LAZY_BYTES = 8 << 20
LAZY_CLIPS = 1 << 15
"""From this size on a file's rows stay in it (`lazy_clips.py`); and as many clips of about 250 bytes each."""
ROWS_AT_ONCE = 1 << 12
_LINES = json.JSONEncoder(allow_nan=False)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Publish `manifest` as `path`; raises `ManifestError` when a row breaks a rule, writing nothing."""
    _check(manifest, str(path))
    with publishing(path) as out:
        for part in _parts(manifest):
            out.write(part)


def _parts(manifest: Manifest) -> Iterator[bytes | memoryview]:
    """The file's bytes."""
    yield f"{_LINES.encode(_header(manifest))}\n".encode()
    if (rows_as_written := manifest.table.file_rows()) is not None:
        yield rows_as_written
        return
    for first in range(0, len(manifest.clips), ROWS_AT_ONCE):
        rows = map(clip_to_row, manifest.clips[first : first + ROWS_AT_ONCE])
        yield "".join(f"{_LINES.encode(row)}\n" for row in rows).encode()


def with_lazy_clips(manifest: Manifest) -> Manifest:
    """The same manifest; when it has many clips, their rows move from memory to a file without a name."""
    if manifest.table.file_rows() is not None or len(manifest.clips) < LAZY_CLIPS:
        return manifest
    _check(manifest, manifest.dataset)
    with TemporaryFile() as out:
        out.writelines(_parts(manifest))
        out.flush()
        data = mmap.mmap(out.fileno(), 0, access=mmap.ACCESS_READ)
    clips = scan(Path(f"{manifest.dataset}.jsonl"), data, data.find(b"\n") + 1, manifest.classes)
    return manifest if clips is None else replace(manifest, clips=clips)


def read_manifest(path: Path, *, sha256: str = "", like: Manifest | None = None) -> Manifest:
    """The manifest in `path`; raises `ManifestError` naming file and line when it is torn or damaged.

    Every row is checked now, except in a large file that has this `sha256` (hex) or the rows of `like`: there each
    row is checked when it is used.
    """
    try:
        data = map_file(path)
    except OSError as error:
        raise ManifestError(
            f"{path}: manifest cannot be read: {error.strerror}", hint="make it with: caeav manifest build"
        ) from None
    rows = _rows(data, str(path))
    where, first = next(rows, (str(path), None))
    head = _head(first, where)
    manifest = _empty_manifest(head, where)
    clips, known = None, False
    if not isinstance(data, bytes) and len(data) >= LAZY_BYTES:
        clips = scan(path, data, data.find(b"\n") + 1, manifest.classes)
    if clips is None:
        classes = frozenset(manifest.classes)
        manifest = replace(manifest, clips=tuple(clip_from_row(row, classes, place) for place, row in rows))
    else:
        manifest = replace(manifest, clips=clips)
        known = bool(sha256) and hashlib.sha256(data).hexdigest() == sha256
        known = known or (like is not None and like.classes == manifest.classes and _same_rows(data, like))
        if not known:
            deque(clips, maxlen=0)  # each row is checked as it is made
    if len(manifest.clips) != head["clips"] or manifest.split_counts() != head["splits"]:
        raise ManifestError(
            f"{path}: {len(manifest.clips)} clips {manifest.split_counts()} in the file, "
            f"its header says {head['clips']} {head['splits']}: rows were lost or added",
            hint="build the manifest again: caeav manifest build",
        )
    if not known:
        _check_unique(manifest, str(path))
    return manifest


def _same_rows(data: mmap.mmap | bytes, manifest: Manifest) -> bool:
    """Whether the rows of a file are, byte for byte, those of `manifest`, which lie in a file too."""
    rows = manifest.table.file_rows()
    return rows is not None and same_bytes(memoryview(data)[data.find(b"\n") + 1 :], rows)


def holds_rows(path: Path, manifest: Manifest) -> bool:
    """Whether a large file is known to have the rows and the header facts of `manifest`, of another large file."""
    if manifest.table.file_rows() is None:
        return False
    data = map_file(path)
    if not _same_rows(data, manifest):
        return False
    line = data[: data.find(b"\n")]
    found = _empty_manifest(_head(parse_line(line, f"{path}:1"), f"{path}:1"), f"{path}:1")
    return _labelling(found) == _labelling(manifest)


def _labelling(manifest: Manifest) -> Manifest:
    """What a header says of how rows are to be understood."""
    return replace(manifest, clips=(), media_root="", sources={}, findings=())


def manifest_digest(manifest: Manifest) -> str:
    """sha256 (hex) of everything training depends on: segments, class order, all rows with their labels and splits."""
    digest = hashlib.sha256()
    _add(digest, [manifest.dataset, manifest.segments, float(manifest.segment_s), list(manifest.classes)])
    for clip in manifest.clips:
        _add(digest, clip_to_row(clip))
    return digest.hexdigest()


def source_digest(manifest: Manifest) -> str:
    """sha256 (hex) of what decides the tokens: the `source()` of each clip, in order, without labels and splits."""
    digest = hashlib.sha256()
    for clip in manifest.clips:
        key, media, start_s, seconds = clip.source()
        _add(digest, [key, media, float(start_s), float(seconds)])
    return digest.hexdigest()


def _add(digest: hashlib._Hash, value: Any) -> None:
    digest.update(_CANONICAL.encode(value).encode() + b"\n")


def _header(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "dataset": manifest.dataset,
        "segments": manifest.segments,
        "segment_s": float(manifest.segment_s),
        "classes": list(manifest.classes),
        "media_root": manifest.media_root,
        "clips": len(manifest.clips),
        "splits": manifest.split_counts(),
        "sources": dict(manifest.sources),
        "findings": [{"code": f.code, "where": f.where, "detail": f.detail} for f in manifest.findings],
    }


def _rows(data: mmap.mmap | bytes, path: str) -> Iterator[tuple[str, Any]]:
    """`(file:line, JSON value)` of each line that is not blank; raises `ManifestError` for one that is not JSON."""
    start, number_ = 0, 0
    while start < len(data):
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)]
        start += len(line) + 1
        number_ += 1
        if line.strip():
            yield f"{path}:{number_}", parse_line(line, f"{path}:{number_}")


def _head(value: object, where: str) -> dict[str, Any]:
    """The header, with format, version and the kinds of its values checked; `_empty_manifest` checks the rest."""
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        seen = value.get("format") if isinstance(value, dict) else value
        raise refuse(where, "format", seen, f"{FORMAT!r}: this is not a manifest")
    if value.get("version") != VERSION:
        raise ManifestError(
            f"{where}: manifest version is {value.get('version')!r}, this caeav reads {VERSION}",
            hint="build the manifest again, or use the caeav that made it",
        )
    head = dict(fields_of(value, HEADER_FIELDS, "the header", where))
    for name, kind in (("segments", int), ("clips", int), ("splits", dict), ("sources", dict)):
        if not isinstance(head[name], kind) or isinstance(head[name], bool):
            raise refuse(where, name, head[name], "a whole number" if kind is int else "an object")
    for name in ("classes", "findings"):
        if not isinstance(head[name], list):
            raise refuse(where, name, head[name], "a list")
    return head


def _empty_manifest(head: dict[str, Any], where: str) -> Manifest:
    """The manifest that a header describes, without its clips."""
    findings = [fields_of(row, FINDING_FIELDS, "a finding", where) for row in head["findings"]]
    manifest = Manifest(
        dataset=text(head["dataset"], "dataset", where),
        segments=head["segments"],
        segment_s=number(head["segment_s"], "segment_s", where),
        classes=tuple(text(name, "a class", where) for name in head["classes"]),
        clips=(),
        media_root=text(head["media_root"], "media_root", where),
        sources={
            name: text(digest, f"the digest of {name}", where) for name, digest in head["sources"].items()
        },
        findings=tuple(
            Finding(*(text(row[name], name, where) for name in FINDING_FIELDS)) for row in findings
        ),
    )
    _check_header(manifest, where)
    return manifest


def _check_header(manifest: Manifest, where: str) -> None:
    if not KEY_PATTERN.fullmatch(manifest.dataset):
        raise refuse(where, "dataset", manifest.dataset, "1 to 200 of the characters A-Z a-z 0-9 _ + -")
    if manifest.segments < 1:
        raise refuse(where, "segments", manifest.segments, "1 or more")
    if not 0 < manifest.segment_s < float("inf"):
        raise refuse(where, "segment_s", manifest.segment_s, "more than 0")
    if "" in manifest.classes or len(set(manifest.classes)) != len(manifest.classes):
        raise refuse(where, "classes", manifest.classes, "different, non-empty names")


def _check(manifest: Manifest, where: str) -> None:
    _check_header(manifest, where)
    classes = frozenset(manifest.classes)
    for clip in manifest.clips:
        check_clip(clip, classes, f"{where}: clip {clip.key}")
    _check_unique(manifest, where)


def _check_unique(manifest: Manifest, where: str) -> None:
    keys = manifest.keys
    row = KeyIndex(keys).duplicate()
    if row is not None:
        raise refuse(f"{where}: clip row {row + 1}", "key", keys[row], "in no other row")
