"""The label file of a folder of media: a csv with the columns `file,start_s,end_s,label,split`.

Each row is one event of one media file, with times in seconds of the media. `start_s`, `end_s` and `split` may be left
out or empty: no times mean the whole first clip. An empty `label` marks the range as background. With `clip_start_s`
(and `clip_end_s`) a row also says which clip it is about. Other columns are kept. Files come from people and
spreadsheets, so a byte order mark, CRLF, quotes, blank lines, and `;` or tabs between fields are ordinary. All errors
are reported at once. A file is read as a whole or not at all, because a skipped row would be a wrong label. The
published lists of VGGSound and AudioSet are read by `lists.py`.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import EXAMPLES, counted, some_lines, some_of
from caeav.manifests.readers.common import ReadLog, csv_cells, csv_rows
from caeav.manifests.readers.names import Match, MediaNames
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
"""Names that most likely mean one of the columns; passing over such a column would be a wrong label."""

SPLIT_WORDS = {*SPLITS, "training", "valid", "validation", "dev", "eval", "testing"}
SHOWN_ERRORS = 20
_FORMAT = "write the columns file,start_s,end_s,label,split, separated by commas, in UTF-8"
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row of a label file or a published list; an empty `label` is background.

    times: start and end in media seconds, None for the whole clip. clip: where the row's clip starts and ends in the
    media (the end None where it is not said); None where the file says nothing about clips. columns: the other columns
    that hold something. id, name: the video's and the clip's in a published list.
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
    """The rows of a csv with their line numbers.

    header: each column's name (empty where it has none), and how many of its unit make a second. read_as: in which ways
    the file differs from the documented format, in words.
    """

    header: list[tuple[str, float]]
    rows: list[tuple[int, list[str]]]
    separator: str
    read_as: dict[str, None] = field(default_factory=dict)


def read_labels(path: Path, log: ReadLog, media: MediaNames | None = None) -> list[LabelRow]:
    """All rows in order. Raises one `CaeavError` with everything that is wrong.

    With `media`, each row's `file` is the media file that it means. Names of missing files stay as they are, unless all
    are missing: then nothing can be right. What had to be interpreted is logged.
    """
    content = read_text(path, log)
    problems: list[str] = []
    table = _table(content, path, problems)
    matches = _match_files(table, media)
    comma, wrong = decimal_commas(_time_texts(table), table.separator)
    if wrong:
        problems.append(f"times: {wrong}")
    parser = _RowParser(table, comma, matches)
    rows: list[LabelRow] = []
    for line, fields in table.rows:
        row, wrong_fields = parser.parse(line, fields)
        problems += [f"line {line}: {text}" for text in wrong_fields]
        if row:
            rows.append(row)
    if problems:
        refuse_rows(path, problems, parser.hint())
    if media is not None:
        _report_names(path, rows, media, matches, log)
        if table.read_as:
            log.add("labels_read_as", path.name, "; ".join(table.read_as))
    _refuse_hidden_splits(path, table, rows)
    return rows


def read_text(path: Path, log: ReadLog) -> str:
    """The text of a label file; its digest is logged."""
    data = log.read_file(
        path, hint="give the path of a csv: --labels FILE, and --relabel where another one is remembered"
    )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CaeavError(f"{path}:{line}: not UTF-8 (byte {error.start})", hint=_FORMAT) from None


def refuse_rows(path: Path, problems: Sequence[str], hint: str) -> None:
    """Raise the error that lists what is wrong with a label file's rows, the first `SHOWN_ERRORS` in full."""
    lines = some_lines(problems, SHOWN_ERRORS)
    raise CaeavError(f"{path}: {counted(len(problems), 'problem')}\n  " + "\n  ".join(lines), hint=hint)


def refuse_names(path: Path, count: int, first: str, media: MediaNames) -> None:
    """Raise the error for a label file in which no row names a media file."""
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


def report_missing(
    path: Path, rows: Sequence[LabelRow], without: Sequence[LabelRow], media: MediaNames, log: ReadLog
) -> None:
    """One finding when half of the rows or more name no file; `without` are those rows."""
    if without and 2 * len(without) >= len(rows):
        first = without[0]
        near = media.near(first.file)
        like = f", the nearest there is {near}" if near else ""
        count = f"{len(without)} of {counted(len(rows), 'row')}"
        log.add("few_names_found", path.name, f"{count}, such as line {first.line}: {first.file}{like}")


