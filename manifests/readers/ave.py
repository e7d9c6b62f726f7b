"""AVE as distributed (Tian et al., ECCV 2018), and any set in its layout, such as the generated one.

    Annotations.txt                         Category&VideoID&Quality&StartTime&EndTime, with or without this header
    trainSet.txt, valSet.txt, testSet.txt   the same lines: the split of each (video, class)
    AVE/<id>.mp4                            the media

45 of AVE's ids occur more than once, always with another class: a clip is a (video, class), and its key says both.
Clips come in the order of `Annotations.txt`, which the row numbers in the authors' `*_order.h5` count. Class names
hold `, ` and `( )`, so lines are split at `&` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.clip import SPLITS, Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import leaks, zero_length_events
from caeav.manifests.keys import KeyRequest, assign_keys, slug
from caeav.manifests.readers import ReadOptions
from caeav.manifests.readers.common import (
    ReadLog,
    how_to_get,
    is_name,
    media_by_stem,
    order_classes,
    overlaps_clip,
    read_categories,
    read_shape,
    read_table,
    refuse_options,
    report_dashes,
    to_number,
)

ANNOTATIONS = "Annotations.txt"
SPLIT_FILES = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}
MEDIA_FOLDER = "AVE"
HEADER = ("Category", "VideoID", "Quality", "StartTime", "EndTime")

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

Pair = tuple[str, str]
"""(video id, class): what makes a clip."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line. Times are in seconds of the clip and not yet checked against its length; `where` is `file:line`."""

    category: str
    video: str
    quality: str
    start_s: float
    end_s: float
    where: str


def read(root: Path, options: ReadOptions) -> Manifest:
    """The manifest of the official files in `root`; raises `CaeavError` when a file is missing or unreadable."""
    refuse_options(options)
    needed = (ANNOTATIONS, *SPLIT_FILES.values())
    help_text = how_to_get(
        options.dataset,
        root,
        official=f"{', '.join(needed)} and the video folder {MEDIA_FOLDER}/",
        authors="AVE's authors (github.com/YapengTian/AVE-ECCV18)",
        generated=f"{', '.join(needed)} and {MEDIA_FOLDER}/",
    )
    absent = [name for name in needed if not (root / name).is_file()]
    if absent:
        raise CaeavError(f"{root}: {', '.join(absent)} not found", hint=help_text)

    log = ReadLog()
    segments, segment_s = read_shape(root, log)
    seconds = segments * segment_s
    annotated = _group(_keep_inside(read_rows(root / ANNOTATIONS, log), seconds, log), log)
    split_rows: dict[str, dict[Pair, list[Row]]] = {}
    for split, name in SPLIT_FILES.items():
        rows = read_rows(root / name, log)
        if not rows:
            log.add("empty_split", name, f"no clip is in {split}")
        split_rows[split] = _group(_keep_inside(rows, seconds, log), log)
    if not annotated and not any(split_rows.values()):
        raise CaeavError(f"{root / ANNOTATIONS}: has no usable row", hint=help_text)
    split_of = _splits(annotated, split_rows, log)
    _report_pairs(annotated, log)

    media = media_by_stem(root, (MEDIA_FOLDER,), log)
    keys = assign_keys(
        [KeyRequest(f"{video}__{slug(name).lower()}", f"{video}&{name}") for video, name in annotated]
    )
    clips = tuple(
        Clip(
            key=key,
            media=media.get(video, f"{MEDIA_FOLDER}/{video}.mp4"),
            start_s=0.0,
            seconds=seconds,
            split=split_of.get((video, name), ""),
            events=tuple(Event(name, max(row.start_s, 0.0), min(row.end_s, seconds)) for row in rows),
            extra={"id": video, "quality": rows[0].quality},
        )
        for key, ((video, name), rows) in zip(keys, annotated.items(), strict=True)
    )
    used = dict.fromkeys(name for _, name in annotated)
    classes = order_classes(used, _class_order(set(used), read_categories(root, log)), ANNOTATIONS, log)
    log.findings += leaks(clips) + zero_length_events(clips)
    return log.manifest(root, options.dataset, segments, segment_s, classes, clips)


