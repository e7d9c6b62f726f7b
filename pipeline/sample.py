"""A clip made by code, the same to the last bit everywhere: what `caeav models check` shows to every model.

Pictures and sound are rough and smooth, move, and differ from left to right and from colour to colour, so that a
swapped channel, another resizing or a shifted window changes what a model makes of them. Shapes: `T` segments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.media.clip import DecodedClip

SEGMENTS, HEIGHT, WIDTH = 2, 270, 480
TEXTS = (
    "A small red disc moves to the right over a grey ground.",
    "A loud rising tone, then a dog barks twice!",
    "",
)


def sample_frames() -> NDArray[np.uint8]:
    """`[T, H, W, 3]` uint8, by whole numbers alone."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.int64)
    frames = []
    for t in range(SEGMENTS):
        grain = ((x * 7919 + y * 104729 + t * 1299709) ** 2 >> 7) % 41
        red = x * 255 // WIDTH // 2 + grain
        green = (y * 200 // HEIGHT + ((x // 16 + y // 16) % 2) * 30) + grain // 2
        blue = ((x * y) // 97) % 128 + 60
        disc = (x - 120 - 90 * t) ** 2 + (y - 130) ** 2 < 55**2
        rgb = np.stack(
            [np.where(disc, 230, red), np.where(disc, 30, green), np.where(disc, 40, blue)], axis=-1
        )
        frames.append(np.clip(rgb, 0, 255).astype(np.uint8))
    return np.stack(frames)


def sample_wave(rate_hz: int) -> NDArray[np.float32]:
    """`[T * rate_hz]` float32: a rising tone with an overtone, two knocks, and hiss; rounded to 16 bits."""
    n = np.arange(SEGMENTS * rate_hz, dtype=np.int64)
    seconds = n / rate_hz
    turns = 300.0 * seconds + 150.0 * seconds * seconds
    tone = 0.3 * np.sin(2 * np.pi * turns) + 0.1 * np.sin(6 * np.pi * turns)
    knock = sum(np.exp(-60.0 * np.abs(seconds - at)) for at in (0.7, 1.3)) * np.sin(
        2 * np.pi * 90.0 * seconds
    )
    hiss = (((n * 1103515245 + 12345) >> 8) % 2001 - 1000) / 40000
    return (np.round((tone + 0.4 * knock + hiss) * 32767) / 32768).astype(np.float32)


def sample_clip(rate_hz: int) -> DecodedClip:
    """Both together, as a decoder gives them."""
    whole = (True,) * SEGMENTS
    return DecodedClip(sample_frames(), sample_wave(rate_hz), whole, whole)
