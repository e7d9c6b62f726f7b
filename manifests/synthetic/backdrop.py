"""What stands behind the objects: a textured wall with clutter on it, all in muted colours.

Muted means a saturation below `MUTED`, which no object of a class ever has: the clutter may look like an
object in shape and motion, but not in colour.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from caeav.manifests.synthetic.shapes import OUTLINES, PATTERNS, Field

MUTED = 0.3
Image = NDArray[np.float32]
CLUTTER_SHAPES = tuple(OUTLINES)


def muted_colour(rng: Generator) -> Image:
    """A greyish colour, float32 [3] in 0..255."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.02, MUTED), rng.uniform(0.2, 0.85))
    return np.asarray(rgb, dtype=np.float32) * 255


def colour(hue_deg: float, saturation: float, value: float) -> Image:
    """A colour of the wheel, float32 [3] in 0..255."""
    rgb = colorsys.hsv_to_rgb((hue_deg % 360) / 360, saturation, value)
    return np.asarray(rgb, dtype=np.float32) * 255


def _smooth_noise(rng: Generator, n: int, cells: int) -> Field:
    """Random values on a grid of `cells`, bilinearly enlarged to [n, n]; about -1..1."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    at = np.linspace(0, cells, n, endpoint=False, dtype=np.float32)
    low = at.astype(np.intp)
    part = at - low
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return np.asarray(rows[:, low] * (1 - part) + rows[:, low + 1] * part, dtype=np.float32)


def _clouds(rng: Generator, n: int) -> Field:
    octaves = [_smooth_noise(rng, n, 3 * 2**i) / 2**i for i in range(4)]
    return np.asarray(np.sum(octaves, axis=0) * 0.7)


def _grain(rng: Generator, n: int) -> Field:
    return _smooth_noise(rng, n, n // 3) * np.float32(0.8)


def _ramp(rng: Generator, n: int) -> Field:
    x, y = _plane(rng, n)
    return np.asarray(np.clip(x + 0.4 * y, -1, 1))


def _stripes(rng: Generator, n: int) -> Field:
    x, _ = _plane(rng, n)
    return np.asarray(np.tanh(np.sin(x * np.float32(rng.uniform(8, 30))) * 3))


def _tiles(rng: Generator, n: int) -> Field:
    x, y = _plane(rng, n)
    k = np.float32(rng.uniform(6, 18))
    return np.asarray(np.tanh(np.sin(x * k) * np.sin(y * k) * 4))


def _plane(rng: Generator, n: int) -> tuple[Field, Field]:
    """Coordinates -1..1 of an [n, n] image, turned by a random angle."""
    a = rng.uniform(0, np.pi)
    line = np.linspace(-1, 1, n, dtype=np.float32)
    x, y = line[None, :], line[:, None]
    c, s = np.float32(np.cos(a)), np.float32(np.sin(a))
    return x * c + y * s, y * c - x * s


TEXTURES: tuple[Callable[[Generator, int], Field], ...] = (_clouds, _grain, _ramp, _stripes, _tiles)


def backdrop(rng: Generator, n: int) -> Image:
    """A wall with fixed clutter on it: float32 [n, n, 3] in 0..255."""
    here, there = muted_colour(rng), muted_colour(rng)
    first, second = rng.choice(len(TEXTURES), 2, replace=False)
    mix = 0.5 + 0.5 * TEXTURES[first](rng, n)
    wall = here + (there - here) * np.clip(mix, 0, 1)[..., None]
    wall = wall + (TEXTURES[second](rng, n) * np.float32(rng.uniform(4, 16)))[..., None]
    for _ in range(int(rng.integers(3, 9))):
        shape = CLUTTER_SHAPES[rng.integers(len(CLUTTER_SHAPES))]
        x, y = rng.uniform(0, n, 2)
        stamp(wall, shape, x, y, rng.uniform(0.04, 0.15) * n, rng.uniform(0, 2 * np.pi), muted_colour(rng))
    return np.asarray(wall, dtype=np.float32)


def stamp(
    canvas: Image,
    shape: str,
    x_px: float,
    y_px: float,
    radius_px: float,
    angle: float,
    fill: Image,
    pattern: str = "plain",
) -> tuple[int, int, Field]:
    """Draw one shape onto `canvas` [H, W, 3] in place, with a smooth and darkened edge; it may lie partly outside.

    Returns the top and left of the window that was drawn in, and how much of each of its pixels is covered, 0..1.
    """
    reach = 1.5 * radius_px + 1
    top, left = max(0, int(y_px - reach)), max(0, int(x_px - reach))
    window = canvas[top : max(0, int(y_px + reach) + 1), left : max(0, int(x_px + reach) + 1)]
    if not window.size:
        return 0, 0, np.zeros((0, 0), dtype=np.float32)
    dy = (np.arange(window.shape[0], dtype=np.float32) + np.float32(top + 0.5 - y_px))[:, None] / np.float32(
        radius_px
    )
    dx = (np.arange(window.shape[1], dtype=np.float32) + np.float32(left + 0.5 - x_px))[None, :] / np.float32(
        radius_px
    )
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = dx * c + dy * s, dy * c - dx * s
    edge = OUTLINES[shape](x, y) * np.float32(radius_px)  # in pixels
    inside = np.clip(0.5 - edge, 0, 1)
    shade = 1 - np.float32(0.45) * np.clip(1.5 + edge, 0, 1)  # a dark rim, one pixel wide
    dark = PATTERNS[pattern]
    if dark is not None:
        shade = shade * np.where(dark(x, y), np.float32(0.5), np.float32(1))
    window += inside[..., None] * (fill * shade[..., None] - window)
    return top, left, inside
