"""How much a media file may make us do before we say no: the caps that turn a bomb into a `DecodeError`.

The defaults hold all sane media; a file past one of them is refused with the value and the limit. Time is
not capped here but by the deadline of the process that decodes, memory by its limit (`pool.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from caeav.pipeline.media.clip import DecodeError

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
