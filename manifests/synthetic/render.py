"""The picture of a clip: its frames, drawn from a scenario.

A clip is one shot, or two where the camera cuts: each with a backdrop, a slow camera move, moving clutter and
its own place for every object. An object keeps its colour and size across the cut. Objects are drawn over the
clutter and never leave the frame, so what the scenario says is seen can be seen.

How objects move: a pose as a function of time, one function a motion.

`t` is in seconds and already holds the clip's own speed and phase. `x` and `y` are in -1..1 of the room the
object has around its place, `angle` in radians, `scale` multiplies its radius.

Outlines and surface patterns of the moving objects, as functions of coordinates in the object's own frame.

An outline maps `x`, `y` (right and down, the object about 1 in radius) to a value that is below 0 inside,
0 on the edge, above 0 outside, and near the edge about the distance to it, which gives smooth edges for free.

What stands behind the objects: a textured wall with clutter on it, all in muted colours.

Muted means a saturation below `MUTED`, which no object of a class ever has: the clutter may look like an
object in shape and motion, but not in colour.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import cos, floor, pi, sin
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from caeav.manifests.synthetic.classes import CLASSES
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario, generator


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


NOISE_FRAMES = 4
PLACES_TRIED = 8  # of these an object gets the one farthest from the others, so that none hides another
LANES = 3
LANE_SCALE, LANE_ROOM = 0.7, 0.35  # objects that stay in a third of the picture are smaller and move less
LARGE_SCALE, LARGE_ROOM = 1.35, 0.6  # where masks are wanted, objects are larger
LARGE = ("avs-s4", "avs-ms3")
NOBODY = -1
OVERSIZE = 1.2  # a backdrop is larger than the frame, so that the camera can move

Owners = NDArray[np.int16]


@dataclass(frozen=True)
class _Body:
    """A moving thing of one shot; positions and sizes in pixels."""

    shape: str
    pattern: str
    motion: str
    fill: Image
    radius_px: float
    x_px: float
    y_px: float
    room_px: float
    speed: float
    phase_s: float

    def draw(self, canvas: Image, t: float) -> tuple[int, int, Field]:
        pose = MOTIONS[self.motion](self.speed * t + self.phase_s)
        return stamp(
            canvas,
            self.shape,
            self.x_px + self.room_px * pose.x,
            self.y_px + self.room_px * pose.y,
            self.radius_px * pose.scale,
            pose.angle,
            self.fill,
            self.pattern,
        )


@dataclass(frozen=True)
class _Shot:
    """What the camera shows between two cuts."""

    wall: Image
    clutter: tuple[_Body, ...]
    objects: dict[int, _Body]
    pan: tuple[float, float]  # speed of the camera's sway, and where in it the shot begins

    def frame(self, t: float, seen: tuple[int, ...], size_px: int, owners: Owners | None = None) -> Image:
        """The picture at `t`; `owners` [H, W], all NOBODY before, gets the number of the object each pixel shows."""
        spare = self.wall.shape[0] - size_px
        speed, phase = self.pan
        x, y = (int(spare * (0.5 + 0.5 * np.sin(speed * f * t + phase))) for f in (1.0, 0.7))
        canvas = self.wall[y : y + size_px, x : x + size_px].copy()
        for body in self.clutter:
            body.draw(canvas, t)
        for number in seen:
            top, left, inside = self.objects[number].draw(canvas, t)
            if owners is not None:
                height, width = inside.shape
                owners[top : top + height, left : left + width][inside >= 0.5] = number
        return canvas


def frames(options: SyntheticOptions, scenario: Scenario) -> Iterator[NDArray[np.uint8]]:
    """All frames of the clip in order, uint8 [H, W, 3] RGB; frame `i` lies in second `i // fps`."""
    rng = generator(options, "picture", scenario.index)
    shots, cuts = _shots(rng, options, scenario)
    noise = rng.normal(0, rng.uniform(1, 3.5), (NOISE_FRAMES, options.size_px, options.size_px, 1))
    grain = noise.astype(np.float32)
    for i in range(options.seconds * options.fps):
        second = i // options.fps
        shot = shots[sum(second >= cut for cut in cuts)]
        canvas = shot.frame(i / options.fps, scenario.seen[second], options.size_px)
        canvas += np.roll(grain[i % NOISE_FRAMES], 7 * i, axis=0)
        yield np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def stills(options: SyntheticOptions, scenario: Scenario) -> Iterator[tuple[NDArray[np.uint8], Owners]]:
    """One picture a second, from its middle: uint8 [H, W, 3] without grain, and the object each pixel shows, int16
    [H, W], the scenario's number of it or NOBODY."""
    shots, cuts = _shots(generator(options, "picture", scenario.index), options, scenario)
    for second, seen in enumerate(scenario.seen):
        shot = shots[sum(second >= cut for cut in cuts)]
        owners = np.full((options.size_px, options.size_px), NOBODY, dtype=np.int16)
        canvas = shot.frame(second + 0.5, seen, options.size_px, owners)
        yield np.clip(canvas, 0, 255).astype(np.uint8), owners


