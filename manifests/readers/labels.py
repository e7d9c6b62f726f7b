"""The label file for a folder of media: a csv with the columns `file,start_s,end_s,label,split`, or a published list.

Each row is one event of one media file, times in seconds of the media. `start_s`, `end_s` and `split` may be
left empty or out: no times mean the whole first clip. An empty `label` marks the range as background. With
`clip_start_s` (and `clip_end_s`) a row says too which clip it is about. Other columns are kept. Written by hand or by a
spreadsheet, so a byte order mark, CRLF, quotes, blank lines, `;` or tabs between fields are ordinary, and all that
is wrong is told at once. It is read as a whole or not at all: a skipped row would be a wrong label. Lists as VGGSound
and AudioSet publish them are read too (`lists.py`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from caeav.manifests.clip import SPLITS, Finding
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted
from caeav.manifests.findings import finding
from caeav.manifests.readers.names import Meant, MediaNames
from caeav.manifests.readers.times import (
    AS_MILLISECONDS,
    MAX_TIME_S,
    decimal_commas,
    is_clock,
    seconds_of,
)
from caeav.manifests.rows import is_inside

COLUMNS = ("file", "start_s", "end_s", "label", "split", "clip_start_s", "clip_end_s")
REQUIRED = ("file", "label")
TIMES = ("start_s", "end_s", "clip_start_s", "clip_end_s")
MILLISECONDS = {f"{name}ms": f"{name}s" for name in ("start_", "end_", "clip_start_", "clip_end_")}
"""Columns in milliseconds, and the ones they stand for."""

ALIKE = {
    "file": (
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "path",
        "video",
        "video_id",
        "vid",
        "media",
        "clip",
    ),
    "label": ("class", "category", "labels", "event", "event_label", "event_labels", "class_name", "tag"),
    "start_s": ("start", "begin", "onset", "start_time", "start_sec", "start_seconds", "begin_s", "from"),
    "end_s": ("end", "stop", "offset", "end_time", "end_sec", "end_seconds", "stop_s", "to"),
    "clip_start_s": ("clip_start", "clip_begin", "clip_start_time"),
    "clip_end_s": ("clip_end", "clip_stop", "clip_end_time"),
}
"""Names that most likely mean a column; what they say must not be passed over because it is called otherwise."""
SPLIT_WORDS = {*SPLITS, "training", "valid", "validation", "dev", "eval", "testing"}

SHOWN_ERRORS = 20
EXAMPLES = 3
_FIELD = "write the columns file,start_s,end_s,label,split, separated by commas, in UTF-8"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row; `times` in media seconds, None for the whole clip; an empty `label` is background.

    `clip` is where its clip starts and ends in the media (the end None where it is not said), None where the file
    decides nothing about clips. `columns` are the other columns that hold something. `id` and `name` are those of a
    published list: the video's and the clip's.
    """

    line: int
    file: str
    times: tuple[float, float] | None
    label: str
    split: str
    clip: tuple[float, float | None] | None = None
    columns: tuple[tuple[str, str], ...] = ()
    id: str = ""
    name: str = ""


@dataclass
class Table:
    """A csv's rows with their lines, and how it is written where that is not as documented (`read_as`)."""

    header: list[
        tuple[str, float]
    ]  # a column's name, empty where it has none, and how many of its unit are a second
    rows: list[tuple[int, list[str]]]
    separator: str
    read_as: dict[str, None] = field(default_factory=dict)