def _table(content: str, path: Path, problems: list[str]) -> Table:
    """The csv cut into fields; its first row is the header."""
    first, lines_before = _first_line(content)
    separator = _separator(first)
    table = Table([], [], separator)
    if separator != ",":
        table.read_as[f"separated by {_SEPARATORS[separator]}"] = None
    text = io.StringIO(content, newline="")
    for _ in range(lines_before):
        text.readline()
    for line, fields in csv_rows(text, problems, separator, lines_before):
        if not table.header:
            table.header = _header(fields, f"{path}:{line}", table)
        else:
            table.rows.append((line, fields))
    if not table.rows and not problems:
        what = "has a header and no rows" if table.header else "is empty"
        raise CaeavError(f"{path}: the label file {what}", hint=_FORMAT)
    return table


def _first_line(content: str) -> tuple[str, int]:
    """The first line that holds something, and how many lines to skip before it (Excel's `sep=;`)."""
    for number, line in enumerate(content.splitlines()):
        if line.strip().lower().startswith("sep="):
            return _first_line("\n".join(content.splitlines()[number + 1 :]))[0], number + 1
        if line.strip():
            return line, 0
    return "", 0


def _separator(line: str) -> str:
    """The first of comma, semicolon and tab that makes the line a header; a comma if none does."""
    for separator in _SEPARATORS:
        if set(REQUIRED) <= {name.lower() for name in csv_cells(line, separator)}:
            return separator
    return ","


def _header(fields: list[str], where: str, table: Table) -> list[tuple[str, float]]:
    """Each column's name (known ones in lower case, without their unit) and how many of its unit make a second."""
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
        problems = [f"{', '.join(twice)} twice"] if twice else []
        problems += [f"no {' and no '.join(absent)}"] if absent else []
        problems += alone
        problems += [f"{name!r} is most likely {wanted}" for name, wanted in alike.items()]
        raise CaeavError(
            f"{where}: the columns are {', '.join(map(repr, fields))}: {'; '.join(problems)}; allowed are "
            f"{', '.join(COLUMNS)} and others of your own, needed {' and '.join(REQUIRED)}",
            hint=_rename(alike) or _FORMAT,
        )
    return [
        (name, 1000.0 if given in MILLISECONDS else 1.0) for name, given in zip(plain, names, strict=True)
    ]


def _rename(alike: dict[str, str]) -> str:
    """What to call the columns that have another name; times need their unit, too."""
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


def _match_files(table: Table, media: MediaNames | None) -> dict[str, Match]:
    """What the names in the column `file` mean; nothing where no media are known."""
    place = next((i for i, (name, _) in enumerate(table.header) if name == "file"), 0)
    if media is None:
        return {}
    return media.match(fields[place] for _, fields in table.rows if len(fields) > place and fields[place])


