"""Outlines and surface patterns of the moving objects, as functions of coordinates in the object's own frame.

An outline maps `x`, `y` (right and down, the object about 1 in radius) to a value that is below 0 inside,
0 on the edge, above 0 outside, and near the edge about the distance to it, which gives smooth edges for free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Outline = Callable[[Field, Field], Field]


def _disc(x: Field, y: Field) -> Field:
    return np.hypot(x, y) - 1


def _ring(x: Field, y: Field) -> Field:
    return np.abs(np.hypot(x, y) - 0.74) - 0.26


def _box(x: Field, y: Field, half_w: float, half_h: float) -> Field:
    return np.maximum(np.abs(x) - half_w, np.abs(y) - half_h)


def _square(x: Field, y: Field) -> Field:
    return _box(x, y, 0.86, 0.86)


def _bar(x: Field, y: Field) -> Field:
    return _box(x, y, 0.3, 1.1)


def _cross(x: Field, y: Field) -> Field:
    return np.minimum(_box(x, y, 1.0, 0.32), _box(x, y, 0.32, 1.0))


def _diamond(x: Field, y: Field) -> Field:
    return (1.5 * np.abs(x) + np.abs(y) - 1.1) / np.float32(1.8)


def _polygon(x: Field, y: Field, corners: int, inradius: float) -> Field:
    sides = [
        x * np.float32(np.sin(a)) + y * np.float32(np.cos(a))
        for a in np.arange(corners) * (2 * np.pi / corners)
    ]
    return np.asarray(np.maximum.reduce(sides) - np.float32(inradius))


def _triangle(x: Field, y: Field) -> Field:
    return _polygon(x, y, 3, 0.6)


def _hexagon(x: Field, y: Field) -> Field:
    return _polygon(x, y, 6, 0.92)


def _star(x: Field, y: Field) -> Field:
    turn = np.arctan2(x, -y) * np.float32(5 / (2 * np.pi))
    off_tip = np.abs(turn - np.round(turn)) * 2  # 0 on the line to a tip, 1 between two tips
    return np.hypot(x, y) - (1.15 - 0.68 * off_tip)


def _crescent(x: Field, y: Field) -> Field:
    return np.asarray(np.maximum(np.hypot(x, y) - 1.05, 0.85 - np.hypot(x - 0.55, y)))


def _heart(x: Field, y: Field) -> Field:
    return np.hypot(x, 0.95 * y + 0.15 - 0.6 * np.sqrt(np.abs(x) + 0.01)) - 0.95


def _ellipse(x: Field, y: Field) -> Field:
    return (np.hypot(x, 2 * y) - 1.1) * np.float32(0.7)


OUTLINES: dict[str, Outline] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "bar": _bar,
    "cross": _cross,
    "diamond": _diamond,
    "triangle": _triangle,
    "hexagon": _hexagon,
    "star": _star,
    "crescent": _crescent,
    "heart": _heart,
    "ellipse": _ellipse,
}

PATTERNS: dict[str, Callable[[Field, Field], NDArray[np.bool_]] | None] = {
    "plain": None,
    "stripes": lambda x, y: np.sin(x * 7) > 0.35,
    "checker": lambda x, y: (x > 0) ^ (y > 0),
    "dot": lambda x, y: np.hypot(x, y) < 0.42,
}
"""Where the surface is dark, in the object's frame, so it turns with it; `None` for one shade all over."""
