"""LLP as distributed (Tian et al., ECCV 2020): audio-visual video parsing, with weak labels except in val and test.

    AVVP_train.csv, AVVP_val_pd.csv, AVVP_test_pd.csv   filename, event_labels: video-level labels of every clip
    AVVP_eval_audio.csv, AVVP_eval_visual.csv           filename, onset, offset, event_labels: events of val and test
    LLP_dataset/video/<YouTube id>.mp4                  the media, trimmed to the clip's 10 s

Fields are separated by tabs. A name is `<YouTube id>_<start>_<end>` with seconds of the YouTube video: the 11
characters of the id may hold `_` and `-`, the times may be decimals. An event belongs to the clip of exactly its file
name, as in the official evaluation; rows with a misspelt name are lost there and here, and reported. Clips come in the
order of the train, val and test files.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from caeav.manifests.clip import SPLITS, Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import leaks, zero_length_events
from caeav.manifests.keys import KeyRequest, assign_keys
from caeav.manifests.readers import ReadOptions
from caeav.manifests.readers.common import (
    ReadLog,
    first_file,
    how_to_get,
    is_name,
    media_by_stem,
    overlaps_clip,
    read_categories,
    read_shape,
    read_table,
    refuse_options,
    report_dashes,
    to_number,
)

SPLIT_FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
EVENT_FILES = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}
WEAK_HEADER = ("filename", "event_labels")
EVENT_HEADER = ("filename", "onset", "offset", "event_labels")
PLACES = ("", "data/")
"""Where below the root the csv files may lie; the official code keeps them in `data/`."""
MEDIA_FOLDERS = ("LLP_dataset/video", "data/LLP_dataset/video", "video", "videos", "data/video", ".")

OFFICIAL_CLASSES = (
    "Speech",
    "Car",
    "Cheering",
    "Dog",
    "Cat",
    "Frying_(food)",
    "Basketball_bounce",
    "Fire_alarm",
    "Chainsaw",
    "Cello",
    "Banjo",
    "Singing",
    "Chicken_rooster",
    "Violin_fiddle",
    "Vacuum_cleaner",
    "Baby_laughter",
    "Accordion",
    "Lawn_mower",
    "Motorcycle",
    "Helicopter",
    "Acoustic_guitar",
    "Telephone_bell_ringing",
    "Baby_cry_infant_cry",
    "Blender",
    "Clapping",
)
"""LLP's 25 classes in the order of the official code."""

