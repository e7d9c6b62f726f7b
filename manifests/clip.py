"""The rows everything else is about: `Clip`, its `Event` labels, and the `Manifest` that holds them.

Plain frozen data; `manifest.py` reads and writes files, `readers/` makes the rows from official files.
Times are seconds, relative to the clip for events and to the media file for `Clip.start_s`.

What each data set puts where (`T` segments per clip; everything in `extra` is JSON):

    all          extra["id"]: what clips of one video share (YouTube id); extra["name"]: official name, if another
    AVE          one event: the class and its time; modality ""
    LLP          extra["labels"]: the video-level labels, in every split. Events with modality "audio" or "visual"
                 in val and test; train has none
    AVSBench     extra["masks"]: T entries, each null (no ground truth) or a base64 1-bit PNG of the official size;
                 S4 also extra["category"], MS3 extra["objects"] where a list of them is there; no events
    MUSIC-AVQA   a clip is a whole video with split "", as questions are split and not videos; no events.
                 extra["questions"]: list of {"id": int, "split", "type": [modality, kind], "text": template filled
                 in, "words": as the official code cuts them, "answer", "template"}; `Manifest.classes` are answers
    own media    extra["columns"]: what other columns of the label file say, each a list of texts
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.key_index import Keys

SPLITS = ("train", "val", "test")
SPLIT_CODES = ("", *SPLITS)
"""Splits by the number they have in arrays; 0 is no split."""
MODALITIES = ("", "audio", "visual")


@dataclass(frozen=True, slots=True)
class Event:
    """One labelled time range of a clip; `start_s == end_s` is an event without length (AVE has one).

    `modality` is where it happens, one of `MODALITIES`; empty: in both, or the data set does not tell.
    """

    label: str
    start_s: float
    end_s: float
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Clip:
    """One manifest row: a time range of a media file with its labels.

    `media` is relative to the manifest's `media_root` (posix separators); `start_s` and `seconds` say which
    part of it the clip is. `split` is `train`, `val`, `test` or empty. `extra` holds what only one data set
    knows (its official id, quality, ...), JSON values only.
    """

    key: str
    media: str
    start_s: float
    seconds: float
    split: str = ""
    events: tuple[Event, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def source(self) -> tuple[str, str, float, float]:
        """What decides the clip's tokens, and nothing else: key, media, start, seconds."""
        return self.key, self.media, self.start_s, self.seconds

    def labels(self) -> tuple[str, ...]:
        """The clip's video-level (weak) labels: `extra["labels"]`, else its category, else those of its events."""
        category = self.extra.get("category")
        named = self.extra.get("labels", [category] if category else [event.label for event in self.events])
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a user should know about a data set: a stable `code`, where it is, and the fact in words."""

    code: str
    where: str
    detail: str


def active_segments(
    events: Sequence[Event], classes: Sequence[str], segments: int, segment_s: float
) -> NDArray[np.float32]:
    """`[T, K]` in 0/1: which class is on in which segment.

    An event covers segment `t` if `start <= t < end` in segments, so an event of no or negative length covers none.
    """
    on = np.zeros((segments, len(classes)), np.float32)
    for event in events:
        for t in range(segments):
            if event.start_s <= t * segment_s < event.end_s:
                on[t, classes.index(event.label)] = 1
    return on


def video_of(media: str, extra: Mapping[str, Any]) -> str:
    """What clips of one video share: the official id in `extra`, else the media file."""
    official = extra.get("id")
    return official if isinstance(official, str) else media


class ClipTable(Sequence[Clip]):
    """The clips of a manifest in order, and columns that are at hand without looking at each clip.

    This one holds the clips themselves; `lazy_clips.LazyClips` leaves the rows of a large manifest in their file.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    @overload
    def __getitem__(self, at: int) -> Clip: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Clip]: ...
    def __getitem__(self, at: int | slice) -> Clip | Sequence[Clip]:
        return self._clips[at]

    @cached_property
    def keys(self) -> Keys:
        """The key of each clip."""
        return Keys.of(clip.key for clip in self)

    @cached_property
    def splits(self) -> NDArray[np.uint8]:
        """The split of each clip, as its place in `SPLIT_CODES`."""
        return np.array([SPLIT_CODES.index(clip.split) for clip in self], np.uint8)

    def videos(self, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """What clips of one video share (`video_of`), for the clips in these rows."""
        for row in rows:
            clip = self[int(row)]
            yield video_of(clip.media, clip.extra).encode("utf-8", "surrogatepass")

    def file_rows(self) -> memoryview | None:
        """The rows as a manifest file holds them, where they lie in one; equal rows are equal bytes."""
        return None


@dataclass(frozen=True)
class Manifest:
    """All clips of a data set, in a fixed order, each cut into `segments` of `segment_s` seconds.

    `classes` gives the label order. `sources` maps official files to their sha256. `media_root` is where the
    media lie on this machine; it takes no part in any digest. `table` reads columns of the clips at little cost.
    """

    dataset: str
    segments: int
    segment_s: float
    classes: tuple[str, ...]
    clips: Sequence[Clip]
    media_root: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @cached_property
    def table(self) -> ClipTable:
        """The clips with their columns."""
        return self.clips if isinstance(self.clips, ClipTable) else ClipTable(self.clips)

    @property
    def keys(self) -> Keys:
        """The clips' keys in order."""
        return self.table.keys

    def split_counts(self) -> dict[str, int]:
        """Clips per split, in the usual order; clips without a split under the empty name."""
        counts = np.bincount(self.table.splits, minlength=len(SPLIT_CODES)).tolist()
        return {name: n for name, n in zip((*SPLITS, ""), (*counts[1:], counts[0]), strict=True) if n}
