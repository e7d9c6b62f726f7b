"""Which parts of which files are clips, and which rows of the label file are about them. There are three ways.

By events: a file is cut into consecutive windows of a clip's length, and each window that a row touches is a clip. By
rows: each row says where its clip begins. By a stride: a window begins every so many seconds of every file, whether a
row touches it or not. Such windows lie within the file, except a last one that holds seconds no other does and lies
within it by at least half; a file shorter than a clip is one clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import counted
from caeav.manifests.readers.common import ReadLog
from caeav.manifests.readers.labels import LabelRow

EDGE_S = 1e-6
"""Times closer than this are equal: a range that ends on a window's edge does not touch the next window."""
LENGTH_S = 0.05
"""Clip lengths closer than this are equal: labels are rounded, and a frame lasts about as long."""
MAX_WINDOWS = 2_000_000
"""More clips from one folder count as a mistake."""


@dataclass
class Window:
    """A clip in the making: what the rows that touch it say."""

    events: dict[tuple[str, float, float], None] = field(default_factory=dict)
    splits: set[str] = field(default_factory=set)
    columns: dict[str, dict[str, None]] = field(default_factory=dict)
    id: str = ""
    name: str = ""

    def take(self, row: LabelRow, begins_s: float, seconds: float, range_s: tuple[float, float]) -> None:
        """Add what a row says; of its range `range_s` (media seconds) only what lies within the window."""
        if row.label:
            inside = (round(time - begins_s, 6) for time in range_s)
            begin, end = (min(max(time, 0.0), seconds) for time in inside)
            self.events[row.label, begin, end] = None
        self.id, self.name = row.id or self.id, row.name or self.name
        for name, text in row.columns:
            self.columns.setdefault(name, {})[text] = None

    @property
    def split(self) -> str:
        """The last of its splits in the order train, val, test, so that nothing that is tested on is trained on."""
        return max(self.splits, key=SPLITS.index, default="")


Windows = dict[str, dict[float, Window]]
"""By file, then by the second at which the clip begins in it."""


def windows_of_events(rows: Iterable[LabelRow], seconds: float, log: ReadLog) -> Windows:
    """The windows `[i * seconds, (i + 1) * seconds)` that rows touch."""
    rows = list(rows)
    splits = _splits(rows)
    files: Windows = {}
    halved = []
    for row in _unique(rows, log):
        start_s, end_s = row.times or (0.0, seconds)
        first = math.floor((start_s + EDGE_S) / seconds)
        last = max(first, math.ceil((end_s - EDGE_S) / seconds) - 1)
        if last == first + 1 and abs(end_s - start_s - seconds) < LENGTH_S:
            halved.append(row)
        for index in range(first, last + 1):
            begins_s = index * seconds
            window = files.setdefault(row.file, {}).setdefault(begins_s, Window())
            window.splits |= _splits_of(row, splits)
            window.take(row, begins_s, seconds, (start_s, end_s))
    if halved:
        row = halved[0]
        start_s, end_s = row.times or (0.0, seconds)
        detail = (
            f"{len(halved)} of {counted(len(rows), 'row')} last just {seconds:g} s and lie across two clips, "
            f"such as line {row.line}, {start_s:g} to {end_s:g} s of {row.file}"
        )
        log.add("clip_cut_in_two", "labels", detail)
    _report_splits(files, log)
    return files


def windows_of_rows(rows: Iterable[LabelRow], seconds: float, log: ReadLog) -> Windows:
    """The clips that rows name; raises `CaeavError` when one is longer than `seconds` or does not hold its event."""
    rows = list(rows)
    lengths = [(row.clip[1] - row.clip[0], row) for row in rows if row.clip and row.clip[1] is not None]
    longest, at = max(lengths, key=lambda pair: pair[0], default=(seconds, None))
    if at and abs(longest - seconds) > LENGTH_S and (longest > seconds or len(lengths) == len(rows)):
        whole = longest.is_integer() and f"--segments {longest:g} --segment-seconds 1"
        raise CaeavError(
            f"line {at.line}: the clip lasts {longest:g} s, the data set's clips {seconds:g} s",
            hint=f"all clips of a set have one length: {whole or f'--segments 1 --segment-seconds {longest:g}'}, "
            "or leave clip_end_s empty for clips of the data set's length",
        )
    splits = _splits(rows)
    files: Windows = {}
    outside: list[LabelRow] = []
    cut = 0
    for row in _unique(rows, log):
        begins_s, ends_s = row.clip or (0.0, None)
        labelled = (begins_s, begins_s + seconds if ends_s is None else min(ends_s, begins_s + seconds))
        start_s, end_s = row.times or labelled
        if start_s >= labelled[1] - EDGE_S or (end_s <= begins_s + EDGE_S and start_s < begins_s - EDGE_S):
            outside.append(row)
            continue
        cut += start_s < labelled[0] - EDGE_S or end_s > labelled[1] + EDGE_S
        window = files.setdefault(row.file, {}).setdefault(begins_s, Window())
        window.splits |= _splits_of(row, splits)
        window.take(row, begins_s, seconds, (max(start_s, labelled[0]), min(end_s, labelled[1])))
    if outside:
        row = outside[0]
        start_s, end_s = row.times or (0.0, 0.0)
        at_s = row.clip[0] if row.clip else 0.0
        raise CaeavError(
            f"line {row.line}: the event from {start_s:g} to {end_s:g} s lies outside its clip, which begins at "
            f"{at_s:g} s ({counted(len(outside), 'such row')})",
            hint="start_s and end_s are seconds of the media, not of the clip: "
            f"here {at_s + start_s:g} and {at_s + end_s:g}, if they were meant from the clip's start",
        )
    if cut:
        log.add("time_outside", "labels", f"{counted(cut, 'event')} cut to the clip")
    short = [(length, row) for length, row in lengths if length < seconds - LENGTH_S]
    if short:
        length, row = short[0]
        begins_s = row.clip[0] if row.clip else 0.0
        detail = f"{counted(len(short), 'row')}, such as line {row.line}: {length:g} s from {begins_s:g} s on"
        log.add("short_clip", "labels", detail)
    _report_splits(files, log)
    return files


