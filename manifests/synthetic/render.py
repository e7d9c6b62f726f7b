"""The frames of a clip, drawn from its scenario.

A clip is one shot, or two where the camera cuts. Each shot has a backdrop, a slow camera move, moving clutter and its
own place for every object; an object keeps its colour and size across the cut. Objects are drawn over the clutter and
never leave the frame, so whatever the scenario says is seen can be seen. Backdrop and clutter are muted: their
saturation stays below `MUTED`, as no object's does, so clutter may resemble an object in shape and motion, but not in
colour.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from caeav.manifests.synthetic.casting import Cast
from caeav.manifests.synthetic.classes import CLASSES
from caeav.manifests.synthetic.material_media import read_background, read_picture
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.pictures import GENTLE, PictureBody, look_of
from caeav.manifests.synthetic.scenario import Scenario, generator
from caeav.manifests.synthetic.sprites import MAX_SCALE, OUTLINES, Field, Image, Movement, colour, stamp

MUTED = 0.3
CLUTTER_SHAPES = tuple(OUTLINES)
NOISE_FRAMES = 4
PLACES_TRIED = 8  # an object gets the place farthest from the others, so that none hides another
LANES = 3
LANE_SCALE, LANE_ROOM = 0.7, 0.35  # objects that stay in a third of the frame are smaller and move less
LARGE_SCALE, LARGE_ROOM = 1.35, 0.6  # for masks objects are larger
LARGE = ("avs-s4", "avs-ms3")
PICTURE_SCALE, PICTURE_LANE_SCALE = 1.5, 1.0  # pictures have details, so they are larger
PICTURE_PLACES = 24
NO_OBJECT = -1
OVERSIZE = 1.2  # a backdrop is larger than the frame, so that the camera can move

Body = TypeVar("Body", "_Body", PictureBody)
ObjectMap = NDArray[np.int16]


@dataclass(frozen=True)
class _Body:
    """A moving object of one shot."""

    shape: str
    pattern: str
    fill: Image
    radius_px: float
    movement: Movement

    def draw(self, canvas: Image, t: float) -> tuple[int, int, Field]:
        x, y, scale, angle = self.movement.at(t)
        return stamp(canvas, self.shape, x, y, self.radius_px * scale, angle, self.fill, self.pattern)


@dataclass(frozen=True)
class _Shot:
    """What the camera shows between two cuts."""

    wall: Image
    clutter: tuple[_Body, ...]
    objects: Mapping[int, _Body | PictureBody]
    pan: tuple[float, float]  # speed of the camera's sway, and where in it the shot begins

    def frame(
        self, t: float, seen: tuple[int, ...], size_px: int, object_map: ObjectMap | None = None
    ) -> Image:
        """The frame at `t`. `object_map` [H, W], filled with NO_OBJECT, gets the number of the object in each pixel."""
        spare = self.wall.shape[0] - size_px
        speed, phase = self.pan
        x, y = (int(spare * (0.5 + 0.5 * np.sin(speed * f * t + phase))) for f in (1.0, 0.7))
        canvas = self.wall[y : y + size_px, x : x + size_px].copy()
        for body in self.clutter:
            body.draw(canvas, t)
        for number in seen:
            top, left, inside = self.objects[number].draw(canvas, t)
            if object_map is not None:
                height, width = inside.shape
                object_map[top : top + height, left : left + width][inside >= 0.5] = number
        return canvas


def frames(
    options: SyntheticOptions, scenario: Scenario, cast: Cast | None = None
) -> Iterator[NDArray[np.uint8]]:
    """All frames of the clip in order, uint8 [H, W, 3] RGB; frame `i` lies in second `i // fps`.

    With a `cast`, objects are its pictures, before its backgrounds if it has some.
    """
    rng = generator(options, "frames", scenario.index)
    shots, cuts = _shots(rng, options, scenario, cast)
    noise = rng.normal(0, rng.uniform(1, 3.5), (NOISE_FRAMES, options.size_px, options.size_px, 1))
    grain = noise.astype(np.float32)
    for i in range(options.seconds * options.fps):
        second = i // options.fps
        shot = shots[sum(second >= cut for cut in cuts)]
        canvas = shot.frame(i / options.fps, scenario.seen[second], options.size_px)
        canvas += np.roll(grain[i % NOISE_FRAMES], 7 * i, axis=0)
        yield np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def stills(
    options: SyntheticOptions, scenario: Scenario, cast: Cast | None = None
) -> Iterator[tuple[NDArray[np.uint8], ObjectMap]]:
    """One frame per second, from its middle: uint8 [H, W, 3] without grain, and the scenario's number of the object
    that each pixel shows, int16 [H, W], or NO_OBJECT."""
    shots, cuts = _shots(generator(options, "frames", scenario.index), options, scenario, cast)
    for second, seen in enumerate(scenario.seen):
        shot = shots[sum(second >= cut for cut in cuts)]
        object_map = np.full((options.size_px, options.size_px), NO_OBJECT, dtype=np.int16)
        canvas = shot.frame(second + 0.5, seen, options.size_px, object_map)
        yield np.clip(canvas, 0, 255).astype(np.uint8), object_map


def _shots(
    rng: Generator, options: SyntheticOptions, scenario: Scenario, cast: Cast | None
) -> tuple[list[_Shot], tuple[int, ...]]:
    """What the camera shows, and the seconds at which it cuts."""
    numbers = sorted(set().union(*scenario.seen))
    if cast is not None:
        cuts = () if scenario.cut_s is None else (scenario.cut_s,)
        return _cast_shots(rng, options, scenario, cast), cuts
    looks = {number: _look(rng, options, scenario, number) for number in numbers}
    cuts = () if scenario.cut_s is None else (scenario.cut_s,)
    return [_shot(rng, looks, options.size_px) for _ in range(1 + len(cuts))], cuts


def _cast_shots(rng: Generator, options: SyntheticOptions, scenario: Scenario, cast: Cast) -> list[_Shot]:
    """The shots of a clip with a cast; a picture keeps its size, side and brightness across a cut."""
    size = options.size_px
    looks: dict[int, tuple[Image, str, float, float, int | None]] = {}
    for number, file in cast.pictures.items():
        lane = scenario.things[number].lane if scenario.things else None
        scale, room = (PICTURE_SCALE, LARGE_ROOM) if lane is None else (PICTURE_LANE_SCALE, LANE_ROOM)
        radius = rng.uniform(0.095, 0.145) * size * scale
        image = look_of(read_picture(file.path), radius, rng)
        looks[number] = (image, str(rng.choice(GENTLE)), radius, room, lane)
    shots = []
    for shot in range(1 if scenario.cut_s is None else 2):
        oversize = round(OVERSIZE * size)
        if cast.backgrounds:
            wall = read_background(cast.backgrounds[shot].path, oversize, rng)
        else:
            wall = backdrop(rng, oversize)
        clutter = tuple(_clutter(rng, size) for _ in range(int(rng.integers(1, 4))))
        objects: dict[int, PictureBody] = {}
        for number, (image, motion, radius, room, lane) in looks.items():
            tries = [
                PictureBody(image, Movement(motion, *_place(rng, radius, room, lane, size)))
                for _ in range(PICTURE_PLACES)
            ]
            objects[number] = _farthest(tries, objects.values())
        shots.append(_Shot(wall, clutter, objects, (rng.uniform(0, 0.8), rng.uniform(0, 6.3))))
    return shots


@dataclass(frozen=True)
class _Look:
    """How an object looks in all shots of a clip; `lane`: the third of the frame it stays in, None: it moves freely."""

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
        objects[number] = _farthest(tries, objects.values())
    return _Shot(wall, clutter, objects, (rng.uniform(0, 0.8), rng.uniform(0, 6.3)))


def _farthest(tries: Sequence[Body], others: Iterable[Body]) -> Body:
    """The first of the bodies that are farthest from all `others`."""
    there = [body.movement for body in others]
    return max(tries, key=lambda body: min((_distance(body.movement, one) for one in there), default=0.0))


def _distance(one: Movement, other: Movement) -> float:
    return float(np.hypot(one.x_px - other.x_px, one.y_px - other.y_px)) - one.room_px - other.room_px


def _clutter(rng: Generator, size_px: int) -> _Body:
    shape = CLUTTER_SHAPES[rng.integers(len(CLUTTER_SHAPES))]
    look = _Look(NO_OBJECT, muted_colour(rng), rng.uniform(0.05, 0.13) * size_px, 1.0, None)
    return _placed(rng, shape, "plain", "drift", look, size_px)


def _placed(rng: Generator, shape: str, pattern: str, motion: str, look: _Look, size_px: int) -> _Body:
    """A body at a random place."""
    place = _place(rng, MAX_SCALE * look.radius_px, look.room, look.lane, size_px)
    return _Body(shape, pattern, look.fill, look.radius_px, Movement(motion, *place))


def _place(
    rng: Generator, reach_px: float, room: float, lane: int | None, size_px: int
) -> tuple[float, float, float, float, float]:
    """x, y, room to move that keeps a body of `reach_px` in the frame and mostly in its lane (pixels); its speed
    and phase (s)."""
    room_px = rng.uniform(0.08, 0.18) * size_px * room
    margin = room_px + reach_px
    x, y = rng.uniform(min(margin, size_px / 2), max(size_px - margin, size_px / 2), 2)
    if lane is not None:
        x = (lane + 0.5) / LANES * size_px
    return x, y, room_px, rng.uniform(0.75, 1.3), rng.uniform(0, 10)


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


def muted_colour(rng: Generator) -> Image:
    """A greyish colour, float32 [3] in 0..255."""
    rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.02, MUTED), rng.uniform(0.2, 0.85))
    return np.asarray(rgb, dtype=np.float32) * 255