def read_rows(path: Path, log: ReadLog) -> list[Row]:
    """All readable rows in order; raises `CaeavError` when the file has lines and none can be read."""
    return [
        Row(category, video, quality, float(start), float(end), where)
        for (category, video, quality, start, end), where in read_table(
            path, "&", HEADER, log, header_optional=True, check=_problem
        )
    ]


def _problem(fields: tuple[str, ...]) -> str:
    category, video, _, start, end = fields
    if not category:
        return "no category"
    if not is_name(video):
        return f"{video!r} is no video id"
    for name, text in (("StartTime", start), ("EndTime", end)):
        if math.isnan(to_number(text)):
            return f"{name} {text!r} is no number"
    return ""


def _keep_inside(rows: Iterable[Row], seconds: float, log: ReadLog) -> list[Row]:
    return [
        row
        for row in rows
        if overlaps_clip(f"{row.category} in {row.video}", row.start_s, row.end_s, seconds, row.where, log)
    ]


def _group(rows: Iterable[Row], log: ReadLog) -> dict[Pair, list[Row]]:
    """Rows by (video, class) in order of first appearance; the same range of a pair counts once."""
    groups: dict[Pair, list[Row]] = {}
    for row in rows:
        group = groups.setdefault((row.video, row.category), [])
        twin = next((r for r in group if (r.start_s, r.end_s) == (row.start_s, row.end_s)), None)
        if twin:
            log.add("duplicate_row", row.where, f"{row.category} in {row.video}, as {twin.where}")
        else:
            group.append(row)
    return groups


def _splits(
    annotated: dict[Pair, list[Row]], split_rows: Mapping[str, Mapping[Pair, list[Row]]], log: ReadLog
) -> dict[Pair, str]:
    """The split of each pair; pairs that only a split file has are appended to `annotated`."""
    split_of: dict[Pair, str] = {}
    for split in SPLITS:  # a later one wins, so that nothing that is tested on is trained on
        for pair, rows in split_rows[split].items():
            video, name = pair
            if pair in split_of:
                log.add("row_in_two_splits", rows[0].where, f"{name} in {video}: also in {split_of[pair]}")
            split_of[pair] = split
            if pair not in annotated:
                annotated[pair] = rows
                log.add("not_annotated", rows[0].where, f"{name} in {video}")
            known = {(row.start_s, row.end_s) for row in annotated[pair]}
            for row in rows:
                if (row.start_s, row.end_s) not in known:
                    detail = f"{name} in {video}: {row.start_s:g} to {row.end_s:g} s"
                    log.add("split_row_differs", row.where, detail)
    for (video, name), rows in annotated.items():
        if (video, name) not in split_of:
            log.add("no_split", rows[0].where, f"{name} in {video}")
    return split_of


def _report_pairs(annotated: Mapping[Pair, list[Row]], log: ReadLog) -> None:
    """Pairs with several events, videos with several classes, and ids that look like options."""
    names: dict[str, list[str]] = {}
    for (video, name), rows in annotated.items():
        names.setdefault(video, []).append(name)
        if len(rows) > 1:
            ranges = ", ".join(f"{row.start_s:g} to {row.end_s:g} s" for row in rows)
            log.add("several_events", rows[1].where, f"{name} in {video}: {ranges}")
    for video, of_video in names.items():
        if len(of_video) > 1:
            log.add("repeated_id", video, "; ".join(of_video))
    report_dashes([video for video, _ in annotated], ANNOTATIONS, log)


def _class_order(used: set[str], listed: list[str]) -> list[str]:
    """`categories.txt` where it lists other classes than AVE's; AVE's order where a class of AVE is used; else none."""
    official = set(OFFICIAL_CLASSES)
    if listed and set(listed) != official:
        return listed
    return list(OFFICIAL_CLASSES) if listed or official & used else []
