"""What moves in the generated world: the motions, outlines and surface patterns named in `classes.py`, and `stamp`,
which draws one shape.

A motion gives an object's pose at a time in seconds, which already includes the clip's own speed and phase. An outline
maps coordinates in the object's own frame (`x` right, `y` down, the object about 1 in radius) to a value that is
negative inside, 0 on the edge, positive outside and near the edge about the distance to it, which makes edges smooth.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, floor, pi, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Field = NDArray[np.floating[Any]]
Outline = Callable[[Field, Field], Field]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where an object is at one moment."""

    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    scale: float = 1.0


def _wave(u: float) -> float:
    """A triangle wave of period 1 between -1 and 1."""
    return 4 * abs(u - floor(u + 0.5)) - 1


def _bounce(t: float) -> Pose:
    return Pose(x=_wave(0.21 * t), y=1 - 2 * abs(sin(pi * t)))


def _spin(t: float) -> Pose:
    return Pose(x=0.4 * sin(0.7 * t), y=0.4 * cos(0.5 * t), angle=3.5 * t)


def _swing(t: float) -> Pose:
    angle = 1.1 * sin(4.0 * t)
    return Pose(x=-sin(angle), y=cos(angle) - 0.5, angle=angle)


def _pulse(t: float) -> Pose:
    return Pose(x=0.3 * sin(0.6 * t), scale=1 + 0.3 * sin(5.5 * t))


def _glide(t: float) -> Pose:
    return Pose(x=_wave(0.45 * t), y=0.15 * sin(t))


def _hop(t: float) -> Pose:
    hops = floor(2.0 * t)
    return Pose(x=sin(2.4 * hops), y=sin(1.7 * hops + 1), angle=0.2 * sin(5.0 * hops))


def _circle(t: float) -> Pose:
    return Pose(x=cos(3.6 * t), y=sin(3.6 * t), angle=-1.2 * t)


def _sway(t: float) -> Pose:
    return Pose(x=sin(2.0 * t), y=0.6 * sin(4.0 * t), angle=0.5 * sin(2.0 * t))


def _shake(t: float) -> Pose:
    return Pose(x=0.35 * sin(21.0 * t), y=0.35 * sin(17.0 * t + 1), angle=0.25 * sin(19.0 * t))


def _grow(t: float) -> Pose:
    return Pose(y=0.3 * sin(0.5 * t), angle=0.3 * t, scale=0.65 + 0.6 * ((0.7 * t) % 1.0))


def _beat(t: float) -> Pose:
    u = (1.2 * t) % 1.0
    return Pose(x=0.5 * sin(0.8 * t), scale=1 + (0.3 if u < 0.15 or 0.3 < u < 0.45 else -0.1))


def _flutter(t: float) -> Pose:
    return Pose(
        x=0.6 * sin(1.9 * t) + 0.4 * sin(5.3 * t),
        y=0.6 * sin(2.7 * t + 1) + 0.4 * sin(7.1 * t),
        angle=0.7 * sin(6.0 * t),
    )


def _drift(t: float) -> Pose:
    return Pose(x=sin(0.9 * t), y=sin(0.7 * t + 1), angle=0.4 * t)


MOTIONS: dict[str, Callable[[float], Pose]] = {
    "bounce": _bounce,
    "spin": _spin,
    "swing": _swing,
    "pulse": _pulse,
    "glide": _glide,
    "hop": _hop,
    "circle": _circle,
    "sway": _sway,
    "shake": _shake,
    "grow": _grow,
    "beat": _beat,
    "flutter": _flutter,
    "drift": _drift,
}
"""`drift` is the motion of clutter; the others belong to one class each."""
MAX_SCALE = 1.3
"""No motion enlarges an object to more than this many times its radius."""


@dataclass(frozen=True, slots=True)
class Movement:
    """How an object moves in one shot: about a place, at most about `room_px` away from it; in pixels and seconds."""

    motion: str
    x_px: float
    y_px: float
    room_px: float
    speed: float
    phase_s: float

    def at(self, t: float) -> tuple[float, float, float, float]:
        """The object's middle (x, y), scale and angle at `t` seconds."""
        pose = MOTIONS[self.motion](self.speed * t + self.phase_s)
        return self.x_px + self.room_px * pose.x, self.y_px + self.room_px * pose.y, pose.scale, pose.angle


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
"""Where the surface is dark, in the object's frame, so that it turns with it; None: one shade all over."""


def colour(hue_deg: float, saturation: float, value: float) -> Image:
    """A colour of the wheel, float32 [3] in 0..255."""
    rgb = colorsys.hsv_to_rgb((hue_deg % 360) / 360, saturation, value)
    return np.asarray(rgb, dtype=np.float32) * 255


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
    """Draw one shape onto `canvas` [H, W, 3] in place, with a smooth dark edge; it may lie partly outside.

    Returns the top and left of the window that was drawn in, and how much of each pixel in it is covered, 0..1.
    """
    reach = 1.5 * radius_px + 1
    top, left = max(0, int(y_px - reach)), max(0, int(x_px - reach))
    window = canvas[top : max(0, int(y_px + reach) + 1), left : max(0, int(x_px + reach) + 1)]
    if not window.size:
        return 0, 0, np.zeros((0, 0), dtype=np.float32)
    radius = np.float32(radius_px)
    rows, columns = (np.arange(size, dtype=np.float32) for size in window.shape[:2])
    dy = (rows + np.float32(top + 0.5 - y_px))[:, None] / radius
    dx = (columns + np.float32(left + 0.5 - x_px))[None, :] / radius
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = dx * c + dy * s, dy * c - dx * s
    edge = OUTLINES[shape](x, y) * radius  # in pixels
    inside = np.clip(0.5 - edge, 0, 1)
    shade = 1 - np.float32(0.45) * np.clip(1.5 + edge, 0, 1)  # a dark rim, one pixel wide
    dark = PATTERNS[pattern]
    if dark is not None:
        shade = shade * np.where(dark(x, y), np.float32(0.5), np.float32(1))
    window += inside[..., None] * (fill * shade[..., None] - window)
    return top, left, inside
