"""The lines of LLP's csv files, which are separated by tabs: names with video-level labels, and timed events.

Knows one file at a time; what the files say together is `llp.py`. A name is `<YouTube id>_<start>_<end>` with
seconds of the YouTube video; the 11 characters of the id may themselves hold `_` and `-`, the times decimals.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.clip import Finding
from caeav.manifests.findings import finding
from caeav.manifests.readers.common import is_name, read_table

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
