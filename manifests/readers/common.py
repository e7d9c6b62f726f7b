"""What the readers share: files whose digests are kept, tables, numbers, media files by name, and the order of classes.

Nothing here knows a data set. A line that cannot be read costs that line and leaves a finding; what its times and
labels mean is for the readers to say.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from caeav.manifests.clip import Clip, Finding, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import finding
from caeav.manifests.readers import MEDIA_EXTENSIONS, ReadOptions

SHAPE = "dataset.json"
"""Written beside the official files of a generated set: how many segments its clips have, and how long these are."""

CATEGORIES = "categories.txt"
"""Class names in their order. AVE has this file; in LLP's layout it names the classes of a set that has others."""

MAX_NAME_BYTES = 240
"""File systems take 255; the rest is for a number and an extension."""

_EXCERPT_CHARS = 80
_SHAPE_HINT = 'write it like {"segments": 10, "segment_s": 1.0}'


class ReadLog:
    """What reading a data set yields besides clips: the sha256 of each file read, by its name, and the findings."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.findings: list[Finding] = []

    def add(self, code: str, where: str, detail: str) -> None:
        """Add a finding."""
        self.findings.append(finding(code, where, detail))

    def read_file(
        self, path: Path, root: Path | None = None, hint: str = "check the file and its permissions"
    ) -> bytes:
        """The file's bytes; its digest is kept under its name, with `root` under its path below that."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CaeavError(f"{path} cannot be read: {error.strerror}", hint=hint) from None
        name = path.relative_to(root).as_posix() if root else path.name
        self.sources[name] = hashlib.sha256(data).hexdigest()
        return data

    def manifest(
        self,
        root: Path,
        dataset: str,
        segments: int,
        segment_s: float,
        classes: tuple[str, ...],
        clips: tuple[Clip, ...],
    ) -> Manifest:
        """The manifest of these clips, whose media lie below `root`, with all that was logged."""
        return Manifest(
            dataset=dataset,
            segments=segments,
            segment_s=segment_s,
            classes=classes,
            clips=clips,
            media_root=str(root.absolute()),
            sources=self.sources,
            findings=tuple(self.findings),
        )


class Line(NamedTuple):
    """The fields of one line of a table; `where` is `file:line`."""

    fields: tuple[str, ...]
    where: str


def refuse_options(options: ReadOptions) -> None:
    """Raise `CaeavError` for options that set labels or segments: official files fix them."""
    if options.labels or (options.segments, options.segment_s, options.stride_s) != (None, None, None):
        raise CaeavError(
            f"labels and segments were given for {options.dataset!r}, whose official files fix them",
            hint="leave them out, or read the media as a plain folder: --dataset <folder>",
        )


def how_to_get(dataset: str, root: Path, *, official: str, authors: str, generated: str) -> str:
    """The hint for files that are missing: for a generated set its command, else which files to put where."""
    if dataset.startswith("synthetic"):
        layout = dataset.removeprefix("synthetic").removeprefix("-")
        command = f"caeav synthesise --dataset {layout}" if layout else "caeav synthesise"
        return f"make the set with: {command} (it writes {generated} to {root})"
    return f"put {official} into {root}, or name their folder with --root; they come from {authors}, not with caeav"


def first_file(root: Path, names: Iterable[str]) -> Path | None:
    """The first of `names` (paths below `root`) that is a file."""
    return next((root / name for name in names if (root / name).is_file()), None)


def read_table(
    path: Path,
    separator: str,
    header: Sequence[str],
    log: ReadLog,
    *,
    header_optional: bool = False,
    check: Callable[[tuple[str, ...]], str] | None = None,
) -> list[Line]:
    """The lines of a table without quotes, below its `header`; blanks around fields are dropped.

    A line that is not UTF-8, has another number of fields, or for which `check` names a problem (by default an empty
    field), becomes a finding. Raises `CaeavError` for another header, and when no line can be read.
    """
    data = log.read_file(path).removeprefix(b"\xef\xbb\xbf")
    lines = [(f"{path.name}:{n}", raw) for n, raw in enumerate(data.splitlines(), start=1) if raw.strip()]
    first = _split(lines[0][1], separator) if lines else ()
    has_header = [name.lower() for name in first[:2]] == [name.lower() for name in header[:2]]
    if not header_optional and first != tuple(header):
        raise CaeavError(
            f"{path}: the first line is {excerpt(lines[0][1]) if lines else 'missing'!r}, "
            f"it must be {separator.join(header)!r}",
            hint="take the file as its authors distribute it",
        )
    rows: list[Line] = []
    damaged: list[Finding] = []
    for where, raw in lines[has_header:]:
        fields = _split(raw, separator)
        problem = _problem(raw, fields, header)
        if not problem:
            problem = check(fields) if check else _empty_fields(header, fields)
        if problem:
            damaged.append(finding("damaged_row", where, f"{problem}: {excerpt(raw)}"))
        else:
            rows.append(Line(fields, where))
    if damaged and not rows:
        raise CaeavError(
            f"{path}: none of its {len(damaged)} lines can be read; the first: {damaged[0].detail}",
            hint=f"a line must be {separator.join(header)!r}",
        )
    log.findings += damaged
    return rows


