"""What a store holds, in numbers and words: `caeav store show`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caeav.pipeline.store.reader import ArraySpec, StoreReader


@dataclass(frozen=True)
class Description:
    """`arrays` are those of the first record; `bytes` and `bytes_a_clip` count what lies in the shards.

    `quarantine` counts clips by stage and reason, `notes` the clips that carry a note of that code, most
    frequent first; `no_video` and `no_audio` the clips of which no segment holds real pictures or sound.
    """

    clips: int
    expected: int
    missing: int
    bytes: int
    bytes_a_clip: int
    arrays: Mapping[str, ArraySpec]
    quarantine: tuple[tuple[str, str, int], ...]
    notes: tuple[tuple[str, int], ...]
    no_video: int
    no_audio: int


def describe(reader: StoreReader) -> Description:
    """Describe an open store; reads every record's facts, no arrays but the first record's."""
    notes: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    for key in reader.keys:
        info = reader.info(key)
        notes.update({_code(note) for note in info.get("notes", ())})
        empty.update(name for name in ("frames_ok", "audio_ok") if name in info and not any(info[name]))
    reasons = Counter((entry.stage, entry.reason) for entry in reader.quarantined)
    size = reader.shard_bytes
    return Description(
        clips=len(reader),
        expected=len(reader.manifest.clips),
        missing=len(reader.missing),
        bytes=size,
        bytes_a_clip=size // len(reader) if len(reader) else 0,
        arrays=reader.array_specs(),
        quarantine=tuple((stage, reason, n) for (stage, reason), n in reasons.most_common()),
        notes=tuple(notes.most_common()),
        no_video=empty["frames_ok"],
        no_audio=empty["audio_ok"],
    )


def _code(note: Any) -> str:
    return str(note["code"]) if isinstance(note, Mapping) and "code" in note else str(note)
