"""Unlearned descriptors of picture patches: luma DCT, edge orientations, colours, change over time, moving parts.

Every descriptor is brought to about unit scale by fixed constants, never by statistics of the data, so a clip's
values do not depend on other clips. `classic_visual.py` pools them into taps.
Shapes: `T` segments, an 8x8 grid of patches of 16x16 pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIDE = 128
GRID = 8
HUES = 12
EDGES = 8

GROUPS = {
    "dct": 16,
    "edges": EDGES,
    "edge_strength": 2,
    "moments": 6,
    "chroma": 1,
    "hues": HUES,
    "greys": 3,
    "change": 12,
    "moving_hues": HUES,
    "moving_edges": EDGES,
}
"""Descriptor groups of one patch and their channels, in order."""


def directions(n: int) -> Floats:
    """`[n, 2]` unit vectors, evenly spaced over the full circle."""
    angle = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def opponent(rgb: Floats) -> tuple[Floats, Floats]:
    """RGB `[..., 3]` in 0..1 -> luma `[...]` in 0..1 and blue/red chroma `[..., 2]` in -0.5..0.5 (BT.601)."""
    red, green, blue = (np.ascontiguousarray(rgb[..., i]) for i in range(3))
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    return luma, np.stack([(blue - luma) * np.float32(0.564), (red - luma) * np.float32(0.713)], axis=-1)


def sectors(vectors: Floats, n: int, narrow: float) -> Floats:
    """How much of each vector `[..., 2]` points into each of `n` sectors: `[..., n]`, linear in its length.

    `narrow` is the cosine at which a sector ends.
    """
    x, y = vectors[..., :1], vectors[..., 1:]
    with_length = np.concatenate([x, y, np.sqrt(x * x + y * y)], axis=-1)
    weights = np.concatenate([directions(n), np.full((n, 1), -narrow, dtype=np.float32)], axis=1) / (
        1 - narrow
    )
    out = with_length.reshape(-1, 3) @ weights.T.astype(np.float32)
    np.maximum(out, 0, out=out)
    return out.reshape(*vectors.shape[:-1], n)


def cells(x: Floats) -> Floats:
    """`[T, S, S, C]` -> `[T, GRID, GRID, C, pixels]`: the pixels of each patch."""
    t, side, _, c = x.shape
    p = side // GRID
    blocks = x.reshape(t, GRID, p, GRID, p, c).transpose(0, 1, 3, 5, 2, 4)
    return blocks.reshape(t, GRID, GRID, c, p * p)


def cell_mean(x: Floats) -> Floats:
    """`[T, S, S, C]` -> patch means `[T, GRID, GRID, C]`; rows first, since that adds long contiguous runs."""
    t, side, _, c = x.shape
    p = side // GRID
    rows = x.reshape(t, GRID, p, side * c).sum(axis=2)
    return np.asarray(rows.reshape(t, GRID, GRID, p, c).sum(axis=3) * np.float32(1 / (p * p)))


def cell_max(x: Floats) -> Floats:
    """`[T, S, S]` -> patch maxima `[T, GRID, GRID, 1]`."""
    t, side, _ = x.shape
    p = side // GRID
    rows = x.reshape(t, GRID, p, side).max(axis=2)
    return np.asarray(rows.reshape(t, GRID, GRID, p).max(axis=3)[..., None])


def halve(x: Floats) -> Floats:
    """`[T, S, S, C]` -> `[T, S/2, S/2, C]`, means of 2x2 pixels."""
    rows = x[:, 0::2] + x[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)


def neighbours(t: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the segments before and after; the ends look two steps to their only side."""
    now = np.arange(t)
    before, after = now - 1, now + 1
    before[0], after[-1] = min(2, t - 1), max(t - 3, 0)
    return before, np.minimum(after, t - 1)


def patch_dct(luma: Floats) -> Floats:
    """`[T, SIDE, SIDE]` -> `[T, GRID, GRID, 16]`: the 4x4 lowest orthonormal DCT-II coefficients, root-compressed."""
    p = SIDE // GRID
    k, n = np.arange(4)[:, None], np.arange(p)[None]
    basis = np.cos(np.pi * (2 * n + 1) * k / (2 * p)) * np.sqrt(2 / p)
    basis[0] /= np.sqrt(2)
    d = basis.astype(np.float32)
    t = len(luma)
    rows = d @ (luma - np.float32(0.5)).reshape(t, GRID, p, SIDE)  # [T, GRID, 4, SIDE]
    both = rows.reshape(t, GRID, 4, GRID, p) @ d.T  # [T, GRID, 4, GRID, 4]
    flat = both.transpose(0, 1, 3, 2, 4).reshape(t, GRID, GRID, 16)
    return np.asarray(np.sign(flat) * np.sqrt(np.abs(flat)), dtype=np.float32)


