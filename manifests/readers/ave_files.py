"""The lines of AVE's text files: `Category&VideoID&Quality&StartTime&EndTime`, with or without a header.

Knows one file at a time; what the files say together is `ave.py`. A line that cannot be read costs that line
and a finding; a file without any readable line is an error. Class names hold `, ` and `( )`, so a line is
split at `&` alone; line ends may be LF, CRLF or missing at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.clip import Finding
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import finding
from caeav.manifests.readers.common import is_name, read_file, shown

ANNOTATIONS = "Annotations.txt"
SPLIT_FILES = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}

OFFICIAL_CLASSES = (
    "Church bell",
    "Male speech, man speaking",
    "Bark",
    "Fixed-wing aircraft, airplane",
    "Race car, auto racing",
    "Female speech, woman speaking",
    "Helicopter",
    "Violin, fiddle",
    "Flute",
    "Ukulele",
    "Frying (food)",
    "Truck",
    "Shofar",
    "Motorcycle",
    "Acoustic guitar",
    "Train horn",
    "Clock",
    "Banjo",
    "Goat",
    "Baby cry, infant cry",
    "Bus",
    "Chainsaw",
    "Cat",
    "Horse",
    "Toilet flush",
    "Rodents, rats, mice",
    "Accordion",
    "Mandolin",
)
"""AVE's 28 classes in the column order of its label files; index 28 is background there."""

_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One line: times in seconds of the clip, not yet held against its length; `where` is `file:line`."""

    category: str
    video: str
    quality: str
    start_s: float
    end_s: float
    where: str


def read_rows(path: Path, sources: dict[str, str], findings: list[Finding]) -> list[Row]:
    """All readable rows in order; raises `CaeavError` when the file has lines and none can be read."""
    data = read_file(path, sources)
    rows: list[Row] = []
    damaged = 0
    first = True
    for line_number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if not raw.strip():
            continue
        where = f"{path.name}:{line_number}"
        fields = [field.strip() for field in raw.decode("utf-8", "backslashreplace").split("&")]
        if first and [name.lower() for name in fields[:2]] == ["category", "videoid"]:
            first = False
            continue
        first = False
        problem = _problem(raw, fields)
        if problem:
            damaged += 1
            findings.append(finding("damaged_row", where, f"{problem}: {shown(raw)}"))
            continue
        category, video, quality, start, end = fields
        rows.append(Row(category, video, quality, float(start), float(end), where))
    if damaged and not rows:
        raise CaeavError(
            f"{path}: none of its {damaged} lines can be read; the first: {findings[-damaged].detail}",
            hint="a line must be Category&VideoID&Quality&StartTime&EndTime",
        )
    return rows


def _problem(raw: bytes, fields: list[str]) -> str:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "not UTF-8"
    if len(fields) != _FIELDS:
        return f"{len(fields)} fields instead of {_FIELDS} between '&'"
    category, video, _, start, end = fields
    if not category:
        return "no category"
    if not is_name(video):
        return f"{video!r} is no video id"
    for name, value in (("StartTime", start), ("EndTime", end)):
        try:
            usable = math.isfinite(float(value))
        except ValueError:
            usable = False
        if not usable:
            return f"{name} {value!r} is no number"
    return ""
