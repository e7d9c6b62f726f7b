"""Times in label files: what people write becomes seconds, and times that can hardly be seconds are noticed.

`37`, `37.5`, `37,5` (where a comma can only be a decimal point), `1:30` and `1:02:03` are read; the column says the
unit. Times that hardly any media reaches, or that the media at hand are too short for, are reported with their likely
cause.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from caeav.manifests.core.util import capitalised
from caeav.manifests.readers.common import to_number

MAX_TIME_S = 86400.0
"""A day: later times count as a mistake, such as milliseconds, before they make a million clips."""

LONG_EVENTS_S = 120.0
"""Whole numbers whose ranges have a longer median than this may well be milliseconds or frame numbers."""

PAST_S = 0.5
"""Labels are rounded: one that ends at most this much later than its media is still inside it."""

FAR = 10
"""Labels that end at this many times the length of their media are no mistake of seconds."""

AS_MILLISECONDS = "if these are milliseconds, name the columns start_ms,end_ms, or divide them by 1000"

_CLOCK = re.compile(r"(?:(\d+):)?(\d+):([0-5]\d(?:[.,]\d+)?)")
_COMMA = re.compile(r"(\d+),(\d+)")
_FARTHEST, _SPREAD = 16, 16


class Range(NamedTuple):
    """A labelled range of a file in seconds of its media; `line` is its line in the label file."""

    line: int
    file: str
    start_s: float
    end_s: float


def decimal_commas(texts: Iterable[str], separator: str) -> tuple[bool, str]:
    """Whether `37,5` means 37.5 in a file; and what is wrong, where it may also be a thousand as in `1,000`."""
    texts = list(texts)
    found = [match for text in texts if (match := _COMMA.fullmatch(text))]
    if not found:
        return False, ""
    point = next((text for text in texts if "." in text and ":" not in text), "")
    if point:
        return False, f"both {found[0].group()!r} and {point!r}: one of comma and point must go"
    plain = any(len(match[2]) != 3 or match[1].startswith("0") for match in found)
    if plain or separator != ",":
        return True, ""
    either = f"{found[0].group()!r} may be {found[0][1]}.{found[0][2]} or {found[0][1]}{found[0][2]}"
    return False, f"{either}: write decimals with a point"


def seconds_of(text: str, comma: bool, scale: float = 1.0) -> float:
    """The seconds that a text stands for, NaN when it is not a time; `scale` is how many of its unit make a second."""
    clock = _CLOCK.fullmatch(text)
    if clock:
        hours, minutes, rest = clock.groups()
        if hours and int(minutes) > 59:
            return math.nan
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))
    if comma and _COMMA.fullmatch(text):
        text = text.replace(",", ".")
    return to_number(text) / scale


def is_clock(text: str) -> bool:
    """Whether a text is written as `mm:ss` or `hh:mm:ss`."""
    return bool(_CLOCK.fullmatch(text))


def doubt_seconds(ranges: Sequence[Range]) -> str:
    """Why these ranges are hardly seconds, in words; empty when nothing speaks against it."""
    if not ranges or any(not time.is_integer() for row in ranges for time in (row.start_s, row.end_s)):
        return ""
    usual = statistics.median(row.end_s - row.start_s for row in ranges)
    if usual < LONG_EVENTS_S:
        return ""
    return (
        f"all times are whole numbers and the ranges last {usual:g} s ({usual / 60:.0f} minutes) at the median, "
        f"such as line {ranges[0].line}, {ranges[0].start_s:g} to {ranges[0].end_s:g}: seconds? "
        f"{capitalised(AS_MILLISECONDS)}"
    )


def farthest_ranges(ranges: Iterable[Range]) -> list[Range]:
    """The last range of each of some files: of those whose labels reach farthest, and of others spread over all."""
    last: dict[str, Range] = {}
    for row in ranges:
        known = last.setdefault(row.file, row)
        if (row.end_s, row.start_s) > (known.end_s, known.start_s):
            last[row.file] = row
    ordered = sorted(last.values(), key=lambda row: (-row.end_s, row.file))
    rest = ordered[_FARTHEST:]
    return ordered[:_FARTHEST] + rest[:: max(1, -(-len(rest) // _SPREAD))]


def past_the_end(
    ranges: Sequence[Range], length_of: Mapping[str, float | None]
) -> tuple[list[tuple[Range, float]], bool]:
    """The ranges that reach past the end of their media, with its length; and whether none of them can be right.

    None can when every range whose media's length is known begins after its end, or ends at `FAR` times its length.
    """
    known = [(row, length) for row in ranges if (length := length_of.get(row.file)) is not None]
    past = [(row, length) for row, length in known if row.end_s > length + PAST_S]
    hopeless = bool(known) and all(
        row.start_s >= length or row.end_s >= FAR * length for row, length in known
    )
    return past, hopeless


def describe_past_end(past: Sequence[tuple[Range, float]]) -> str:
    """The first of the ranges past their media's end, in words, and as milliseconds where all would then fit."""
    row, length = past[0]
    text = f"line {row.line}: {row.start_s:g} to {row.end_s:g} s of {row.file}, which ends at {length:.3f} s"
    if all(row.end_s / 1000 <= length + PAST_S for row, length in past) and row.end_s >= FAR * length:
        text += f" (as milliseconds: {row.start_s / 1000:g} to {row.end_s / 1000:g} s)"
    return text
