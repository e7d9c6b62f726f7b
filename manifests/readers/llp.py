"""LLP as distributed (Tian et al., ECCV 2020): audio-visual video parsing, labelled weakly but for val and test.

Every clip has video-level labels; timed events, told apart by modality, exist for val and test alone, in two files
that mix both. An event belongs to the clip of exactly its file name, as in the official evaluation: rows whose name
is misspelt are lost there and are lost here, but said. Media are trimmed to the 10 s and called after the YouTube id
alone (`<11 characters>.mp4`). Clips come in the order of the train, val and test files.

The lines of LLP's csv files, which are separated by tabs: names with video-level labels, and timed events.

Knows one file at a time; what the files say together is `llp.py`. A name is `<YouTube id>_<start>_<end>` with
seconds of the YouTube video; the 11 characters of the id may themselves hold `_` and `-`, the times decimals.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from caeav.manifests.clip import SPLITS, Clip, Event, Finding, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import finding, leaks, zero_length_events
from caeav.manifests.keys import KeyRequest, assign_keys
from caeav.manifests.readers import ReadOptions
from caeav.manifests.readers.common import (
    first_there,
    is_name,
    media_by_stem,
    read_categories,
    read_shape,
    read_table,
    refuse_options,
    report_dashes,
)

SPLIT_FILES = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
EVENT_FILES = {"audio": "AVVP_eval_audio.csv", "visual": "AVVP_eval_visual.csv"}
WEAK_HEADER = ("filename", "event_labels")
EVENT_HEADER = ("filename", "onset", "offset", "event_labels")

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
    def decimal(self) -> bool:
        """Whether the name's times have decimals, which `int` and `splitext` stumble over."""
        return "." in self.name[11:]


@dataclass(frozen=True, slots=True)
class Timed:
    """A line of an event file; whole seconds of the clip, not yet held against its length."""

    name: str
    label: str
    onset_s: int
    offset_s: int
    where: str


def read_videos(path: Path, sources: dict[str, str], findings: list[Finding]) -> list[Video]:
    """All lines of a split file, in order."""
    videos = []
    for (name, text), where in read_table(path, "\t", WEAK_HEADER, sources, findings):
        if not is_name(name):
            findings.append(finding("damaged_row", where, f"{name!r} is no file name"))
            continue
        labels = [label.strip() for label in text.split(",") if label.strip()]
        unique = tuple(dict.fromkeys(labels))
        if len(unique) < len(labels):
            findings.append(finding("repeated_label", where, f"{name}: {text}"))
        if not _NAME.fullmatch(name):
            findings.append(finding("unusual_name", where, f"{name}: not <11 characters>_<start>_<end>"))
        videos.append(Video(name, unique, where))
    return videos


def read_events(path: Path, sources: dict[str, str], findings: list[Finding]) -> list[Timed]:
    """All lines of an event file, in order; decimals of times are cut off, as the official code does."""
    events = []
    for (name, onset, offset, label), where in read_table(path, "\t", EVENT_HEADER, sources, findings):
        times = [_seconds(text) for text in (onset, offset)]
        if None in times:
            findings.append(finding("damaged_row", where, f"{name}: {onset!r} to {offset!r} are no seconds"))
            continue
        start_s, end_s = (float(time or 0.0) for time in times)
        if not (start_s.is_integer() and end_s.is_integer()):
            findings.append(
                finding("fractional_time", where, f"{label} in {name} from {onset} to {offset} s")
            )
        events.append(Timed(name, label, int(start_s), int(end_s), where))
    return events


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


PLACES = ("", "data/")
"""Below the root: where the csv files may lie (the official code keeps them in `data/`)."""
MEDIA_FOLDERS = ("LLP_dataset/video", "data/LLP_dataset/video", "video", "videos", "data/video", ".")


