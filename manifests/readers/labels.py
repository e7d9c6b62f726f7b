"""The label file for a folder of media: a csv with the columns `file,start_s,end_s,label,split`.

Each row is one event of one media file, times in seconds of the media. `start_s`, `end_s` and `split` may be
left empty or out: no times mean the whole first clip. An empty `label` marks the range as background. Written
by hand or by a spreadsheet, so a byte order mark, CRLF, quotes and blank lines are ordinary, and all that is
wrong is told at once. It is read as a whole or not at all: a skipped row would be a wrong label.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from caeav.manifests.clip import SPLITS
from caeav.manifests.errors import CaeavError
from caeav.manifests.rows import is_inside

COLUMNS = ("file", "start_s", "end_s", "label", "split")
REQUIRED = ("file", "label")
MAX_TIME_S = 86400.0
"""A day: later times are taken for a mistake, such as milliseconds, before they make a million clips."""

_SHOWN_ERRORS = 20
_FIELD = "write the columns file,start_s,end_s,label,split, separated by commas, in UTF-8"


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row; `times` in media seconds, None for the whole first clip; an empty `label` is background."""

    line: int
    file: str
    times: tuple[float, float] | None
    label: str
    split: str


def read_labels(path: Path, sources: dict[str, str]) -> list[LabelRow]:
    """All rows in order; the file's sha256 goes into `sources`. Raises one `CaeavError` with everything wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CaeavError(
            f"{path}: label file cannot be read: {error.strerror}", hint="give the path of a csv: --labels"
        ) from None
    sources[path.name] = hashlib.sha256(data).hexdigest()
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CaeavError(f"{path}:{line}: not UTF-8 (byte {error.start})", hint=_FIELD) from None

    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    rows: list[LabelRow] = []
    problems: list[str] = []
    header: list[str] | None = None
    try:
        for fields in reader:
            fields = [field.strip() for field in fields]
            if not any(fields):
                continue
            if header is None:
                header = fields
                _check_header(header, path)
                continue
            row, wrong = _parse(fields, header, reader.line_num)
            problems += [f"line {reader.line_num}: {text}" for text in wrong]
            if row:
                rows.append(row)
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: not csv ({error}); nothing after it was read")
    if header is None and not problems:
        raise CaeavError(f"{path}: the label file is empty", hint=_FIELD)
    if problems:
        more = len(problems) - _SHOWN_ERRORS
        shown = problems[:_SHOWN_ERRORS] + ([f"and {more} more"] if more > 0 else [])
        raise CaeavError(
            f"{path}: {len(problems)} problems\n  " + "\n  ".join(shown), hint="mend these lines"
        )
    return rows


def _check_header(header: list[str], path: Path) -> None:
    wrong = [name for name in header if name not in COLUMNS or header.count(name) > 1]
    absent = [name for name in REQUIRED if name not in header]
    if wrong or absent:
        raise CaeavError(
            f"{path}:1: the columns are {', '.join(map(repr, header))}; "
            f"allowed are {', '.join(COLUMNS)}, needed {' and '.join(REQUIRED)}",
            hint=_FIELD,
        )


def _parse(fields: list[str], header: list[str], line: int) -> tuple[LabelRow | None, list[str]]:
    """The row, or None and all that is wrong with it."""
    if len(fields) != len(header):
        return None, [f"{len(fields)} fields instead of {len(header)}"]
    value = dict.fromkeys(COLUMNS, "") | dict(zip(header, fields, strict=True))
    wrong: list[str] = []
    if not is_inside(value["file"]):
        wrong.append(
            f"file is {value['file']!r}, it must be a path relative to the media folder, without '..'"
        )
    if value["split"] and value["split"] not in SPLITS:
        wrong.append(f"split is {value['split']!r}, it must be {', '.join(SPLITS)} or empty")
    if value["label"].lower() == "background":
        wrong.append(f"label is {value['label']!r}; background is written as an empty label")
    times = _times(value["start_s"], value["end_s"], wrong)
    if wrong:
        return None, wrong
    return LabelRow(line, str(PurePosixPath(value["file"])), times, value["label"], value["split"]), []


def _times(start: str, end: str, wrong: list[str]) -> tuple[float, float] | None:
    if not start and not end:
        return None
    times: list[float] = []
    for name, text in (("start_s", start), ("end_s", end)):
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= MAX_TIME_S:
            allowed = f"a number of seconds from 0 to {MAX_TIME_S:g} (or both times empty)"
            wrong.append(f"{name} is {text!r}, it must be {allowed}")
        times.append(seconds)
    if times[1] < times[0]:
        wrong.append(f"end_s {end} is before start_s {start}")
    return times[0], times[1]