def read_text(path: Path, sources: dict[str, str]) -> str:
    """The label file's text; its sha256 goes into `sources`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CaeavError(
            f"{path}: label file cannot be read: {error.strerror}",
            hint="give the path of a csv: --labels FILE, and --relabel where another one is remembered",
        ) from None
    sources[path.name] = hashlib.sha256(data).hexdigest()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CaeavError(f"{path}:{line}: not UTF-8 (byte {error.start})", hint=_FIELD) from None


def read_labels(
    path: Path,
    sources: dict[str, str],
    media: MediaNames | None = None,
    findings: list[Finding] | None = None,
) -> list[LabelRow]:
    """All rows in order; the file's sha256 goes into `sources`. Raises one `CaeavError` with everything wrong.

    With `media`, each row's `file` is the media file it means; what had to be understood goes into `findings`. Names
    of files that are not there are left as they are, unless none is there: then nothing can be right.
    """
    content = read_text(path, sources)
    problems: list[str] = []
    table = _table(content, path, problems)
    meant = _meant(table, media)
    comma, wrong = decimal_commas(_time_texts(table), table.separator)
    if wrong:
        problems.append(f"times: {wrong}")
    rows: list[LabelRow] = []
    late: list[float] = []
    backwards = 0
    for line, fields in table.rows:
        row, wrong_fields = _parse(fields, table, line, comma, meant, late)
        problems += [f"line {line}: {text}" for text in wrong_fields]
        backwards += any("is before start_s" in text for text in wrong_fields)
        if row:
            rows.append(row)
    if problems:
        refuse_rows(path, problems, _cure(late, backwards, len(table.rows)))
    if media is not None and findings is not None:
        _report_names(path, rows, media, meant, findings)
        if table.read_as:
            findings.append(finding("labels_read_as", path.name, "; ".join(table.read_as)))
    _check_columns(path, table, rows)
    return rows


def refuse_rows(path: Path, problems: Sequence[str], hint: str) -> None:
    """Raise the error that tells all that is wrong with a label file's rows, the first `SHOWN_ERRORS` in full."""
    more = len(problems) - SHOWN_ERRORS
    shown = [*problems[:SHOWN_ERRORS], *([f"and {more} more"] if more > 0 else [])]
    raise CaeavError(f"{path}: {counted(len(problems), 'problem')}\n  " + "\n  ".join(shown), hint=hint)


def refuse_names(path: Path, count: int, first: str, media: MediaNames) -> None:
    """Raise the error for a label file of which no row names a file."""
    if not media.count:
        raise CaeavError(
            f"{path}: none of its {counted(count, 'row')} names a file, and {media.root} holds no media file",
            hint="name the folder that holds the media: --dataset FOLDER",
        )
    near = media.near(first)
    like = f"; the nearest name there is {near!r}" if near else ""
    raise CaeavError(
        f"{path}: none of its {counted(count, 'row')} names a media file of {media.root}: the first names {first!r}, "
        f"the folder holds {media.count}, such as {media.first!r}{like}",
        hint="write each file's path below the media folder with its extension, such as dog/a.mp4",
    )


def _table(content: str, path: Path, problems: list[str]) -> Table:
    """The csv cut into fields, its first line understood as the header."""
    first, lines = _first_line(content)
    separator = _separator(first)
    table = Table([], [], separator)
    if separator != ",":
        table.read_as[f"separated by {_SEPARATORS[separator]}"] = None
    text = io.StringIO(content, newline="")
    for _ in range(lines):
        text.readline()
    reader = csv.reader(text, delimiter=separator, strict=True, skipinitialspace=True)
    try:
        for fields in reader:
            fields = [value.strip() for value in fields]
            if not any(fields):
                continue
            line = reader.line_num + lines
            if not table.header:
                table.header = _header(fields, f"{path}:{line}", table)
            else:
                table.rows.append((line, fields))
    except csv.Error as error:
        problems.append(f"line {reader.line_num + lines}: not csv ({error}); nothing after it was read")
    if not table.rows and not problems:
        what = "has a header and no rows" if table.header else "is empty"
        raise CaeavError(f"{path}: the label file {what}", hint=_FIELD)
    return table


def _first_line(content: str) -> tuple[str, int]:
    """The first line that holds something, and how many lines (Excel's `sep=;`) are to be left out before it."""
    for number, line in enumerate(content.splitlines()):
        if line.strip().lower().startswith("sep="):
            return _first_line("\n".join(content.splitlines()[number + 1 :]))[0], number + 1
        if line.strip():
            return line, 0
    return "", 0


def _separator(line: str) -> str:
    """What separates fields: of comma, semicolon and tab the first that makes the line a header; a comma if none."""
    for separator in _SEPARATORS:
        try:
            names = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
        except csv.Error:
            continue
        if set(REQUIRED) <= {name.strip().lower() for name in names}:
            return separator
    return ","


