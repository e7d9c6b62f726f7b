"""The `descriptor` captioners: measure the frames or the audio of a clip and put it into words; no weights, no labels.

`DescribeAudio` measures loudness, pitch, tone, rhythm and when there is sound. `DescribeFrames` finds what stands out
and what the ground is like. What stands out is what moves or appears (unlike the frame before and after), coloured
things first; without movement, the most coloured region. A caption has at most 32 words, since the `hashed` text
backbone keeps no more. Shapes: `T` segments; `F` spectral frames per segment; a 16x16 grid of cells of 4x4 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.util import capitalised
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.classic.audio import (
    BANDS,
    FRAMES,
    analyse,
    band_centres_hz,
    periodicity,
)
from caeav.pipeline.backbones.classic.visual import Floats, gradients, moving_mask, opponent, resize
from caeav.pipeline.media.clip import DecodedClip

GREY_CHROMA = 0.07
"""Chroma (BT.601, 0 to about 0.6) below which a colour is called grey."""

_HUES = (
    ("red", (0.90, 0.12, 0.12)),
    ("orange", (0.95, 0.55, 0.10)),
    ("yellow", (0.92, 0.88, 0.15)),
    ("green", (0.15, 0.75, 0.20)),
    ("cyan", (0.12, 0.80, 0.85)),
    ("blue", (0.15, 0.25, 0.90)),
    ("purple", (0.55, 0.18, 0.80)),
    ("magenta", (0.90, 0.15, 0.75)),
    ("pink", (0.95, 0.55, 0.70)),
    ("brown", (0.50, 0.32, 0.15)),
)


def _chroma(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    luma = float(rgb @ np.array([0.299, 0.587, 0.114]))
    return np.array([(rgb[2] - luma) * 0.564, (rgb[0] - luma) * 0.713, 0.35 * luma])


def colour_word(rgb: Sequence[float]) -> str:
    """Name of a colour given as RGB in 0..1."""
    colour = _chroma(np.asarray(rgb, dtype=np.float64))
    strength = float(np.hypot(colour[0], colour[1]))
    if strength < GREY_CHROMA:
        luma = colour[2] / 0.35
        return "black" if luma < 0.15 else "grey" if luma < 0.75 else "white"

    def distance(known: tuple[float, float, float]) -> float:
        wanted = _chroma(np.asarray(known))
        scale = max(strength, 0.05) / float(np.hypot(wanted[0], wanted[1]))  # faded colours keep their name
        hue = np.hypot(*(colour[:2] - wanted[:2] * scale)) / strength
        return float(hue + 0.6 * abs(np.log(1 / scale)) * 0.5 + 1.5 * abs(colour[2] - wanted[2]))

    return min(_HUES, key=lambda entry: distance(entry[1]))[0]


def place_word(y: float, x: float) -> str:
    """Words for a place, both coordinates in 0..1 from the top left."""
    row = "top" if y < 0.36 else "bottom" if y > 0.64 else ""
    column = "left" if x < 0.36 else "right" if x > 0.64 else ""
    return " ".join(word for word in (row, column) if word) or "centre"


def pick(value: float, steps: Sequence[tuple[float, str]], last: str) -> str:
    """The word of the first step whose bound lies above `value`, else `last`."""
    return next((word for bound, word in steps if value < bound), last)


def spans_words(active: Sequence[bool], most: int = 2) -> str:
    """Where `active` is true, counted from 1, at most `most` spans: `in segments 2 to 4 and 7`; `throughout`."""
    if all(active):
        return "throughout"
    spans: list[tuple[int, int]] = []
    for i, on in enumerate(active, start=1):
        if on and spans and spans[-1][1] == i - 1:
            spans[-1] = (spans[-1][0], i)
        elif on:
            spans.append((i, i))
    longest = sorted(sorted(spans, key=lambda s: s[0] - s[1])[:most])
    texts = [str(a) if a == b else f"{a} to {b}" for a, b in longest]
    return (
        f"in {'segment' if texts == [str(longest[0][0])] else 'segments'} {' and '.join(texts)}"
        if texts
        else ""
    )


AUDIO_VERSION = 1
RATE_HZ = 16_000
HEARD_DB = 3.0
"""A segment holds the sound when its loudest bands rise this far above the clip's background."""