def gradients(luma: Floats) -> Floats:
    """Edges of `[T, S, S]` as `[T, S, S, 2]`: strength, at twice the edge's angle (an edge has no sign)."""
    gy, gx = np.zeros_like(luma), np.zeros_like(luma)
    gy[:, 1:-1] = luma[:, 2:] - luma[:, :-2]
    gx[:, :, 1:-1] = luma[:, :, 2:] - luma[:, :, :-2]
    strength = np.sqrt(gx * gx + gy * gy) + np.float32(1e-6)
    return np.stack([(gx * gx - gy * gy) / strength, 2 * gx * gy / strength], axis=-1)


def moving_mask(small: Floats) -> Floats:
    """`[T, S, S, 3]` -> `[T, S, S]` in 0..1: what moves, at its present place.

    Two measures, the larger counts: unlike the picture before *and* the one after (ground that a thing uncovers
    differs from one of them only), and unlike the clip's median picture (which sees slow things), less what the
    whole picture changes, so that a camera cut does not mark everything.
    """
    before, after = neighbours(len(small))
    step = np.minimum(_apart(small, small[before]), _apart(small, small[after]))
    from_usual = _apart(small, np.sort(small, axis=0)[len(small) // 2])
    from_usual -= 3 * np.median(from_usual, axis=(1, 2), keepdims=True)
    return np.clip((np.maximum(step, from_usual) - np.float32(0.1)) * 2, 0, 1)


def _apart(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.einsum("tyxc->tyx", np.abs(a - b)))


def describe_patches(rgb: Floats) -> tuple[dict[str, Floats], Floats]:
    """Descriptors of `[T, SIDE, SIDE, 3]`: group -> `[T, GRID, GRID, channels]` (see `GROUPS`), and the moving mask."""
    luma, _ = opponent(rgb)
    small = halve(rgb)  # colour needs half the resolution
    small_luma, chroma = opponent(small)
    edges = gradients(luma)
    strength = np.sqrt(np.square(edges).sum(-1))
    hues = sectors(chroma, HUES, 0.85)
    np.maximum(hues - np.float32(0.02), 0, out=hues)
    moving = moving_mask(small)
    small_edges = sectors(gradients(small_luma), EDGES, 0.5)
    saturation = np.sqrt(np.square(chroma).sum(-1))
    bands = np.stack(
        [small_luma < 0.25, (small_luma >= 0.25) & (small_luma < 0.7), small_luma >= 0.7], axis=-1
    )
    greys = (bands & (saturation < 0.08)[..., None]).astype(np.float32)
    spread = cells(np.concatenate([small_luma[..., None], chroma], axis=-1))  # [T, GRID, GRID, 3, pixels]
    means = spread.mean(axis=-1)
    root = {
        "edges": cell_mean(sectors(edges, EDGES, 0.5)),
        "edge_strength": np.concatenate([cell_mean(strength[..., None]), cell_max(strength)], axis=-1),
        "chroma": cell_max(saturation),
        "hues": cell_mean(hues),
        "greys": cell_mean(greys),
        "moving_hues": cell_mean(hues * moving[..., None]),
        "moving_edges": cell_mean(small_edges * moving[..., None]),
    }
    plain = {"dct": patch_dct(luma), "moments": _moments(spread, means), "change": _change(spread, means)}
    found = {name: np.sqrt(x) for name, x in root.items()} | plain
    return {name: _fixed_scale(name, found[name]) for name in GROUPS}, moving


def _moments(spread: Floats, means: Floats) -> Floats:
    return np.concatenate([means, np.sqrt(spread.var(axis=-1))], axis=-1)


def _change(spread: Floats, means: Floats) -> Floats:
    """Against the segments before and after: mean and largest difference of luma and chroma, signed mean difference."""
    parts = []
    for other in neighbours(len(spread)):
        apart = np.abs(spread - spread[other])
        luma, colour = apart[..., :1, :], apart[..., 1:, :].sum(axis=-2, keepdims=True)
        parts += [
            np.sqrt(luma.mean(-1)),
            np.sqrt(colour.mean(-1)),
            np.sqrt(colour.max(-1)),
            means - means[other],
        ]
    return np.concatenate(parts, axis=-1)


_SCALES: dict[str, tuple[float | tuple[float, ...], float | tuple[float, ...]]] = {
    "dct": (0.0, 1.3),
    "edges": (0.15, 8.0),
    "edge_strength": (0.5, 2.5),
    "moments": ((0.45, 0, 0, 0.12, 0.03, 0.03), (4, 12, 12, 10, 25, 25)),
    "chroma": (0.35, 5.0),
    "hues": (0.06, 8.0),
    "greys": (0.35, 2.5),
    "change": ((0.25, 0.15, 0.25, 0, 0, 0) * 2, (5, 8, 5, 5, 20, 20) * 2),
    "moving_hues": (0.03, 10.0),
    "moving_edges": (0.04, 10.0),
}


def _fixed_scale(name: str, x: Floats) -> Floats:
    centre, scale = (np.asarray(value, dtype=np.float32) for value in _SCALES[name])
    return np.asarray((x - centre) * scale, dtype=np.float32)
