"""What readers and `check` say about a data set: the list of codes, and the findings read off the rows alone.

A finding is never fatal: it is kept in the manifest's header, so that whoever uses the rows later can see
what was met when they were made. Codes are stable and each means one thing.
"""

from __future__ import annotations

from collections.abc import Iterable

from caeav.manifests.clip import SPLITS, Clip, Finding

CODES = {
    "missing_media": "no media file where the clip's should be; extraction quarantines the clip",
    "id_in_two_splits": "clips of one video lie in two splits, so scores on them are too good",
    "zero_length_event": "the event has no length: no second of the clip is an event second",
    "repeated_id": "one video id in several clips, told apart by their class",
    "dash_id": "ids begin with '-' and look like options to command line tools",
    "several_events": "several rows of one video and class: one clip with several events",
    "duplicate_row": "the same row twice; used once",
    "damaged_row": "the row could not be read; skipped",
    "backwards_event": "the event ends before it starts; row skipped",
    "time_outside": "the event reaches out of the clip; cut to it, or skipped where nothing is left",
    "no_split": "the row is in no split file; the clip has no split",
    "row_in_two_splits": "one clip was put in several splits; test is taken over val, val over train",
    "not_annotated": "the row is in a split file but not in the annotations; taken from the split file",
    "split_row_differs": "split file and annotations give other times; the annotations' are taken",
    "empty_split": "the split file has no row",
    "unknown_class": "a class name that is not in the data set's list; put behind the others",
    "several_media": "several media files for one id; the first of mp4, mkv, webm, ... is taken",
    "skipped_files": "files whose extension is not one of media; left out",
    "unreadable_folder": "a folder or file could not be looked at; left out",
    "unreadable_name": "the file's name is not valid UTF-8; left out, rename it",
    "unlabelled_file": "the label file does not name this media file; a clip without events and split",
    "official_files_ignored": "the folder holds a data set's official files; read as plain media they are unused",
}


def finding(code: str, where: str, detail: str) -> Finding:
    """A `Finding` whose code is one of `CODES`; another code is a programming mistake (`ValueError`)."""
    if code not in CODES:
        raise ValueError(f"finding code {code!r} is not listed in CODES")
    return Finding(code, where, detail)


def video_id(clip: Clip) -> str:
    """What two clips of the same video share: the official id where there is one, else the media path."""
    official = clip.extra.get("id")
    return official if isinstance(official, str) else clip.media


def leaks(clips: Iterable[Clip]) -> list[Finding]:
    """One `id_in_two_splits` for each video with clips in more than one of train, val and test."""
    keys: dict[str, dict[str, list[str]]] = {}
    for clip in clips:
        if clip.split:
            keys.setdefault(video_id(clip), {}).setdefault(clip.split, []).append(clip.key)
    return [
        finding("id_in_two_splits", name, "; ".join(f"{s}: {', '.join(by[s])}" for s in SPLITS if s in by))
        for name, by in keys.items()
        if len(by) > 1
    ]


def without_length(clips: Iterable[Clip]) -> list[Finding]:
    """One `zero_length_event` for each event whose end is its start."""
    return [
        finding(
            "zero_length_event", clip.key, f"{event.label!r} from {event.start_s:g} s to {event.end_s:g} s"
        )
        for clip in clips
        for event in clip.events
        if event.start_s == event.end_s
    ]
