"""Times of frames and noise for written media, and the codes of a decoded clip's notes."""

from __future__ import annotations

from typing import Any

import numpy as np

from caeav.pipeline.media.clip import DecodedClip


def frame_times(seconds: float, fps: float = 30.0, from_s: float = 0.0) -> list[float]:
    """The times of evenly spaced frames."""
    return [from_s + n / fps for n in range(round(seconds * fps))]


def noise(seconds: float, rate_hz: int, channels: int = 1, level: int = 20000) -> np.ndarray[Any, Any]:
    """`[C, n]`, int16, the same at every call."""
    generator = np.random.default_rng(0)
    return generator.integers(-level, level, (channels, round(seconds * rate_hz)), dtype=np.int16)


def note_codes(clip: DecodedClip) -> set[str]:
    return {note.code for note in clip.notes}
