"""What the readers of official data sets share: reading a file whose digest is kept, tables, shapes, media by name.

Nothing here knows a data set. A line that cannot be read costs that line and a finding; times and labels are the
business of the readers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from caeav.manifests.clip import Finding
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import finding
from caeav.manifests.readers import MEDIA_EXTENSIONS, ReadOptions

SHAPE = "dataset.json"
"""Written beside the official files of a generated set: how many segments its clips have, and how long they are."""

CATEGORIES = "categories.txt"
"""Class names in their order. AVE has it; for LLP's layout it names the classes of a set that has others."""

MAX_NAME_BYTES = 240
"""File systems take 255; some are left for a number and an extension."""

_SEEN_CHARS = 80
_SHAPE_HINT = 'write it like {"segments": 10, "segment_s": 1.0}'


class Line(NamedTuple):
    """The fields of one line of a table; `where` is `file:line`."""

    fields: tuple[str, ...]
    where: str


def refuse_options(options: ReadOptions) -> None:
    """Official files fix labels and segments; raises `CaeavError` when options would."""
    if options.labels or (options.segments, options.segment_s, options.stride_s) != (None, None, None):
        raise CaeavError(
            f"labels and segments were given for {options.dataset!r}, whose official files fix them",
            hint="leave them out, or read the media as a plain folder: --dataset <folder>",
        )


def first_there(root: Path, names: Iterable[str]) -> Path | None:
    """The first of `names` (paths below `root`) that is a file."""
    return next((root / name for name in names if (root / name).is_file()), None)


def read_file(path: Path, sources: dict[str, str], root: Path | None = None) -> bytes:
    """The file's bytes; its sha256 goes into `sources` under its name, or its path below `root`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CaeavError(
            f"{path} cannot be read: {error.strerror}", hint="check the file and its permissions"
        ) from None
    name = path.relative_to(root).as_posix() if root else path.name
    sources[name] = hashlib.sha256(data).hexdigest()
    return data


def read_table(
    path: Path, separator: str, header: Sequence[str], sources: dict[str, str], findings: list[Finding]
) -> list[Line]:
    """The lines of a table without quotes whose first line is `header`; fields are stripped.

    Lines with another number of fields, an empty one, or that are no UTF-8 become findings. Raises `CaeavError` when
    the first line is another, or no line can be read.
    """
    lines = read_file(path, sources).removeprefix(b"\xef\xbb\xbf").splitlines()
    first = tuple(
        name.strip() for name in (lines[0] if lines else b"").decode("utf-8", "replace").split(separator)
    )
    if first != tuple(header):
        raise CaeavError(
            f"{path}: the first line is {shown(lines[0]) if lines else 'missing'!r}, "
            f"it must be {separator.join(header)!r}",
            hint="take the file as its authors distribute it",
        )
    rows: list[Line] = []
    damaged: list[Finding] = []
    for number, raw in enumerate(lines[1:], start=2):
        if not raw.strip():
            continue
        where = f"{path.name}:{number}"
        fields = tuple(field.strip() for field in raw.decode("utf-8", "backslashreplace").split(separator))
        problem = _problem(raw, fields, header)
        if problem:
            damaged.append(finding("damaged_row", where, f"{problem}: {shown(raw)}"))
        else:
            rows.append(Line(fields, where))
    if damaged and not rows:
        raise CaeavError(
            f"{path}: none of its {len(damaged)} lines can be read; the first: {damaged[0].detail}",
            hint=f"a line must be {separator.join(header)!r}",
        )
    findings += damaged
    return rows


def _problem(raw: bytes, fields: tuple[str, ...], header: Sequence[str]) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    if len(fields) != len(header):
        return f"{len(fields)} fields instead of {len(header)}"
    empty = [name for name, field in zip(header, fields, strict=True) if not field]
    return f"no {', '.join(empty)}" if empty else ""


def is_name(text: str) -> bool:
    """Whether `text` can be a file's name, an extension added: printable, no path, not too long."""
    return (
        text not in ("", ".", "..")
        and text.isprintable()
        and not {"/", "\\"} & set(text)
        and len(text.encode()) <= MAX_NAME_BYTES
    )


def shown(raw: bytes) -> str:
    """The beginning of a line, for a finding."""
    text = raw.decode("utf-8", "backslashreplace")
    return text if len(text) <= _SEEN_CHARS else f"{text[:_SEEN_CHARS]}..."


def read_names(path: Path, sources: dict[str, str], root: Path | None = None) -> list[str]:
    """The names in a file, one a line, each once; digest as in `read_file`."""
    lines = read_file(path, sources, root).decode("utf-8-sig", "replace").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def read_categories(folder: Path, sources: dict[str, str]) -> list[str]:
    """The names in `categories.txt`; none when there is no such file."""
    path = folder / CATEGORIES
    return read_names(path, sources) if path.is_file() else []


def read_shape(
    folder: Path, sources: dict[str, str], segments: int = 10, segment_s: float = 1.0
) -> tuple[int, float]:
    """`(segments, segment_s)` from `dataset.json`, where a set in this layout has one; else the ones given."""
    path = folder / SHAPE
    if not path.is_file():
        return segments, segment_s
    try:
        shape = json.loads(read_file(path, sources))
    except (ValueError, RecursionError) as error:
        raise CaeavError(f"{path}: not JSON ({error})", hint=_SHAPE_HINT) from None
    if not isinstance(shape, dict):
        raise CaeavError(f"{path}: holds {shape!r}, it must hold an object", hint=_SHAPE_HINT)
    segments, segment_s = shape.get("segments", segments), shape.get("segment_s", segment_s)
    if type(segments) is not int or not 1 <= segments <= 3600:
        raise CaeavError(f"{path}: segments is {segments!r}, it must be 1 to 3600", hint=_SHAPE_HINT)
    if type(segment_s) not in (int, float) or not 0 < segment_s <= 3600:
        raise CaeavError(
            f"{path}: segment_s is {segment_s!r}, it must be more than 0, at most 3600", hint=_SHAPE_HINT
        )
    return segments, float(segment_s)


def media_by_stem(root: Path, folders: Iterable[str], findings: list[Finding]) -> dict[str, str]:
    """Media files below `root` in the given folders, by name without extension: paths below `root`.

    One listing a folder; folders that are not there hold nothing. The first folder that has a name is taken, and in
    it the first of the extensions; several are said.
    """
    found: dict[str, str] = {}
    for folder in folders:
        try:
            names = sorted(os.listdir(root / folder))  # noqa: PTH208 - names alone, for thousands of files
        except OSError:
            continue
        of_stem: dict[str, list[str]] = {}
        for name in names:
            path = PurePath(name)
            if path.suffix.lower() in MEDIA_EXTENSIONS:
                of_stem.setdefault(path.stem, []).append(name)
        for stem, several in of_stem.items():
            if len(several) > 1:
                several.sort(key=lambda name: MEDIA_EXTENSIONS.index(PurePath(name).suffix.lower()))
                findings.append(finding("several_media", f"{folder}/{stem}", ", ".join(several)))
            found.setdefault(stem, f"{folder}/{several[0]}" if folder != "." else several[0])
    return found


def report_dashes(ids: Sequence[str], where: str, findings: list[Finding]) -> None:
    """One `dash_id` for all ids that begin with `-`."""
    dashed = [name for name in ids if name.startswith("-")]
    if dashed:
        detail = f"{len(dashed)} of {len(ids)} clips ({len(set(dashed))} ids), such as {dashed[0]}"
        findings.append(finding("dash_id", where, detail))
