"""What every decoder is asked for and returns, and how much its work may cost.

Shapes: `T` segments, `H`x`W` pixels. A decoder never decides policy: it reports what it met as `Note`s and raises
`DecodeError` only when there is nothing to give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError


@dataclass(frozen=True)
class Sampling:
    """What is wanted of a clip: one frame at each segment's centre, and mono audio at `rate_hz`."""

    segments: int
    segment_s: float
    rate_hz: int

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.segments * self.segment_s

    @property
    def samples(self) -> int:
        """Samples of the whole clip, an exact multiple of `segment_samples`."""
        return self.segments * self.segment_samples

    @property
    def segment_samples(self) -> int:
        """Samples of one segment."""
        return round(self.segment_s * self.rate_hz)

    def centres_s(self, start_s: float) -> list[float]:
        """Media times of the segment centres."""
        return [start_s + (t + 0.5) * self.segment_s for t in range(self.segments)]


@dataclass(frozen=True, slots=True)
class Note:
    """A fact about a clip that its user should know; `code` is stable (`short_audio`, `no_audio`, ...)."""

    code: str
    detail: str


@dataclass
class DecodedClip:
    """Decoded frames and audio of one clip.

    frames: uint8 `[T, H, W, 3]`, or None when the file has no video. wave: float32 `[samples]` in -1..1, or None when
    it has no audio. frames_ok, audio_ok: whether each of the `T` segments holds real media; the others are filled with
    the last frame, or with silence. facts: measured properties. key: the clip's key; decoders leave it empty.
    """

    frames: NDArray[np.uint8] | None
    wave: NDArray[np.float32] | None
    frames_ok: tuple[bool, ...]
    audio_ok: tuple[bool, ...]
    notes: list[Note] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    key: str = ""


class DecodeError(CaeavError):
    """This clip cannot be decoded; the text is the specific reason, which is kept in quarantine."""


class Decoder(Protocol):
    """One decoding library. It runs in a killable child process, where it may hang, crash or leak without harm."""

    name: str

    def version(self) -> str:
        """Library name and version, for the recipe."""
        ...

    def decode(self, path: str, start_s: float, sampling: Sampling) -> DecodedClip:
        """Decode one clip; raises `DecodeError`."""
        ...

    def decode_each(self, path: str, start_s: float, samplings: Sequence[Sampling]) -> list[DecodedClip]:
        """Decode one clip once, with audio at the rate of each sampling; the samplings differ in nothing else."""
        ...


PROCESS_BYTES = 8 * 2**30
"""Memory a decoding process may take: a little more than ten frames of the largest size need."""


@dataclass(frozen=True)
class Limits:
    """How much work a media file may cause: beyond any of these it is refused, with the value and the limit.

    All sane media stay below. Time is limited by the deadline of the decoding process, memory by `PROCESS_BYTES`.
    """

    file_bytes: int = 256 * 2**30
    duration_s: float = 48 * 3600.0
    streams: int = 256
    frame_pixels: int = 2**26  # 8192 x 8192
    audio_channels: int = 64
    audio_rate_hz: int = 768_000
    packets: int = 2_000_000
    frames: int = 500_000
    whole_track_s: float = 3600.0  # for a decoder that can only decode a whole audio track at once

    def check(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """Raise `DecodeError` naming value and limit when `value > limit`."""
        if value > limit:
            raise DecodeError(f"{what}: {value:.15g}{unit} is more than the allowed {limit:.15g}{unit}")
