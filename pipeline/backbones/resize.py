"""Resizing pictures with numpy alone: each output pixel is the area-weighted mean of what it covers.

The whole picture is kept and stretched to the wanted size (as the reference's 192x192 input does), so nothing
at a border is lost. Shapes: `T` frames, `H`x`W` pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=32)
def area_weights(size: int, wanted: int) -> NDArray[np.float32]:
    """Weights `[wanted, size]`, rows sum to 1: the share of each input pixel in each output pixel.

    Shrinking averages exactly the covered area; growing interpolates linearly between pixel centres.
    """
    edges = np.arange(wanted + 1) * (size / wanted)
    centres = (edges[:-1] + edges[1:]) / 2
    half = max(size / wanted, 1.0) / 2
    pixel = np.arange(size)
    low, high = (centres - half)[:, None], (centres + half)[:, None]
    overlap = np.minimum(pixel[None] + 1, high) - np.maximum(pixel[None], low)
    overlap = np.clip(overlap, 0.0, 1.0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), dtype=np.float32)


def resize(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """Frames uint8 `[T, H, W, 3]` -> float32 `[T, height, width, 3]` in 0..1."""
    t, h, w, c = frames.shape
    if (h, w) == (height, width):
        return frames.astype(np.float32) * np.float32(1 / 255)
    rows, columns = area_weights(h, height), area_weights(w, width) * np.float32(1 / 255)
    out = np.empty((t, height, width, c), dtype=np.float32)
    for i in range(t):  # one frame at a time keeps the float copy of a large picture small
        tall = rows @ frames[i].reshape(h, w * c).astype(np.float32)  # [height, W*3]
        out[i] = columns @ tall.reshape(height, w, c)
    return out
