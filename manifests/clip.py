"""The rows everything else is about: `Clip`, its `Event` labels, and the `Manifest` that holds them.

Plain frozen data; reading and writing files is `jsonl.py`, making rows from official files is `readers/`.
Times are seconds, relative to the clip for events and to the media file for `Clip.start_s`.

What the data sets put where (`T` segments a clip; all of `extra` is JSON):

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

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caeav.manifests.key_index import Keys

SPLITS = ("train", "val", "test")
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


@dataclass(frozen=True)
class Manifest:
    """All clips of a data set, in a fixed order, each cut into `segments` of `segment_s` seconds.

    `classes` gives the label order. `sources` maps official files to their sha256. `media_root` is where the
    media lie on this machine; it takes no part in any digest. Of a large file `clips` stay in it (`rowfile.py`).
    """

    dataset: str
    segments: int
    segment_s: float
    classes: tuple[str, ...]
    clips: Sequence[Clip]
    media_root: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def keys(self) -> Keys:
        """The clips' keys in order."""
        there = getattr(self.clips, "keys", None)
        return there if isinstance(there, Keys) else Keys.of(clip.key for clip in self.clips)

    def split_counts(self) -> dict[str, int]:
        """Clips a split, in the usual order; clips without a split under the empty name."""
        codes = getattr(self.clips, "splits", None)
        if codes is None:
            counts = Counter(clip.split for clip in self.clips)
        else:
            counts = Counter({name: int((codes == code).sum()) for code, name in enumerate(("", *SPLITS))})
        return {name: counts[name] for name in (*SPLITS, "") if counts[name]}