def _header(fields: list[str], where: str, table: Table) -> list[tuple[str, float]]:
    """The columns' names; known ones in lower case, with the factor of their unit."""
    known = (*COLUMNS, *MILLISECONDS)
    names = [name.lower() if name.lower() in known else name for name in fields]
    if names != fields:
        table.read_as["column names in another case"] = None
    in_ms = [name for name in names if name in MILLISECONDS]
    if in_ms:
        table.read_as[f"{', '.join(in_ms)} as milliseconds"] = None
    plain = [MILLISECONDS.get(name, name) for name in names]
    twice = sorted({name for name in plain if name and plain.count(name) > 1})
    absent = [name for name in REQUIRED if name not in plain]
    alone = [
        f"{a} without {b}"
        for a, b in (("start_s", "end_s"), ("end_s", "start_s"), ("clip_end_s", "clip_start_s"))
        if a in plain and b not in plain
    ]
    alike = {
        name: wanted
        for wanted, others in ALIKE.items()
        for name in plain
        if name.lower() in others and wanted not in plain and (wanted in TIMES or wanted in absent)
    }
    if twice or absent or alone or alike:
        said = [f"{', '.join(twice)} twice"] if twice else []
        said += [f"no {' and no '.join(absent)}"] if absent else []
        said += alone
        said += [f"{name!r} is most likely {wanted}" for name, wanted in alike.items()]
        raise CaeavError(
            f"{where}: the columns are {', '.join(map(repr, fields))}: {'; '.join(said)}; allowed are "
            f"{', '.join(COLUMNS)} and others of your own, needed {' and '.join(REQUIRED)}",
            hint=_rename(alike) or _FIELD,
        )
    return [
        (name, 1000.0 if given in MILLISECONDS else 1.0) for name, given in zip(plain, names, strict=True)
    ]


def _rename(alike: dict[str, str]) -> str:
    """What to call columns that have another name; times also need their unit."""
    named = [
        f"{name!r} {wanted}" + (f" (seconds) or {wanted[:-1]}ms" if wanted in TIMES else "")
        for name, wanted in alike.items()
    ]
    return f"call the column {', '.join(named)}" if named else ""


def _time_texts(table: Table) -> Iterator[str]:
    places = [i for i, (name, _) in enumerate(table.header) if name in TIMES]
    for _, fields in table.rows:
        for i in places:
            if i < len(fields):
                yield fields[i]


def _meant(table: Table, media: MediaNames | None) -> dict[str, Meant]:
    """What the names in the column `file` mean; nothing where no media are known."""
    place = next((i for i, (name, _) in enumerate(table.header) if name == "file"), 0)
    if media is None:
        return {}
    return media.meant(fields[place] for _, fields in table.rows if len(fields) > place and fields[place])


def _parse(
    fields: list[str], table: Table, line: int, comma: bool, meant: dict[str, Meant], late: list[float]
) -> tuple[LabelRow | None, list[str]]:
    """The row, or None and all that is wrong with it; times past a day go into `late` too."""
    if len(fields) != len(table.header):
        return None, [f"{len(fields)} fields instead of {len(table.header)}"]
    value = dict.fromkeys(COLUMNS, "")
    scale = dict.fromkeys(TIMES, 1.0)
    others = []
    for (name, unit), text in zip(table.header, fields, strict=True):
        if name in COLUMNS:
            value[name] = text
            scale[name] = unit
        elif name and text:
            others.append((name, text))
    wrong: list[str] = []
    known = meant.get(value["file"], Meant(None))
    file = known.file or known.path or value["file"]
    if known.candidates:
        several = " or ".join(known.candidates[:EXAMPLES])
        said = "may be" if len(known.candidates) > 1 else "and another name both seem to be"
        wrong.append(f"file {value['file']!r} {said} {several}: write the path below the media folder")
    elif not is_inside(file):
        wrong.append(
            f"file is {value['file']!r}, it must be a path relative to the media folder, without '..'"
        )
    split = value["split"]
    if split and split not in SPLITS and split.lower() in SPLITS:
        split = split.lower()
        table.read_as["split names in another case"] = None
    if split and split not in SPLITS:
        wrong.append(f"split is {value['split']!r}, it must be {', '.join(SPLITS)} or empty")
    if value["label"].lower() == "background":
        wrong.append(f"label is {value['label']!r}; background is written as an empty label")
    if any(is_clock(value[name]) for name in TIMES):
        table.read_as["times as [hours:]minutes:seconds"] = None
    if comma:
        table.read_as["commas in times as decimal points"] = None
    times = _pair(("start_s", "end_s"), value, scale, comma, wrong, late)
    clip = _clip(value, scale, comma, wrong, late, any(name == "clip_start_s" for name, _ in table.header))
    if wrong:
        return None, wrong
    return LabelRow(line, str(PurePosixPath(file)), times, value["label"], split, clip, tuple(others)), []


