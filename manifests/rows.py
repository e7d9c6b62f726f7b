"""One manifest row: `Clip` to JSON value and back, every field checked both ways.

What could not be read back is not written either. A problem names place, value seen and value allowed. `manifest.py`
has the files and their header.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

from caeav.manifests.clip import MODALITIES, SPLITS, Clip, Event
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.keys import KEY_PATTERN

CLIP_FIELDS = ("key", "media", "start_s", "seconds", "split", "events", "extra")
EVENT_FIELDS = ("label", "start_s", "end_s")
_EVENT_FIELDS = frozenset(EVENT_FIELDS)
MODALITY = "modality"
"""The only field that an event may lack: events of both modalities do, and rows older than the field."""

_SEEN_CHARS = 120
_STRICT = json.JSONEncoder(allow_nan=False)
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_+-]+(?:[./][A-Za-z0-9_+-]+)*")
_REBUILD = "build the manifest again (caeav manifest build), or fix the row"


class ManifestError(CaeavError):
    """A manifest that is torn or damaged, or breaks a rule of its rows."""


def refuse(where: str, name: str, seen: object, allowed: str) -> ManifestError:
    """The error for a field; `where` is `file:line` or the clip, `allowed` follows "it must be"."""
    text = repr(seen)
    shown = text if len(text) <= _SEEN_CHARS else f"{text[:_SEEN_CHARS]}..."
    return ManifestError(f"{where}: {name} is {shown}, it must be {allowed}", hint=_REBUILD)


def fields_of(value: object, names: Collection[str], what: str, where: str) -> Mapping[str, Any]:
    """`value`, a JSON object with exactly the fields `names`; raises `ManifestError` for anything else."""
    if not isinstance(value, dict) or value.keys() != frozenset(names):
        seen = sorted(value) if isinstance(value, dict) else value
        raise refuse(where, what, seen, f"an object with the fields {', '.join(names)}")
    return value


def text(value: object, name: str, where: str) -> str:
    """`value`, a string; raises `ManifestError` for anything else."""
    if not isinstance(value, str):
        raise refuse(where, name, value, "a string")
    return value


def number(value: object, name: str, where: str) -> float:
    """`value` as a finite float; raises `ManifestError` for anything else, also for true and false."""
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refuse(where, name, value, "a number")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise refuse(where, name, value, "a finite number")
    return result


def clip_to_row(clip: Clip) -> dict[str, Any]:
    """The JSON object of a clip; all numbers are floats, so that equal clips give equal bytes."""
    return {
        "key": clip.key,
        "media": clip.media,
        "start_s": float(clip.start_s),
        "seconds": float(clip.seconds),
        "split": clip.split,
        "events": [
            {
                "label": event.label,
                "start_s": float(event.start_s),
                "end_s": float(event.end_s),
                **({MODALITY: event.modality} if event.modality else {}),
            }
            for event in clip.events
        ],
        "extra": dict(clip.extra),
    }


def clip_from_row(value: object, classes: Collection[str], where: str) -> Clip:
    """The clip of a JSON object read at `where`; raises `ManifestError` for the first wrong field."""
    row = fields_of(value, CLIP_FIELDS, "the row", where)
    if not isinstance(row["events"], list):
        raise refuse(where, "events", row["events"], "a list")
    if not isinstance(row["extra"], dict):
        raise refuse(where, "extra", row["extra"], "an object")
    clip = Clip(
        key=text(row["key"], "key", where),
        media=text(row["media"], "media", where),
        start_s=number(row["start_s"], "start_s", where),
        seconds=number(row["seconds"], "seconds", where),
        split=text(row["split"], "split", where),
        events=tuple([_event(event, where, i) for i, event in enumerate(row["events"])]),
        extra=row["extra"],
    )
    check_clip(clip, classes, where)
    return clip


def _event(value: object, where: str, number_: int) -> Event:
    if (
        isinstance(value, dict) and value.keys() == _EVENT_FIELDS
    ):  # nearly all events, and a manifest may have millions of them
        label, start_s, end_s = value["label"], value["start_s"], value["end_s"]
        if (
            type(label) is str
            and type(start_s) is type(end_s) is float
            and -math.inf < start_s <= end_s < math.inf
        ):
            return Event(label, start_s, end_s)
    where = f"{where}: event {number_}"
    names = (*EVENT_FIELDS, MODALITY) if isinstance(value, dict) and MODALITY in value else EVENT_FIELDS
    row = fields_of(value, names, "the event", where)
    return Event(
        label=text(row["label"], "label", where),
        start_s=number(row["start_s"], "start_s", where),
        end_s=number(row["end_s"], "end_s", where),
        modality=text(row.get(MODALITY, ""), MODALITY, where),
    )


def check_clip(clip: Clip, classes: Collection[str], where: str) -> None:
    """Raise `ManifestError` unless the clip obeys the rules of a row; empty `classes` allow any label."""
    if not KEY_PATTERN.fullmatch(clip.key):
        raise refuse(where, "key", clip.key, "1 to 200 of the characters A-Z a-z 0-9 _ + -")
    if not is_inside(clip.media):
        raise refuse(where, "media", clip.media, "a path relative to the media folder, without '..'")
    if not (math.isfinite(clip.start_s) and clip.start_s >= 0):
        raise refuse(where, "start_s", clip.start_s, "0 or more")
    if not (math.isfinite(clip.seconds) and clip.seconds > 0):
        raise refuse(where, "seconds", clip.seconds, "more than 0")
    if clip.split and clip.split not in SPLITS:
        raise refuse(where, "split", clip.split, f"one of {', '.join(SPLITS)}, or empty")
    for event in clip.events:
        if not event.label or (classes and event.label not in classes):
            raise refuse(
                where, "an event's label", event.label, f"one of the {len(classes)} classes of the header"
            )
        if event.modality not in MODALITIES:
            raise refuse(where, "an event's modality", event.modality, "audio, visual or left out")
        if not 0 <= event.start_s <= event.end_s <= clip.seconds:
            raise refuse(
                where,
                "an event's range",
                (event.start_s, event.end_s),
                f"start <= end within 0 to {clip.seconds:g} s",
            )
    try:
        if clip.extra:
            _STRICT.encode(dict(clip.extra))
    except (TypeError, ValueError):
        raise refuse(where, "extra", clip.extra, "JSON values, without NaN or infinity") from None


def is_inside(media: str) -> bool:
    """Whether `media` is a relative posix path that cannot leave the folder it is relative to."""
    if _PLAIN_PATH.fullmatch(media):
        return True
    path = PurePosixPath(media)
    try:
        media.encode("utf-8")  # JSON can write characters that no file name can have
    except UnicodeEncodeError:
        return False
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in media