def read(root: Path, options: ReadOptions) -> Manifest:
    """The manifest of the official files in `root`; raises `CaeavError` when a file is not there or unreadable."""
    refuse_options(options)
    paths = {
        name: first_there(root, [place + name for place in PLACES])
        for name in (*SPLIT_FILES.values(), *EVENT_FILES.values())
    }
    absent = [name for name, path in paths.items() if path is None]
    if absent:
        raise CaeavError(f"{root}: {', '.join(absent)} not found", hint=_how_to_get(options.dataset, root))
    there = {name: path for name, path in paths.items() if path is not None}

    sources: dict[str, str] = {}
    findings: list[Finding] = []
    segments, segment_s = read_shape(root, sources)
    seconds = segments * segment_s
    listed = {split: read_videos(there[name], sources, findings) for split, name in SPLIT_FILES.items()}
    videos, split_of = _videos(listed, findings)
    if not videos:
        raise CaeavError(f"{root}: its csv files name no clip", hint=_how_to_get(options.dataset, root))
    classes = _classes(videos.values(), read_categories(root, sources), findings)
    videos = {n: replace(v, labels=tuple(x for x in v.labels if x in classes)) for n, v in videos.items()}
    tested = {name for name in videos if split_of[name] in ("val", "test")}
    events: dict[str, list[Event]] = {name: [] for name in videos}
    for modality, name in EVENT_FILES.items():
        rows = _known(read_events(there[name], sources, findings), tested, classes, findings)
        rows = _sound(_once(rows, findings), seconds, findings)
        for row in rows:
            end_s = min(float(row.offset_s), seconds)
            events[row.name].append(Event(row.label, float(row.onset_s), end_s, modality))
        _report_overlaps(rows, findings)
        _report_without(rows, [n for n in videos if n in tested], split_of, modality, findings)
    _report_weak(videos, events, tested, findings)

    media = media_by_stem(root, MEDIA_FOLDERS, findings)
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
    report_dashes(list(videos), "csv files", findings)
    findings += [
        finding("decimal_times", video.where, name) for name, video in videos.items() if video.decimal
    ]
    findings += leaks(clips) + zero_length_events(clips)
    return Manifest(
        dataset=options.dataset,
        segments=segments,
        segment_s=segment_s,
        classes=classes,
        clips=clips,
        media_root=str(root.absolute()),
        sources=sources,
        findings=tuple(findings),
    )


def _how_to_get(dataset: str, root: Path) -> str:
    names = ", ".join((*SPLIT_FILES.values(), *EVENT_FILES.values()))
    if dataset != "llp":
        return f"make the set with: caeav synthesise --dataset llp (it writes {names} to {root})"
    return (
        f"put {names} and the videos {MEDIA_FOLDERS[0]}/<YouTube id>.mp4 into {root}, or name their folder with "
        "--root; they come from LLP's authors (github.com/YapengTian/AVVP-ECCV20), not with caeav"
    )


def _videos(
    listed: Mapping[str, Sequence[Video]], findings: list[Finding]
) -> tuple[dict[str, Video], dict[str, str]]:
    """By name: its first line, and its split; a later split wins, so that nothing tested on is trained on."""
    videos: dict[str, Video] = {}
    split_of: dict[str, str] = {}
    for split in SPLITS:
        for video in listed[split]:
            known = videos.setdefault(video.name, video)
            if known is not video:
                if split_of[video.name] == split:
                    findings.append(finding("duplicate_row", video.where, f"{video.name}, as {known.where}"))
                else:
                    said = f"{video.name}: also in {split_of[video.name]}"
                    findings.append(finding("row_in_two_splits", video.where, said))
            split_of[video.name] = split
    return videos, split_of


def _classes(videos: Iterable[Video], listed: list[str], findings: list[Finding]) -> tuple[str, ...]:
    """LLP's own order, or that of `categories.txt`; labels that are in neither are left out."""
    classes = tuple(listed) or OFFICIAL_CLASSES
    for video in videos:
        findings += [
            finding("unknown_label", video.where, f"{video.name}: {label!r}")
            for label in video.labels
            if label not in classes
        ]
    return classes