def _pair(
    names: tuple[str, str],
    value: dict[str, str],
    scale: dict[str, float],
    comma: bool,
    wrong: list[str],
    late: list[float],
) -> tuple[float, float] | None:
    """Start and end; None when both are empty."""
    if not value[names[0]] and not value[names[1]]:
        return None
    times = [_time(name, value[name], scale[name], comma, wrong, late) for name in names]
    if times[1] < times[0]:
        wrong.append(f"{names[1]} {value[names[1]]} is before {names[0]} {value[names[0]]}")
    return times[0], times[1]


def _clip(
    value: dict[str, str],
    scale: dict[str, float],
    comma: bool,
    wrong: list[str],
    late: list[float],
    needed: bool,
) -> tuple[float, float | None] | None:
    """Where the row's clip lies, where the file says that of its clips."""
    if not needed:
        return None
    if value["clip_end_s"]:
        return _pair(("clip_start_s", "clip_end_s"), value, scale, comma, wrong, late)
    return _time("clip_start_s", value["clip_start_s"], scale["clip_start_s"], comma, wrong, late), None


def _time(name: str, text: str, scale: float, comma: bool, wrong: list[str], late: list[float]) -> float:
    seconds = seconds_of(text, comma, scale)
    if not 0 <= seconds <= MAX_TIME_S:
        unit = f"a number of {'milli' if scale > 1 else ''}seconds from 0 to {MAX_TIME_S * scale:g}"
        what = unit + ("" if name.startswith("clip") else " (or both times empty)")
        wrong.append(f"{name} is {text!r}, it must be {what}")
        if scale == 1 and MAX_TIME_S < seconds < math.inf:
            late.append(seconds)
    return seconds


def _cure(late: Sequence[float], backwards: int, rows: int) -> str:
    """What most likely mends the rows."""
    if late and max(late) <= MAX_TIME_S * 1000:
        return AS_MILLISECONDS
    if backwards > rows / 2 or backwards > 10:
        return "end_s is a time of the media as start_s is, not a length: write start plus length"
    return "mend these lines"


def _report_names(
    path: Path, rows: Sequence[LabelRow], media: MediaNames, meant: dict[str, Meant], findings: list[Finding]
) -> None:
    """What names were taken for, and rows that name no file; raises `CaeavError` when none does."""
    there = {file for file in {row.file for row in rows} if media.is_there(file)}
    without = [row for row in rows if row.file not in there]
    if rows and len(without) == len(rows):
        refuse_names(path, len(rows), rows[0].file, media)
    report_missing(path, rows, without, media, findings)
    kinds: dict[str, list[str]] = {}
    for name, found in meant.items():
        if found.file and found.how:
            kinds.setdefault(found.how, []).append(f"{name} -> {found.file}")
    for how, taken in kinds.items():
        more = f", ... ({len(taken)} names)" if len(taken) > EXAMPLES else ""
        findings.append(finding("names_taken_for", path.name, f"{how}: {', '.join(taken[:EXAMPLES])}{more}"))


def report_missing(
    path: Path,
    rows: Sequence[LabelRow],
    without: Sequence[LabelRow],
    media: MediaNames,
    findings: list[Finding],
) -> None:
    """One finding when half of the rows or more name no file."""
    if without and 2 * len(without) >= len(rows):
        first = without[0]
        near = media.near(first.file)
        like = f", the nearest there is {near}" if near else ""
        said = f"{len(without)} of {counted(len(rows), 'row')}, such as line {first.line}: {first.file}{like}"
        findings.append(finding("few_names_found", path.name, said))


def _check_columns(path: Path, table: Table, rows: Iterable[LabelRow]) -> None:
    """A column of splits that is called otherwise must not be passed over."""
    if any(name == "split" for name, _ in table.header):
        return
    values: dict[str, Counter[str]] = {}
    for row in rows:
        for name, text in row.columns:
            values.setdefault(name, Counter())[text.lower()] += 1
    for name, found in values.items():
        if found.keys() <= SPLIT_WORDS:
            raise CaeavError(
                f"{path}: the column {name!r} holds {', '.join(sorted(found))}, and there is no column 'split'",
                hint=f"call it split, with {', '.join(SPLITS)} in it",
            )