_NAME = re.compile(r"(.{11})_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Video:
    """A line of a split file: the name and its video-level labels, each once."""

    name: str
    labels: tuple[str, ...]
    where: str

    @property
    def youtube(self) -> str:
        """The YouTube id as the official code takes it: the first 11 characters."""
        return self.name[:11]

    @property
    def has_decimals(self) -> bool:
        """Whether the times in the name have decimals, on which `int` and `splitext` fail."""
        return "." in self.name[11:]


@dataclass(frozen=True, slots=True)
class Timed:
    """A line of an event file, in whole seconds of the clip, not yet checked against its length."""

    name: str
    label: str
    onset_s: int
    offset_s: int
    where: str


def read(root: Path, options: ReadOptions) -> Manifest:
    """The manifest of the official files in `root`; raises `CaeavError` when a file is missing or unreadable."""
    refuse_options(options)
    names = (*SPLIT_FILES.values(), *EVENT_FILES.values())
    help_text = how_to_get(
        options.dataset,
        root,
        official=f"{', '.join(names)} and the videos {MEDIA_FOLDERS[0]}/<YouTube id>.mp4",
        authors="LLP's authors (github.com/YapengTian/AVVP-ECCV20)",
        generated=", ".join(names),
    )
    found = {name: first_file(root, [place + name for place in PLACES]) for name in names}
    paths = {name: path for name, path in found.items() if path is not None}
    absent = [name for name in names if name not in paths]
    if absent:
        raise CaeavError(f"{root}: {', '.join(absent)} not found", hint=help_text)

    log = ReadLog()
    segments, segment_s = read_shape(root, log)
    seconds = segments * segment_s
    listed = {split: read_videos(paths[name], log) for split, name in SPLIT_FILES.items()}
    videos, split_of = _videos(listed, log)
    if not videos:
        raise CaeavError(f"{root}: its csv files name no clip", hint=help_text)
    classes = tuple(read_categories(root, log)) or OFFICIAL_CLASSES
    videos = {name: _known_labels(video, classes, log) for name, video in videos.items()}
    tested = {name for name in videos if split_of[name] in ("val", "test")}
    events: dict[str, list[Event]] = {name: [] for name in videos}
    for modality, name in EVENT_FILES.items():
        rows = _known_events(read_events(paths[name], log), tested, classes, log)
        rows = [
            row
            for row in _unique(rows, log)
            if overlaps_clip(f"{row.label} in {row.name}", row.onset_s, row.offset_s, seconds, row.where, log)
        ]
        for row in rows:
            end_s = min(float(row.offset_s), seconds)
            events[row.name].append(Event(row.label, float(row.onset_s), end_s, modality))
        _report_overlaps(rows, log)
        with_events = {row.name for row in rows}
        code = "nothing_heard" if modality == "audio" else "nothing_seen"
        for video_name in videos:
            if video_name in tested and video_name not in with_events:
                log.add(code, video_name, f"in {split_of[video_name]}")
    _report_weak_labels([videos[name] for name in videos if name in tested], events, log)

    media = media_by_stem(root, MEDIA_FOLDERS, log)
    keys = assign_keys([KeyRequest(name, name) for name in videos])
    clips = tuple(
        Clip(
            key=key,
            media=media.get(name) or media.get(video.youtube) or f"{MEDIA_FOLDERS[0]}/{video.youtube}.mp4",
            start_s=0.0,
            seconds=seconds,
            split=split_of[name],
            events=tuple(events[name]),
            extra={"id": video.youtube, "name": name, "labels": list(video.labels)},
        )
        for key, (name, video) in zip(keys, videos.items(), strict=True)
    )
    report_dashes(list(videos), "csv files", log)
    for name, video in videos.items():
        if video.has_decimals:
            log.add("decimal_times", video.where, name)
    log.findings += leaks(clips) + zero_length_events(clips)
    return log.manifest(root, options.dataset, segments, segment_s, classes, clips)


def read_videos(path: Path, log: ReadLog) -> list[Video]:
    """All lines of a split file, in order."""
    videos = []
    for (name, text), where in read_table(path, "\t", WEAK_HEADER, log):
        if not is_name(name):
            log.add("damaged_row", where, f"{name!r} is no file name")
            continue
        labels = [label.strip() for label in text.split(",") if label.strip()]
        unique = tuple(dict.fromkeys(labels))
        if len(unique) < len(labels):
            log.add("repeated_label", where, f"{name}: {text}")
        if not _NAME.fullmatch(name):
            log.add("unusual_name", where, f"{name}: not <11 characters>_<start>_<end>")
        videos.append(Video(name, unique, where))
    return videos


def read_events(path: Path, log: ReadLog) -> list[Timed]:
    """All lines of an event file, in order; decimals of times are cut off, as the official code does."""
    events = []
    for (name, onset, offset, label), where in read_table(path, "\t", EVENT_HEADER, log):
        start_s, end_s = to_number(onset), to_number(offset)
        if not (start_s >= 0 and end_s >= 0):  # not a number compares false
            log.add("damaged_row", where, f"{name}: {onset!r} to {offset!r} are no seconds")
            continue
        if not (start_s.is_integer() and end_s.is_integer()):
            log.add("fractional_time", where, f"{label} in {name} from {onset} to {offset} s")
        events.append(Timed(name, label, int(start_s), int(end_s), where))
    return events


def _videos(listed: Mapping[str, Sequence[Video]], log: ReadLog) -> tuple[dict[str, Video], dict[str, str]]:
    """By name: its first line, and its split; a later split wins, so that nothing tested on is trained on."""
    videos: dict[str, Video] = {}
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for video in listed[split]:
            known = videos.setdefault(video.name, video)
            if known is not video:
                if split_of[video.name] == split:
                    log.add("duplicate_row", video.where, f"{video.name}, as {known.where}")
                else:
                    detail = f"{video.name}: also in {split_of[video.name]}"
                    log.add("row_in_two_splits", video.where, detail)
            split_of[video.name] = split
    return videos, split_of


def _known_labels(video: Video, classes: tuple[str, ...], log: ReadLog) -> Video:
    """The video without labels that are none of the classes."""
    for label in video.labels:
        if label not in classes:
            log.add("unknown_label", video.where, f"{video.name}: {label!r}")
    return replace(video, labels=tuple(label for label in video.labels if label in classes))


def _known_events(
    rows: Iterable[Timed], tested: set[str], classes: tuple[str, ...], log: ReadLog
) -> list[Timed]:
    """The rows that name a clip of val or test, and a class; the official code never sees the others."""
    kept = []
    for row in rows:
        if row.name not in tested:
            meant = next((n for n in sorted(tested) if n.endswith(row.name) or row.name.startswith(n)), "")
            likely = f"; {meant} is meant, most likely" if meant else ""
            damage = " (a class name: the damaged copy of other projects)" if row.name in classes else ""
            detail = f"{row.label} of {row.name!r}{damage}: no such clip in val or test{likely}"
            log.add("orphan_event", row.where, detail)
        elif row.label not in classes:
            log.add("unknown_label", row.where, f"{row.name}: {row.label!r}")
        else:
            kept.append(row)
    return kept


def _unique(rows: Iterable[Timed], log: ReadLog) -> list[Timed]:
    """Each event once."""
    first: dict[tuple[str, str, int, int], Timed] = {}
    for row in rows:
        twin = first.setdefault((row.name, row.label, row.onset_s, row.offset_s), row)
        if twin is not row:
            log.add("duplicate_row", row.where, f"{row.label} in {row.name}, as {twin.where}")
    return list(first.values())


def _report_overlaps(rows: Iterable[Timed], log: ReadLog) -> None:
    """Pairs of video and class whose own events overlap; wherever seconds are counted they are united."""
    groups: dict[tuple[str, str], list[Timed]] = {}
    for row in rows:
        groups.setdefault((row.name, row.label), []).append(row)
    for (name, label), group in groups.items():
        ordered = sorted(group, key=lambda row: (row.onset_s, row.offset_s))
        if any(after.onset_s < before.offset_s for before, after in itertools.pairwise(ordered)):
            ranges = ", ".join(f"{row.onset_s}-{row.offset_s}" for row in ordered)
            log.add("overlapping_events", group[0].where, f"{label} in {name}: {ranges} s")


def _report_weak_labels(videos: Iterable[Video], events: Mapping[str, Sequence[Event]], log: ReadLog) -> None:
    """Clips whose video-level labels are not the classes of their events."""
    for video in videos:
        timed = {event.label for event in events[video.name]}
        if timed != set(video.labels):
            more = [f"only timed: {label}" for label in sorted(timed - set(video.labels))]
            fewer = [f"without a time: {label}" for label in video.labels if label not in timed]
            log.add("weak_labels_differ", video.name, "; ".join([*more, *fewer]))