def _known(
    rows: Iterable[Timed], tested: set[str], classes: tuple[str, ...], findings: list[Finding]
) -> list[Timed]:
    """The rows that name a clip of val or test and a class; the official code never sees the others."""
    kept = []
    for row in rows:
        if row.name not in tested:
            meant = next((n for n in sorted(tested) if n.endswith(row.name) or row.name.startswith(n)), "")
            likely = f"; {meant} is meant, most likely" if meant else ""
            damage = " (a class name: the damaged copy of other projects)" if row.name in classes else ""
            said = f"{row.label} of {row.name!r}{damage}: no such clip in val or test{likely}"
            findings.append(finding("orphan_event", row.where, said))
        elif row.label not in classes:
            findings.append(finding("unknown_label", row.where, f"{row.name}: {row.label!r}"))
        else:
            kept.append(row)
    return kept


def _once(rows: Iterable[Timed], findings: list[Finding]) -> list[Timed]:
    """The same event only once."""
    first: dict[tuple[str, str, int, int], Timed] = {}
    for row in rows:
        twin = first.setdefault((row.name, row.label, row.onset_s, row.offset_s), row)
        if twin is not row:
            findings.append(
                finding("duplicate_row", row.where, f"{row.label} in {row.name}, as {twin.where}")
            )
    return list(first.values())


def _sound(rows: Iterable[Timed], seconds: float, findings: list[Finding]) -> list[Timed]:
    """The rows whose times mean something; a backwards one covers no second, so nothing is lost with it."""
    kept = []
    for row in rows:
        times = f"{row.label} in {row.name} from {row.onset_s} s to {row.offset_s} s"
        if row.offset_s < row.onset_s:
            findings.append(finding("backwards_event", row.where, times))
            continue
        if row.offset_s > seconds:
            done = "skipped" if row.onset_s >= seconds else "cut"
            said = f"{times}, the clip has {seconds:g} s; {done}"
            findings.append(finding("time_outside", row.where, said))
            if row.onset_s >= seconds:
                continue
        kept.append(row)
    return kept


def _report_overlaps(rows: Iterable[Timed], findings: list[Finding]) -> None:
    """Pairs of video and class whose own events overlap; they are united wherever seconds are counted."""
    groups: dict[tuple[str, str], list[Timed]] = {}
    for row in rows:
        groups.setdefault((row.name, row.label), []).append(row)
    for (name, label), group in groups.items():
        ordered = sorted(group, key=lambda row: (row.onset_s, row.offset_s))
        if any(after.onset_s < before.offset_s for before, after in itertools.pairwise(ordered)):
            ranges = ", ".join(f"{row.onset_s}-{row.offset_s}" for row in ordered)
            findings.append(finding("overlapping_events", group[0].where, f"{label} in {name}: {ranges} s"))


def _report_without(
    rows: Iterable[Timed],
    tested: Iterable[str],
    split_of: Mapping[str, str],
    modality: str,
    findings: list[Finding],
) -> None:
    named = {row.name for row in rows}
    code = "nothing_heard" if modality == "audio" else "nothing_seen"
    findings += [finding(code, name, f"in {split_of[name]}") for name in tested if name not in named]


def _report_weak(
    videos: Mapping[str, Video],
    events: Mapping[str, Sequence[Event]],
    tested: set[str],
    findings: list[Finding],
) -> None:
    """Clips whose video-level labels are not the classes of their events."""
    for name, video in videos.items():
        timed = {event.label for event in events[name]}
        if name in tested and timed != set(video.labels):
            more = [f"only timed: {label}" for label in sorted(timed - set(video.labels))]
            fewer = [f"without a time: {label}" for label in video.labels if label not in timed]
            findings.append(finding("weak_labels_differ", name, "; ".join([*more, *fewer])))
