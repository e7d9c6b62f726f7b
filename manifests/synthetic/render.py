"""The picture of a clip: its frames, drawn from a scenario.

A clip is one shot, or two where the camera cuts: each with a backdrop, a slow camera move, moving clutter and
its own place for every object. An object keeps its colour and size across the cut. Objects are drawn over the
clutter and never leave the frame, so what the scenario says is seen can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from caeav.manifests.synthetic.backdrop import CLUTTER_SHAPES, Image, backdrop, colour, muted_colour, stamp
from caeav.manifests.synthetic.motions import MAX_SCALE, MOTIONS
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario, generator
from caeav.manifests.synthetic.shapes import Field
from caeav.manifests.synthetic.classes import CLASSES

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