def windows_by_stride(
    files: Sequence[str],
    rows: Iterable[LabelRow],
    seconds: float,
    stride_s: float,
    length_of: Mapping[str, float | None],
    log: ReadLog,
) -> Windows:
    """A window every `stride_s` of each file, with the events inside; a row without times holds for the whole file.

    All windows of a file are in the last split that its rows name (test after val after train). A file of unknown
    length is cut up to the end of its last row; without rows it is one clip.
    """
    rows = list(rows)
    splits = _splits(rows)
    by_file: dict[str, list[LabelRow]] = {}
    for row in _unique(rows, log):
        by_file.setdefault(row.file, []).append(row)
    made: Windows = {}
    tails: list[tuple[str, float]] = []
    unknown: list[str] = []
    between: list[LabelRow] = []
    total = 0
    for file in dict.fromkeys([*files, *by_file]):
        own = by_file.get(file, [])
        length = length_of.get(file)
        if length is None:
            unknown.append(file)
        end_s = max((row.times[1] for row in own if row.times), default=seconds) if length is None else length
        count = window_count(end_s, seconds, stride_s)
        total += count
        if total > MAX_WINDOWS:
            raise CaeavError(
                f"a clip every {stride_s:g} s makes more than {MAX_WINDOWS} clips of this folder",
                hint="a longer stride makes fewer: --stride-seconds",
            )
        left = end_s - ((count - 1) * stride_s + seconds)
        if left > EDGE_S:
            tails.append((file, left))
        windows = {index * stride_s: Window() for index in range(count)}
        for window in windows.values():
            window.splits = set(splits.get(file, ()))
        for row in own:
            start_s, stop_s = row.times or (0.0, (count - 1) * stride_s + seconds)
            first = max(0, math.floor((start_s - seconds + EDGE_S) / stride_s) + 1)
            last = math.ceil((stop_s - EDGE_S) / stride_s) - 1
            if stop_s - start_s < EDGE_S:
                last = math.floor((start_s + EDGE_S) / stride_s)
            hit = [index * stride_s for index in range(first, min(last, count - 1) + 1)]
            if not hit:
                between.append(row)
            for begins_s in hit:
                windows[begins_s].take(row, begins_s, seconds, (start_s, stop_s))
        made[file] = windows
    _report_stride(tails, unknown, between, log)
    _report_splits(made, log, by_file=True)
    return made


def window_count(length_s: float, seconds: float, stride_s: float) -> int:
    """Into how many windows of `seconds`, one every `stride_s`, a file of `length_s` is cut; at least one."""
    count = max(1, math.floor((length_s - seconds) / stride_s) + 1)
    left_s = length_s - ((count - 1) * stride_s + seconds)
    return count + (left_s > EDGE_S and length_s - count * stride_s >= seconds / 2 - EDGE_S)


def _report_stride(
    tails: Sequence[tuple[str, float]],
    unknown: Sequence[str],
    between: Sequence[LabelRow],
    log: ReadLog,
) -> None:
    if tails:
        file, left = tails[0]
        lost = sum(left for _, left in tails)
        detail = f"{lost:.1f} s at the ends of {counted(len(tails), 'file')}, such as the last {left:.1f} s of {file}"
        log.add("tail_left_out", "stride", detail)
    if unknown:
        log.add("unknown_length", "stride", f"{counted(len(unknown), 'file')}, such as {unknown[0]}")
    if between:
        detail = f"{counted(len(between), 'row')}, such as line {between[0].line} of {between[0].file}"
        log.add("event_in_no_clip", "stride", detail)


def _splits(rows: Iterable[LabelRow]) -> dict[str, set[str]]:
    """By file, the splits its rows name."""
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.file, set()).update({row.split} - {""})
    return splits


def _splits_of(row: LabelRow, splits: Mapping[str, set[str]]) -> set[str]:
    """The split of a row; a row without one goes where the file's other rows go, if these agree."""
    return {row.split} if row.split or len(splits[row.file]) != 1 else splits[row.file]


def _unique(rows: Iterable[LabelRow], log: ReadLog) -> Iterable[LabelRow]:
    """Each row once."""
    seen: dict[object, int] = {}
    for row in rows:
        twin = seen.setdefault((row.file, row.times, row.label, row.split, row.clip, row.columns), row.line)
        if twin != row.line:
            log.add("duplicate_row", f"line {row.line}", f"as line {twin}: {row.file}")
        else:
            yield row


def _report_splits(files: Windows, log: ReadLog, by_file: bool = False) -> None:
    for file, windows in files.items():
        for begins_s, window in windows.items():
            window.splits.discard("")
            if len(window.splits) > 1 and not (by_file and begins_s):
                named = ", ".join(sorted(window.splits))
                where = "all of it" if by_file else f"from {begins_s:g} s on"
                log.add("row_in_two_splits", file, f"{where}: {named}")
