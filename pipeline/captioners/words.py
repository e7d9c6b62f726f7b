"""Words for measured things: colours, places, sizes, and the segments in which something happens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GREY_CHROMA = 0.07
"""Chroma (BT.601, 0 to about 0.6) below which a colour is called a grey."""

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
    seen = _chroma(np.asarray(rgb, dtype=np.float64))
    strength = float(np.hypot(seen[0], seen[1]))
    if strength < GREY_CHROMA:
        luma = seen[2] / 0.35
        return "black" if luma < 0.15 else "grey" if luma < 0.75 else "white"

    def distance(known: tuple[float, float, float]) -> float:
        wanted = _chroma(np.asarray(known))
        scale = max(strength, 0.05) / float(np.hypot(wanted[0], wanted[1]))  # faded colours keep their name
        hue = np.hypot(*(seen[:2] - wanted[:2] * scale)) / strength
        return float(hue + 0.6 * abs(np.log(1 / scale)) * 0.5 + 1.5 * abs(seen[2] - wanted[2]))

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
    """Where `active` is true, counted from 1: `in segments 2 to 4 and 7`; `throughout` when everywhere."""
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
