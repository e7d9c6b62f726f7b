"""What decoding is asked for and what it gives back, whichever decoder does it.

Shapes: `T` segments, `H`x`W` pixels. A decoder never decides policy: it reports what it met as `Note`s and
raises `DecodeError` only when there is nothing to give.

How much a media file may make us do before we say no: the caps that turn a bomb into a `DecodeError`.

The defaults hold all sane media; a file past one of them is refused with the value and the limit. Time is
not capped here but by the deadline of the process that decodes, memory by its limit (`pool.py`).
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
    """Which pictures and sound of a clip are wanted: one frame at each segment's centre, mono sound at `rate_hz`."""

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
    """Decoded pictures and sound of one clip.

    frames: uint8 `[T, H, W, 3]`, or None when the file has no video. wave: float32 `[samples]` in -1..1, or
    None when it has no audio. `frames_ok` / `audio_ok`: for each of the `T` segments, whether it holds real
    media (False: past the end; filled by the last frame, or by silence). `facts`: measured properties.
    `key`: which clip it is, where that is known; decoders leave it empty.
    """

    frames: NDArray[np.uint8] | None
    wave: NDArray[np.float32] | None
    frames_ok: tuple[bool, ...]
    audio_ok: tuple[bool, ...]
    notes: list[Note] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    key: str = ""


class DecodeError(CaeavError):
    """This clip cannot be decoded; the text is the true, specific reason kept in quarantine."""


class Decoder(Protocol):
    """One decoding library. Runs inside a killable child process; may hang, crash or leak without harm."""

    name: str

    def version(self) -> str:
        """Library name and version, for the recipe."""
        ...

    def decode(self, path: str, start_s: float, sampling: Sampling) -> DecodedClip:
        """Decode one clip; raises `DecodeError`."""
        ...

    def decode_each(self, path: str, start_s: float, samplings: Sequence[Sampling]) -> list[DecodedClip]:
        """Decode one clip once, its sound at the rate of each sampling; they differ in nothing else."""
        ...


PROCESS_BYTES = 8 * 2**30
"""Memory a decoding process may take: some more than ten pictures of the largest size need."""


@dataclass(frozen=True)
class Limits:
    """Caps a file (bytes, duration, streams, channels, rate), a frame (pixels) and a clip (packets, frames)."""

    file_bytes: int = 256 * 2**30
    duration_s: float = 48 * 3600.0
    streams: int = 256
    frame_pixels: int = 2**26  # 8192 x 8192
    audio_channels: int = 64
    audio_rate_hz: int = 768_000
    packets: int = 2_000_000
    frames: int = 500_000
    whole_track_s: float = 3600.0  # for a decoder that can only decode a whole sound track at once

    def check(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """Raise `DecodeError` naming value and limit when `value > limit`."""
        if value > limit:
            raise DecodeError(f"{what}: {value:.15g}{unit} is more than the allowed {limit:.15g}{unit}")
