"""How objects move: a pose as a function of time, one function a motion.

`t` is in seconds and already holds the clip's own speed and phase. `x` and `y` are in -1..1 of the room the
object has around its place, `angle` in radians, `scale` multiplies its radius.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, floor, pi, sin


@dataclass(frozen=True, slots=True)
class Pose:
    """Where an object is at one moment."""

    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    scale: float = 1.0


def _wave(u: float) -> float:
    """Triangle wave of period 1 between -1 and 1."""
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
"""`drift` is what clutter does; the others belong to one class each."""
MAX_SCALE = 1.3
"""No motion makes an object larger than this many times its radius."""
