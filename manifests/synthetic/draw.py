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
from caeav.manifests.synthetic.world import CLASSES

NOISE_FRAMES = 4
PLACES_TRIED = 8  # of these an object gets the one farthest from the others, so that none hides another
OVERSIZE = 1.2  # a backdrop is larger than the frame, so that the camera can move


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

    def draw(self, canvas: Image, t: float) -> None:
        pose = MOTIONS[self.motion](self.speed * t + self.phase_s)
        stamp(
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

    def frame(self, t: float, seen: tuple[int, ...], size_px: int) -> Image:
        spare = self.wall.shape[0] - size_px
        speed, phase = self.pan
        x, y = (int(spare * (0.5 + 0.5 * np.sin(speed * f * t + phase))) for f in (1.0, 0.7))
        canvas = self.wall[y : y + size_px, x : x + size_px].copy()
        for body in self.clutter:
            body.draw(canvas, t)
        for cls in seen:
            self.objects[cls].draw(canvas, t)
        return canvas


def frames(options: SyntheticOptions, scenario: Scenario) -> Iterator[NDArray[np.uint8]]:
    """All frames of the clip in order, uint8 [H, W, 3] RGB; frame `i` lies in second `i // fps`."""
    rng = generator(options, "picture", scenario.index)
    classes = sorted(set().union(*scenario.seen))
    looks = {cls: _look(rng, cls, options.size_px) for cls in classes}
    cuts = [0, options.seconds] if scenario.cut_s is None else [0, scenario.cut_s, options.seconds]
    shots = [_shot(rng, looks, options.size_px) for _ in cuts[1:]]
    noise = rng.normal(0, rng.uniform(1, 3.5), (NOISE_FRAMES, options.size_px, options.size_px, 1))
    grain = noise.astype(np.float32)
    for i in range(options.seconds * options.fps):
        second = i // options.fps
        shot = shots[sum(second >= cut for cut in cuts[1:-1])]
        canvas = shot.frame(i / options.fps, scenario.seen[second], options.size_px)
        canvas += np.roll(grain[i % NOISE_FRAMES], 7 * i, axis=0)
        yield np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


def _look(rng: Generator, cls: int, size_px: int) -> tuple[Image, float]:
    """The colour and the radius in pixels that an object of this class has in this clip."""
    hue = CLASSES[cls].hue_deg + rng.uniform(-6, 6)
    return colour(hue, rng.uniform(0.8, 1.0), rng.uniform(0.75, 1.0)), rng.uniform(0.095, 0.145) * size_px


def _shot(rng: Generator, looks: dict[int, tuple[Image, float]], size_px: int) -> _Shot:
    wall = backdrop(rng, round(OVERSIZE * size_px))
    clutter = tuple(_clutter(rng, size_px) for _ in range(int(rng.integers(1, 4))))
    objects: dict[int, _Body] = {}
    for cls, (fill, radius) in looks.items():
        look = CLASSES[cls]
        tries = [
            _placed(rng, look.shape, look.pattern, look.motion, fill, radius, size_px)
            for _ in range(PLACES_TRIED)
        ]
        objects[cls] = max(
            tries, key=lambda body: min((_apart(body, o) for o in objects.values()), default=0.0)
        )
    return _Shot(wall, clutter, objects, (rng.uniform(0, 0.8), rng.uniform(0, 6.3)))


def _apart(one: _Body, other: _Body) -> float:
    return float(np.hypot(one.x_px - other.x_px, one.y_px - other.y_px)) - one.room_px - other.room_px


def _clutter(rng: Generator, size_px: int) -> _Body:
    shape = CLUTTER_SHAPES[rng.integers(len(CLUTTER_SHAPES))]
    return _placed(
        rng, shape, "plain", "drift", muted_colour(rng), rng.uniform(0.05, 0.13) * size_px, size_px
    )


def _placed(
    rng: Generator, shape: str, pattern: str, motion: str, fill: Image, radius: float, size_px: int
) -> _Body:
    """A body at a random place, with as much room to move in as keeps it within the frame."""
    room = rng.uniform(0.08, 0.18) * size_px
    margin = room + MAX_SCALE * radius
    x, y = rng.uniform(min(margin, size_px / 2), max(size_px - margin, size_px / 2), 2)
    return _Body(shape, pattern, motion, fill, radius, x, y, room, rng.uniform(0.75, 1.3), rng.uniform(0, 10))