def _shots(
    rng: Generator, options: SyntheticOptions, scenario: Scenario
) -> tuple[list[_Shot], tuple[int, ...]]:
    """What the camera shows, and the seconds at which it cuts."""
    numbers = sorted(set().union(*scenario.seen))
    looks = {number: _look(rng, options, scenario, number) for number in numbers}
    cuts = () if scenario.cut_s is None else (scenario.cut_s,)
    return [_shot(rng, looks, options.size_px) for _ in range(1 + len(cuts))], cuts


@dataclass(frozen=True)
class _Look:
    """How an object looks in all shots of a clip; `lane` is the third of the picture it stays in, if it has to."""

    cls: int
    fill: Image
    radius_px: float
    room: float
    lane: int | None


def _look(rng: Generator, options: SyntheticOptions, scenario: Scenario, number: int) -> _Look:
    cls = scenario.cls(number)
    lane = scenario.things[number].lane if scenario.things else None
    hue = CLASSES[cls].hue_deg + rng.uniform(-6, 6)
    fill = colour(hue, rng.uniform(0.8, 1.0), rng.uniform(0.75, 1.0))
    radius = rng.uniform(0.095, 0.145) * options.size_px
    scale, room = (LARGE_SCALE, LARGE_ROOM) if options.layout in LARGE else (1.0, 1.0)
    if lane is not None:
        scale, room = LANE_SCALE, LANE_ROOM
    return _Look(cls, fill, radius * scale, room, lane)


def _shot(rng: Generator, looks: dict[int, _Look], size_px: int) -> _Shot:
    wall = backdrop(rng, round(OVERSIZE * size_px))
    clutter = tuple(_clutter(rng, size_px) for _ in range(int(rng.integers(1, 4))))
    objects: dict[int, _Body] = {}
    for number, look in looks.items():
        cls = CLASSES[look.cls]
        tries = [_placed(rng, cls.shape, cls.pattern, cls.motion, look, size_px) for _ in range(PLACES_TRIED)]
        objects[number] = max(
            tries, key=lambda body: min((_apart(body, o) for o in objects.values()), default=0.0)
        )
    return _Shot(wall, clutter, objects, (rng.uniform(0, 0.8), rng.uniform(0, 6.3)))


def _apart(one: _Body, other: _Body) -> float:
    return float(np.hypot(one.x_px - other.x_px, one.y_px - other.y_px)) - one.room_px - other.room_px


def _clutter(rng: Generator, size_px: int) -> _Body:
    shape = CLUTTER_SHAPES[rng.integers(len(CLUTTER_SHAPES))]
    look = _Look(NOBODY, muted_colour(rng), rng.uniform(0.05, 0.13) * size_px, 1.0, None)
    return _placed(rng, shape, "plain", "drift", look, size_px)


def _placed(rng: Generator, shape: str, pattern: str, motion: str, look: _Look, size_px: int) -> _Body:
    """A body at a random place, with as much room to move in as keeps it within the frame, and mostly in its lane."""
    room = rng.uniform(0.08, 0.18) * size_px * look.room
    margin = room + MAX_SCALE * look.radius_px
    x, y = rng.uniform(min(margin, size_px / 2), max(size_px - margin, size_px / 2), 2)
    if look.lane is not None:
        x = (look.lane + 0.5) / LANES * size_px
    pace, phase_s = rng.uniform(0.75, 1.3), rng.uniform(0, 10)
    return _Body(shape, pattern, motion, look.fill, look.radius_px, x, y, room, pace, phase_s)
