"""The voices of a world made from material: recordings, cut to what can be heard in them and set to a level.

A recording has silence, a length and a loudness of its own, but while the truth says that a class is heard, it must be
heard in every second. So of a recording only the loud stretches are played, from the start of a random one on, around
and around: those that lie within `RANGE_DB` of its loudest fifth of a second, each with `BEFORE_S` before and `AFTER_S`
after it, so no pause is longer than the two together, unless the sound itself is one of single ticks. Then peaks are
rounded off (a tick needs little power), and no second is left more than `WEAKEST` below the voice's level.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Wave = NDArray[np.float64]

FRAME_S = 0.02
LOUDEST_S = 0.2
RANGE_DB = 20.0
BEFORE_S, AFTER_S = 0.05, 0.3
EDGE_S = 0.005
"""Fade in and out of each stretch, so that joints do not click."""
SILENCE = 1e-4
"""A recording whose loudest frame is below this (root mean square, full scale 1) is silent."""
PEAK_FACTOR = 6.0
"""Peaks are rounded off towards this many times the root mean square."""
WEAKEST = 0.75
ROUNDS = 4


def frame_levels(wave: Wave, rate_hz: int) -> Wave:
    """Root mean square of each frame of `FRAME_S`, without a rest at the end: [n // frame]."""
    size = max(1, int(FRAME_S * rate_hz))
    count = max(1, len(wave) // size)
    padded = np.zeros(count * size)
    padded[: len(wave)] = wave[: count * size]
    return np.asarray(np.sqrt(np.mean(padded.reshape(count, size) ** 2, axis=1)))


def loud_stretches(wave: Wave, rate_hz: int) -> list[tuple[int, int]]:
    """Where a recording is to be heard, as (start, end) in samples, in order; none if it is silent.

    The loudest fifth of a second is the one with the largest median frame, so that one click does not make the rest of
    a crackling fire look quiet.
    """
    levels = frame_levels(wave, rate_hz)
    if levels.max() < SILENCE:
        return []
    width = min(len(levels), round(LOUDEST_S / FRAME_S))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(levels, width), axis=1)
    reference = medians.max()
    if reference < SILENCE:  # shorter than half of the window: one tick
        reference = levels.max()
    loud = levels >= max(SILENCE, reference * 10 ** (-RANGE_DB / 20))
    edges = np.flatnonzero(np.diff(np.concatenate(([0], loud.astype(np.int8), [0]))))
    size = max(1, int(FRAME_S * rate_hz))
    before, after = int(BEFORE_S * rate_hz), int(AFTER_S * rate_hz)
    found: list[tuple[int, int]] = []
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        start, end = max(0, int(first) * size - before), min(len(wave), int(last) * size + after)
        if found and start <= found[-1][1]:
            start = found.pop()[0]
        found.append((start, end))
    return found


def played(wave: Wave, rate_hz: int, samples: int, rng: Generator) -> Wave:
    """`samples` of a recording's loud stretches, from the start of a random one on; it must have one."""
    pieces = [_faded(wave[start:end], rate_hz) for start, end in loud_stretches(wave, rate_hz)]
    first = int(rng.integers(len(pieces)))
    loop = np.concatenate(pieces[first:] + pieces[:first])
    return np.asarray(np.resize(loop, samples))


def _faded(piece: Wave, rate_hz: int) -> Wave:
    size = min(int(EDGE_S * rate_hz), len(piece) // 2)
    faded = piece.copy()
    slope = np.linspace(0, 1, size, endpoint=False)
    faded[:size] *= slope
    faded[len(faded) - size :] *= slope[::-1]
    return faded


def at_level(wave: Wave, level: float, rate_hz: int) -> Wave:
    """`wave` ([seconds * rate_hz]) at `level` (root mean square, full scale 1), with no second far below it."""
    steady = wave * (level / _rms(wave))
    for _ in range(ROUNDS):
        seconds = np.sqrt(np.mean(steady.reshape(-1, rate_hz) ** 2, axis=1))
        lift = np.maximum(1.0, WEAKEST * level / np.maximum(seconds, 1e-9))
        steady = steady * np.repeat(lift, rate_hz)
        most = PEAK_FACTOR * level
        steady = most * np.tanh(steady / most)
        steady = steady * (level / _rms(steady))
    return np.asarray(steady)


def _rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(wave**2)))
