"""The `descriptor` captioner for pictures: measures what stands out and what the ground is like, and says so.

What stands out is what moves or appears (unlike the picture before and after), coloured things first; without
movement, the most coloured region. It sees the frames only, never labels. At most 32 words, since that is what the
`hashed` text backbone keeps. Shapes: `T` segments, a 16x16 grid of cells of 4x4 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.patches import Floats, gradients, moving_mask, opponent
from caeav.pipeline.backbones.resize import resize
from caeav.pipeline.captioners.words import colour_word, pick, place_word, spans_words
from caeav.pipeline.media.clip import DecodedClip

VERSION = 1
SIDE = 64
CELLS = 16


@dataclass(frozen=True)
class _Blob:
    """The region of one segment that stands out: its colour word, middle, share of the picture and strength."""

    colour: str
    y: float
    x: float
    area: float
    mass: float
    stretch: float


class DescribePicture:
    """One or two sentences: the thing that stands out (size, colour, place, movement, when), then the ground."""

    name = "descriptor"
    modality: Literal["visual"] = "visual"
    runs_in: Literal["worker"] = "worker"
    rate_hz: int | None = None

    def __init__(self, choice: ModelChoice) -> None:
        choice.refuse_options()

    def describe(self) -> Mapping[str, Any]:
        """Settings."""
        return {"version": VERSION, "side": SIDE, "cells": CELLS}

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text a clip; empty without video."""
        return ["" if clip.frames is None else _write(resize(clip.frames, SIDE, SIDE)) for clip in clips]


def _write(rgb: Floats) -> str:
    moving = moving_mask(rgb) if len(rgb) > 1 else np.zeros(rgb.shape[:3], dtype=np.float32)
    luma, chroma = opponent(rgb)
    saturation = np.sqrt(np.square(chroma).sum(-1))
    cut = _cut(luma)
    moved = [_blob(rgb[t], moving[t] * (0.06 + saturation[t])) for t in range(len(rgb))]
    blobs = [blob for blob in moved if blob is not None]
    still = not blobs
    found: list[_Blob | None] = list(moved)
    if still:
        found = [_blob(rgb[t], np.maximum(saturation[t] - 0.15, 0)) for t in range(len(rgb))]
        blobs = [blob for blob in found if blob is not None]
    sentences = [_thing(found, still)] if blobs else ["nothing stands out"]
    sentences.append(_ground(luma, rgb))
    if cut is not None:
        sentences.append(f"the view changes before segment {cut + 1}")
    return ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences) + "."


def _thing(found: Sequence[_Blob | None], still: bool) -> str:
    weight: dict[str, float] = {}
    for blob in found:
        if blob is not None:
            weight[blob.colour] = weight.get(blob.colour, 0.0) + blob.mass
    colour = max(sorted(weight), key=lambda word: weight[word])
    same = [blob for blob in found if blob is not None and blob.colour == colour]
    size = pick(float(np.median([b.area for b in same])), ((0.02, "small"), (0.08, "medium")), "large")
    shape = pick(float(np.median([b.stretch for b in same])), ((0.67, "wide"), (1.5, "compact")), "tall")
    when = spans_words([blob is not None and blob.colour == colour for blob in found])
    middle = place_word(float(np.mean([b.y for b in same])), float(np.mean([b.x for b in same])))
    doing = "stands still" if still else _movement(same)
    return f"a {size} {colour} {shape} thing {doing} at the {middle} {when}"


def _movement(blobs: Sequence[_Blob]) -> str:
    path = np.array([[b.y, b.x] for b in blobs])
    if len(path) < 2:
        return "appears"
    steps = np.diff(path, axis=0)
    travelled, gone = float(np.abs(steps).sum()), path[-1] - path[0]
    if travelled / len(steps) < 0.05:
        return "stays"
    if np.abs(gone).max() < 0.4 * travelled:
        return "moves " + (
            "up and down" if np.abs(steps[:, 0]).sum() > np.abs(steps[:, 1]).sum() else "to and fro"
        )
    if abs(gone[0]) > abs(gone[1]):
        return "moves down" if gone[0] > 0 else "moves up"
    return "moves right" if gone[1] > 0 else "moves left"


def _ground(luma: Floats, rgb: Floats) -> str:
    light = pick(float(luma.mean()), ((0.25, "dark"), (0.6, "dim")), "bright")
    edges = float(np.sqrt(np.square(gradients(luma)).sum(-1)).mean())
    clutter = pick(edges, ((0.03, "plain"), (0.1, "uneven")), "busy")
    return f"the ground is {light} {clutter} {colour_word(np.median(rgb, axis=(0, 1, 2)).tolist())}"


def _cut(luma: Floats) -> int | None:
    """The segment before which most of the picture changes far more than at other times, if there is one."""
    if len(luma) < 3:
        return None
    steps = np.median(np.abs(np.diff(luma, axis=0)).reshape(len(luma) - 1, -1), axis=1)
    best = int(steps.argmax())
    usual = float(np.median(np.delete(steps, best)))
    return best + 1 if steps[best] > 0.06 and steps[best] > 3 * usual else None


def _blob(rgb: Floats, weight: NDArray[np.float32]) -> _Blob | None:
    """The connected region of cells around the heaviest cell of `weight` `[SIDE, SIDE]`; None when all is faint."""
    p = SIDE // CELLS
    grid = weight.reshape(CELLS, p, CELLS, p).mean(axis=(1, 3))
    peak = float(grid.max())
    if peak < 0.04:
        return None
    inside = _flood(grid > 0.35 * peak, np.unravel_index(int(grid.argmax()), grid.shape))
    mask = np.kron(inside, np.ones((p, p), dtype=bool)) & (weight > 0.35 * peak)
    pixels = weight * mask
    mass = float(pixels.sum())
    y, x = np.nonzero(mask)
    portions = pixels[y, x] / mass
    middle_y, middle_x = float(portions @ y), float(portions @ x)
    spread_y, spread_x = (float(np.sqrt(portions @ (v - m) ** 2)) for v, m in ((y, middle_y), (x, middle_x)))
    strongest = pixels >= np.quantile(
        pixels[mask], 0.5
    )  # the inner half: borders are blurred into the ground
    colour = colour_word(np.median(rgb[mask & strongest], axis=0).tolist())
    return _Blob(
        colour,
        (middle_y + 0.5) / SIDE,
        (middle_x + 0.5) / SIDE,
        float(mask.mean()),
        mass,
        (spread_y + 0.5) / (spread_x + 0.5),
    )


def _flood(open_cells: NDArray[np.bool_], start: tuple[np.intp, ...]) -> NDArray[np.bool_]:
    """Cells of `open_cells` connected with `start`, by sides and corners."""
    reached = np.zeros_like(open_cells)
    reached[start] = True
    while True:
        padded = np.pad(reached, 1)
        grown = np.zeros_like(reached)
        for dy in range(3):
            for dx in range(3):
                grown |= padded[dy : dy + CELLS, dx : dx + CELLS]
        grown &= open_cells
        if (grown == reached).all():
            return reached
        reached = grown