def _split(raw: bytes, separator: str) -> tuple[str, ...]:
    return tuple(field.strip() for field in raw.decode("utf-8", "backslashreplace").split(separator))


def _problem(raw: bytes, fields: tuple[str, ...], header: Sequence[str]) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    return "" if len(fields) == len(header) else f"{len(fields)} fields instead of {len(header)}"


def _empty_fields(header: Sequence[str], fields: tuple[str, ...]) -> str:
    empty = [name for name, field in zip(header, fields, strict=True) if not field]
    return f"no {', '.join(empty)}" if empty else ""


def csv_cells(line: str, separator: str = ",") -> list[str]:
    """The cells of one csv line, without the blanks around them; none where it is not csv."""
    try:
        cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []
    return [cell.strip() for cell in cells]


def csv_rows(
    text: io.StringIO, problems: list[str], separator: str = ",", lines_before: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each csv row that holds something; where the csv breaks off is added to `problems`.

    Cells have no blanks around them. `lines_before` have been read from `text` already.
    """
    reader = csv.reader(text, delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                line = reader.line_num + lines_before
                yield line, cells
    except csv.Error as error:
        line = reader.line_num + lines_before
        problems.append(f"line {line}: not csv ({error}); nothing after it was read")


def to_number(text: str) -> float:
    """The finite number that a text is; NaN when it is none."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def is_name(text: str) -> bool:
    """Whether `text` can be a file's name with an extension added: printable, no path, not too long."""
    return (
        text not in ("", ".", "..")
        and text.isprintable()
        and not {"/", "\\"} & set(text)
        and len(text.encode()) <= MAX_NAME_BYTES
    )


def excerpt(raw: bytes) -> str:
    """The beginning of a line, for a finding."""
    text = raw.decode("utf-8", "backslashreplace")
    return text if len(text) <= _EXCERPT_CHARS else f"{text[:_EXCERPT_CHARS]}..."


def read_names(path: Path, log: ReadLog, root: Path | None = None) -> list[str]:
    """The names in a file, one per line, without repeats; its digest is kept as `ReadLog.read_file` does."""
    lines = log.read_file(path, root).decode("utf-8-sig", "replace").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def read_categories(folder: Path, log: ReadLog) -> list[str]:
    """The names in `categories.txt`; none when there is no such file."""
    path = folder / CATEGORIES
    return read_names(path, log) if path.is_file() else []


def order_classes(used: Iterable[str], order: Sequence[str], where: str, log: ReadLog) -> tuple[str, ...]:
    """The classes in `order`, then used ones that it lacks, each a finding; without an order as they first come."""
    unknown = [name for name in dict.fromkeys(used) if name not in order]
    if order:
        for name in unknown:
            log.add("unknown_class", where, repr(name))
    return (*order, *unknown)


def read_shape(folder: Path, log: ReadLog, segments: int = 10, segment_s: float = 1.0) -> tuple[int, float]:
    """`(segments, segment_s)` from `dataset.json` where a set in this layout has one; else the values given."""
    path = folder / SHAPE
    if not path.is_file():
        return segments, segment_s
    try:
        shape = json.loads(log.read_file(path))
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


def overlaps_clip(what: str, start_s: float, end_s: float, seconds: float, where: str, log: ReadLog) -> bool:
    """Whether a range holds any of a clip of `seconds`; one that is backwards or reaches outside is a finding."""
    times = f"{what} from {start_s:g} s to {end_s:g} s"
    if end_s < start_s:
        log.add("backwards_event", where, times)
        return False
    if start_s >= 0 and end_s <= seconds:
        return True
    nothing_left = start_s >= seconds or end_s <= 0
    done = "skipped" if nothing_left else "cut"
    log.add("time_outside", where, f"{times}, the clip has {seconds:g} s; {done}")
    return not nothing_left


def media_by_stem(root: Path, folders: Iterable[str], log: ReadLog) -> dict[str, str]:
    """Media files in the given folders below `root`, by name without extension: paths below `root`.

    Each folder is listed once; one that is missing holds nothing. A name is taken from the first folder that has it,
    and there with the first of `MEDIA_EXTENSIONS`; several files for one name are a finding.
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
                log.add("several_media", f"{folder}/{stem}", ", ".join(several))
            found.setdefault(stem, f"{folder}/{several[0]}" if folder != "." else several[0])
    return found


def report_dashes(ids: Sequence[str], where: str, log: ReadLog) -> None:
    """One `dash_id` for all ids that begin with `-`."""
    dashed = [name for name in ids if name.startswith("-")]
    if dashed:
        detail = f"{len(dashed)} of {len(ids)} clips ({len(set(dashed))} ids), such as {dashed[0]}"
        log.add("dash_id", where, detail)