class DescribeAudio:
    """One or two sentences: the sound (loudness, pitch, tone, rhythm, when), then the background."""

    name = "descriptor"
    modality: Literal["audio"] = "audio"
    runs_in: Literal["worker"] = "worker"
    rate_hz: int | None = RATE_HZ

    def __init__(self, choice: ModelChoice) -> None:
        choice.refuse_options()

    def describe(self) -> Mapping[str, Any]:
        """Settings."""
        return {"version": AUDIO_VERSION, "rate_hz": RATE_HZ, "heard_db": HEARD_DB}

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text per clip; empty without audio."""
        return ["" if clip.wave is None else _audio_text(clip.wave, len(clip.audio_ok)) for clip in clips]


def _audio_text(wave: Floats, segments: int) -> str:
    windows = wave.reshape(segments, -1)
    rms_db = 10 * np.log10(np.square(windows).mean(axis=1) + 1e-12)
    if rms_db.max() < -75:
        return "Silence."
    sound = analyse(windows, RATE_HZ)
    above = sound.above_db
    loudest = np.sort(above, axis=-1)[..., -BANDS // 8 :].mean(
        axis=(1, 2)
    )  # [T] dB, the upper eighth of the bands
    heard = loudest > max(HEARD_DB, 0.4 * float(loudest.max()))
    if float(loudest.max()) < 2 * HEARD_DB:  # nothing rises above the background: the background is the sound
        heard = np.ones(segments, dtype=np.bool_)
        above = sound.level_db - sound.level_db.min()
    pitches = periodicity(sound)
    tone = [_tone(pitches[t], above[t]) for t in np.flatnonzero(heard)]
    where = spans_words(heard.tolist())
    level = pick(float(rms_db[heard].mean()), ((-50, "very quiet"), (-35, "quiet"), (-20, "clear")), "loud")
    texture = pick(float(np.median(tone)), ((0.35, "noisy"), (0.6, "rough")), "tonal")
    pitch, glide = _pitch(above[heard])
    text = f"A {level} {pitch} {texture} sound, {_rhythm(sound.power[heard])}{glide}, {where}."
    if not heard.all():
        ground = float(rms_db[~heard].mean())
        text += f" Else {pick(ground, ((-60, 'silence'), (-40, 'faint noise')), 'noise')}."
    return text


def _tone(pitch: Floats, above: Floats) -> float:
    """Periodicity `[F/2, lags]` of the louder half of a segment's frames, 0 (noise) to 1 (one steady tone)."""
    weight = above.mean(axis=-1)[::2]
    return float(pitch[weight >= np.median(weight)].max(axis=-1).mean())


def _pitch(above: Floats) -> tuple[str, str]:
    """Words for where the energy lies, and for how it glides within segments."""
    weight = np.square(np.maximum(above - 3, 0)) + np.float32(1e-3)
    octaves = np.log2(band_centres_hz(RATE_HZ)).astype(np.float32)
    loud = weight.sum(axis=-1)  # [T, F]
    centre = (weight @ octaves) / loud
    middle = float((centre * loud).sum() / loud.sum())
    steps = ((350, "low"), (900, "middle"), (2200, "high"))
    word = pick(2**middle, steps, "very high")
    share = loud / loud.sum(axis=1, keepdims=True)
    time = np.linspace(-0.5, 0.5, FRAMES, dtype=np.float32)
    off_time = time - (share * time).sum(axis=1, keepdims=True)
    variance = (share * off_time**2).sum(axis=1) + 1e-6
    slope = float(np.median((share * off_time * centre).sum(axis=1) / variance))  # octaves per segment
    return word, pick(slope, ((-0.5, ", falling"), (0.5, "")), ", rising")


def _rhythm(power: Floats) -> str:
    """Word for how the amplitude swings: steady, or its strongest rate from the spectrum of the envelope."""
    envelope = np.sqrt(power.sum(axis=-1))  # [T, F]
    centred = envelope - envelope.mean(axis=1, keepdims=True)
    swing = np.abs(np.fft.rfft(centred, axis=1)).mean(axis=0) * (2 / FRAMES)
    depth = float(envelope.std(axis=1).mean() / (envelope.mean() + 1e-6))
    if depth < 0.3:
        return "steady"
    rate = 1 + int(swing[1:32].argmax())
    if rate == 1:
        return "swelling"
    return "beating " + pick(rate, ((4, "slowly"), (8, "evenly"), (16, "fast")), "very fast")


VERSION = 1
IMAGE_SIZE = 64
CELLS = 16


@dataclass(frozen=True)
class _Blob:
    """The region of one segment that stands out: its colour word, middle, share of the frame and strength."""

    colour: str
    y: float
    x: float
    area: float
    mass: float
    stretch: float


class DescribeFrames:
    """One or two sentences: the thing that stands out (size, colour, place, movement, when), then the ground."""

    name = "descriptor"
    modality: Literal["visual"] = "visual"
    runs_in: Literal["worker"] = "worker"
    rate_hz: int | None = None

    def __init__(self, choice: ModelChoice) -> None:
        choice.refuse_options()

    def describe(self) -> Mapping[str, Any]:
        """Settings."""
        return {"version": VERSION, "side": IMAGE_SIZE, "cells": CELLS}

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text per clip; empty without video."""
        return [
            "" if clip.frames is None else _frames_text(resize(clip.frames, IMAGE_SIZE, IMAGE_SIZE))
            for clip in clips
        ]


def _frames_text(rgb: Floats) -> str:
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
    return ". ".join(map(capitalised, sentences)) + "."


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
    """The segment before which most of the frame changes far more than at other times, if there is one."""
    if len(luma) < 3:
        return None
    steps = np.median(np.abs(np.diff(luma, axis=0)).reshape(len(luma) - 1, -1), axis=1)
    best = int(steps.argmax())
    usual = float(np.median(np.delete(steps, best)))
    return best + 1 if steps[best] > 0.06 and steps[best] > 3 * usual else None


def _blob(rgb: Floats, weight: NDArray[np.float32]) -> _Blob | None:
    """The connected cells around the heaviest cell of `weight` `[IMAGE_SIZE, IMAGE_SIZE]`; None when all is faint."""
    p = IMAGE_SIZE // CELLS
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
        (middle_y + 0.5) / IMAGE_SIZE,
        (middle_x + 0.5) / IMAGE_SIZE,
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