class _RowParser:
    """Makes the rows of one table, and counts the mistakes that suggest a cause."""

    def __init__(self, table: Table, comma: bool, matches: Mapping[str, Match]) -> None:
        self._table = table
        self._comma = comma
        self._matches = matches
        self._scale = dict.fromkeys(TIMES, 1.0) | dict(table.header)
        self._has_clips = any(name == "clip_start_s" for name, _ in table.header)
        self._late: list[float] = []  # times past a day
        self._backwards = 0  # rows that end before they start

    def parse(self, line: int, fields: list[str]) -> tuple[LabelRow | None, list[str]]:
        """The row, or None and everything that is wrong with it."""
        if len(fields) != len(self._table.header):
            return None, [f"{len(fields)} fields instead of {len(self._table.header)}"]
        value = dict.fromkeys(COLUMNS, "")
        others = []
        for (name, _), text in zip(self._table.header, fields, strict=True):
            if name in COLUMNS:
                value[name] = text
            elif name and text:
                others.append((name, text))
        wrong: list[str] = []
        file = self._file(value["file"], wrong)
        split = self._split(value["split"], wrong)
        if value["label"].lower() == "background":
            wrong.append(f"label is {value['label']!r}; background is written as an empty label")
        if any(is_clock(value[name]) for name in TIMES):
            self._table.read_as["times as [hours:]minutes:seconds"] = None
        if self._comma:
            self._table.read_as["commas in times as decimal points"] = None
        times = self._range(("start_s", "end_s"), value, wrong)
        clip = self._clip(value, wrong) if self._has_clips else None
        if wrong:
            return None, wrong
        return LabelRow(line, file, times, value["label"], split, clip, tuple(others)), []

    def hint(self) -> str:
        """What most likely fixes the rows."""
        rows, backwards = len(self._table.rows), self._backwards
        if self._late and max(self._late) <= MAX_TIME_S * 1000:
            return AS_MILLISECONDS
        if backwards > rows / 2 or backwards > 10:
            return "end_s is a time of the media as start_s is, not a length: write start plus length"
        return "fix these lines"

    def _file(self, name: str, wrong: list[str]) -> str:
        match = self._matches.get(name, Match(None))
        file = match.file or match.path or name
        if match.candidates:
            several = " or ".join(match.candidates[:EXAMPLES])
            verb = "may be" if len(match.candidates) > 1 else "and another name both seem to be"
            wrong.append(f"file {name!r} {verb} {several}: write the path below the media folder")
        elif not is_inside(file):
            wrong.append(f"file is {name!r}, it must be a path relative to the media folder, without '..'")
        return str(PurePosixPath(file))

    def _split(self, text: str, wrong: list[str]) -> str:
        split = text
        if split and split not in SPLITS and split.lower() in SPLITS:
            split = split.lower()
            self._table.read_as["split names in another case"] = None
        if split and split not in SPLITS:
            wrong.append(f"split is {text!r}, it must be {', '.join(SPLITS)} or empty")
        return split

    def _range(
        self, names: tuple[str, str], value: Mapping[str, str], wrong: list[str]
    ) -> tuple[float, float] | None:
        """Start and end; None when both are empty."""
        first, last = names
        if not value[first] and not value[last]:
            return None
        start_s, end_s = (self._time(name, value[name], wrong) for name in names)
        if end_s < start_s:
            wrong.append(f"{last} {value[last]} is before {first} {value[first]}")
            self._backwards += first == "start_s"
        return start_s, end_s

    def _clip(self, value: Mapping[str, str], wrong: list[str]) -> tuple[float, float | None] | None:
        """Where the row's clip lies; its end is None where only the start is given."""
        if value["clip_end_s"]:
            return self._range(("clip_start_s", "clip_end_s"), value, wrong)
        return self._time("clip_start_s", value["clip_start_s"], wrong), None

    def _time(self, name: str, text: str, wrong: list[str]) -> float:
        scale = self._scale[name]
        seconds = seconds_of(text, self._comma, scale)
        if not 0 <= seconds <= MAX_TIME_S:
            unit = f"a number of {'milli' if scale > 1 else ''}seconds from 0 to {MAX_TIME_S * scale:g}"
            what = unit + ("" if name.startswith("clip") else " (or both times empty)")
            wrong.append(f"{name} is {text!r}, it must be {what}")
            if scale == 1 and MAX_TIME_S < seconds < math.inf:
                self._late.append(seconds)
        return seconds


def _report_names(
    path: Path, rows: Sequence[LabelRow], media: MediaNames, matches: Mapping[str, Match], log: ReadLog
) -> None:
    """What names were taken for, and rows that name no file; raises `CaeavError` when no row names one."""
    there = {file for file in {row.file for row in rows} if media.is_there(file)}
    without = [row for row in rows if row.file not in there]
    if rows and len(without) == len(rows):
        refuse_names(path, len(rows), rows[0].file, media)
    report_missing(path, rows, without, media, log)
    taken: dict[str, list[str]] = {}
    for name, match in matches.items():
        if match.file and match.how:
            taken.setdefault(match.how, []).append(f"{name} -> {match.file}")
    for how, names in taken.items():
        log.add("names_taken_for", path.name, f"{how}: {some_of(names)}")


def _refuse_hidden_splits(path: Path, table: Table, rows: Iterable[LabelRow]) -> None:
    """A column of splits with another name must not be passed over."""
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
