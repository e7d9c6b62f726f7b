"""The `classic` visual backbone: fixed patch descriptors, pooled into four taps like the stages of a network.

It needs no weights and only numpy, so the whole program runs anywhere; it is not meant to compete with a learned
backbone. Frames are stretched to 128x128 pixels and cut into an 8x8 grid of patches. A patch is described by luma
DCT, edge orientations, colours, change over time and moving parts, each brought to about unit scale by fixed
constants, so that a clip's values do not depend on other clips. Deeper taps have fewer, wider tokens: means say what
fills a region, maxima keep a small object visible, and the last tap adds the whole frame to each quarter.
Shapes: `T` segments, each one frame of `H`x`W` pixels; `S`: an edge in pixels; `L` tokens, `C` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.store.record import Tap

VERSION = 1
TAPS = (
    Tap("visual.stage1", 64, 64),
    Tap("visual.stage2", 16, 128),
    Tap("visual.stage3", 4, 192),
    Tap("visual.stage4", 4, 256),
)
IMAGE_SIZE = 128
"""Edge in pixels of what frames are resized to."""
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
LIMIT = 30.0
"""Values are clipped here, far inside the range of float16."""
Floats = NDArray[np.float32]
_FILL = ("edges", "edge_strength", "moments", "chroma", "hues", "greys", "change")
_MOVING = ("moving_hues", "moving_edges")
_STILL = ("dct", *_FILL)
_POOL = {"mean": (-0.2, 1.5), "max": (0.6, 1.0), "std": (0.4, 2.0)}
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


class ClassicVisual:
    """Taps `visual.stage1` ... `visual.stage4` of 64, 16, 4 and 4 tokens (grids of 8x8, 4x4, 2x2, 2x2, row by row)."""

    name = "classic"
    modality: Literal["visual"] = "visual"
    runs_in: Literal["worker"] = "worker"
    rate_hz: int | None = None

    def __init__(self, choice: ModelChoice) -> None:
        choice.refuse_options()

    def taps(self) -> tuple[Tap, ...]:
        """From shallow to deep."""
        return TAPS

    def describe(self) -> Mapping[str, Any]:
        """All settings; there are no weights."""
        return {
            "version": VERSION,
            "side": IMAGE_SIZE,  # a recipe's word
            "grid": GRID,
            "fit": "stretch",
            "groups": dict(GROUPS),
        }

    def tokens(self, clips: Sequence[NDArray[Any]]) -> list[dict[str, Floats]]:
        """Frames uint8 `[T, H, W, 3]` -> `{tap: [T, L, C]}`, clip by clip."""
        return [self._clip(frames) for frames in clips]

    def _clip(self, frames: NDArray[Any]) -> dict[str, Floats]:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3]")
        groups, moving = describe_patches(resize(frames, IMAGE_SIZE, IMAGE_SIZE))
        parts = (_stage1(groups), _stage2(groups), _stage3(groups), _stage4(groups, moving))
        return {tap.name: to_tokens(x) for tap, x in zip(TAPS, parts, strict=True)}


def _stage1(groups: Mapping[str, Floats]) -> Floats:
    t = len(groups["dct"])
    return np.concatenate([_take(groups, *_STILL), _places(t, GRID)], axis=-1)


def _stage2(groups: Mapping[str, Floats]) -> Floats:
    t, size = len(groups["dct"]), 4
    largest = _take(groups, "edges", "edge_strength", "chroma", "hues", "greys", "change")
    return np.concatenate(
        [
            _pool(_take(groups, *_STILL, *_MOVING), size, "mean"),
            _pool(largest, size, "max"),
            _pool(groups["moments"], size, "std"),
            _places(t, size),
        ],
        axis=-1,
    )


def _stage3(groups: Mapping[str, Floats]) -> Floats:
    t, size = len(groups["dct"]), 2
    everything = _take(groups, *_STILL, *_MOVING)
    varied = _take(groups, "edges", "edge_strength", "moments", "hues")
    return np.concatenate(
        [
            _pool(everything, size, "mean"),
            _pool(everything, size, "max"),
            _pool(varied, size, "std"),
            _places(t, size),
        ],
        axis=-1,
    )


def _stage4(groups: Mapping[str, Floats], moving: Floats) -> Floats:
    t, size = len(groups["dct"]), 2
    near = [
        _pool(_take(groups, "hues", "edges", *_MOVING, "change"), size, "max"),
        _pool(_take(groups, "moments", "change", *_MOVING, "edge_strength"), size, "mean"),
        _places(t, size),
    ]
    filling = _take(groups, *_FILL, *_MOVING)
    everywhere = [
        _pool(filling, 1, "mean"),
        _pool(filling, 1, "max"),
        _pool(_take(groups, "hues", "edges", "moments"), 1, "std"),
        _mass(moving),
        _upheaval(groups["change"]),
    ]
    whole = np.concatenate(everywhere, axis=-1)  # [T, 1, 1, 160]
    return np.concatenate([*near, np.broadcast_to(whole, (t, size, size, whole.shape[-1]))], axis=-1)


def _take(groups: Mapping[str, Floats], *names: str) -> Floats:
    return np.concatenate([groups[name] for name in names], axis=-1)


def _pool(x: Floats, size: int, how: str) -> Floats:
    return pool(x, size, how, *_POOL[how])


def pool(x: Floats, size: int, how: str, offset: float, scale: float) -> Floats:
    """`[T, GRID, GRID, C]` -> `[T, size, size, C]`: the `mean`, `max` or `std` of squares of patches, rescaled."""
    t, _, _, c = x.shape
    p = GRID // size
    pooled = getattr(x.reshape(t, size, p, size, p, c), how)(axis=(2, 4))
    return np.asarray((pooled - np.float32(offset)) * np.float32(scale), dtype=np.float32)


def _places(t: int, size: int) -> Floats:
    """Where each token lies, `[T, size, size, 4]`: down, right, their product, distance from the middle."""
    at = ((np.arange(size) + 0.5) / size * 2 - 1) * 1.5
    y, x = np.meshgrid(at, at, indexing="ij")
    grid = np.stack([y, x, x * y, np.hypot(x, y) - 1], axis=-1).astype(np.float32)
    return np.broadcast_to(grid, (t, size, size, 4))


def _mass(moving: Floats) -> Floats:
    """Centre and spread of what moves, `[T, 1, 1, 4]`; zeros when nothing does."""
    at = np.linspace(-1, 1, moving.shape[1], dtype=np.float32)
    weight = moving.sum(axis=(1, 2)) + np.float32(1e-3)
    parts = []
    for profile in (moving.sum(axis=2), moving.sum(axis=1)):
        middle = profile @ at / weight
        spread = np.sqrt(np.maximum(profile @ (at * at) / weight - middle * middle, 0))
        parts += [middle * 2, spread * 2]
    return np.stack(parts, axis=-1)[:, None, None].astype(np.float32)


def _upheaval(change: Floats) -> Floats:
    """How much of the frame differs from those before and after, `[T, 1, 1, 2]`: large at a cut."""
    luma = change[..., [0, 6]]
    return np.median(luma.reshape(len(luma), -1, 2), axis=1)[:, None, None].astype(np.float32)


def to_tokens(x: Floats) -> Floats:
    """Grid `[T, size, size, C]` -> tokens `[T, L, C]`, clipped to `LIMIT`."""
    t, size, _, c = x.shape
    return np.clip(x.reshape(t, size * size, c), -LIMIT, LIMIT).astype(np.float32)


def describe_patches(rgb: Floats) -> tuple[dict[str, Floats], Floats]:
    """Descriptors of `[T, S, S, 3]`: group -> `[T, GRID, GRID, channels]` (see `GROUPS`), and the moving mask."""
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
    """Against the segments before and after: mean and largest change of luma and chroma, signed change of the means."""
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


def _fixed_scale(name: str, x: Floats) -> Floats:
    centre, scale = (np.asarray(value, dtype=np.float32) for value in _SCALES[name])
    return np.asarray((x - centre) * scale, dtype=np.float32)


def cells(x: Floats) -> Floats:
    """`[T, S, S, C]` -> `[T, GRID, GRID, C, pixels]`: the pixels of each patch."""
    t, size, _, c = x.shape
    p = size // GRID
    blocks = x.reshape(t, GRID, p, GRID, p, c).transpose(0, 1, 3, 5, 2, 4)
    return blocks.reshape(t, GRID, GRID, c, p * p)


def cell_mean(x: Floats) -> Floats:
    """`[T, S, S, C]` -> patch means `[T, GRID, GRID, C]`; rows first, since those are long contiguous runs."""
    t, size, _, c = x.shape
    p = size // GRID
    rows = x.reshape(t, GRID, p, size * c).sum(axis=2)
    return np.asarray(rows.reshape(t, GRID, GRID, p, c).sum(axis=3) * np.float32(1 / (p * p)))


def cell_max(x: Floats) -> Floats:
    """`[T, S, S]` -> patch maxima `[T, GRID, GRID, 1]`."""
    t, size, _ = x.shape
    p = size // GRID
    rows = x.reshape(t, GRID, p, size).max(axis=2)
    return np.asarray(rows.reshape(t, GRID, GRID, p).max(axis=3)[..., None])


def patch_dct(luma: Floats) -> Floats:
    """`[T, S, S]` -> `[T, GRID, GRID, 16]`: the 4x4 lowest DCT coefficients, root-compressed."""
    p = IMAGE_SIZE // GRID
    d = np.ascontiguousarray(dct_matrix(p, 4).T)
    t = len(luma)
    rows = d @ (luma - np.float32(0.5)).reshape(t, GRID, p, IMAGE_SIZE)  # [T, GRID, 4, IMAGE_SIZE]
    both = rows.reshape(t, GRID, 4, GRID, p) @ d.T  # [T, GRID, 4, GRID, 4]
    flat = both.transpose(0, 1, 3, 2, 4).reshape(t, GRID, GRID, 16)
    return np.asarray(np.sign(flat) * np.sqrt(np.abs(flat)), dtype=np.float32)


def dct_matrix(n: int, k: int) -> Floats:
    """Orthonormal DCT-II, `[n, k]`: `x @ dct_matrix(n, k)` gives the `k` lowest coefficients."""
    basis = np.cos(np.pi * (2 * np.arange(n)[:, None] + 1) * np.arange(k)[None] / (2 * n)) * np.sqrt(2 / n)
    basis[:, 0] /= np.sqrt(2)
    return np.asarray(basis, dtype=np.float32)


def gradients(luma: Floats) -> Floats:
    """Edges of `[T, S, S]` as `[T, S, S, 2]`: strength, at twice the edge's angle (an edge has no sign)."""
    gy, gx = np.zeros_like(luma), np.zeros_like(luma)
    gy[:, 1:-1] = luma[:, 2:] - luma[:, :-2]
    gx[:, :, 1:-1] = luma[:, :, 2:] - luma[:, :, :-2]
    strength = np.sqrt(gx * gx + gy * gy) + np.float32(1e-6)
    return np.stack([(gx * gx - gy * gy) / strength, 2 * gx * gy / strength], axis=-1)


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


def directions(n: int) -> Floats:
    """`[n, 2]` unit vectors, evenly spaced over the full circle."""
    angle = np.arange(n) * (2 * np.pi / n)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def opponent(rgb: Floats) -> tuple[Floats, Floats]:
    """RGB `[..., 3]` in 0..1 -> luma `[...]` in 0..1 and blue/red chroma `[..., 2]` in -0.5..0.5 (BT.601)."""
    red, green, blue = (np.ascontiguousarray(rgb[..., i]) for i in range(3))
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    return luma, np.stack([(blue - luma) * np.float32(0.564), (red - luma) * np.float32(0.713)], axis=-1)


def halve(x: Floats) -> Floats:
    """`[T, S, S, C]` -> `[T, S/2, S/2, C]`, means of 2x2 pixels."""
    rows = x[:, 0::2] + x[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)


def neighbours(t: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the segments before and after; where one is missing, the segment two steps to the other side."""
    now = np.arange(t)
    before, after = now - 1, now + 1
    before[0], after[-1] = min(2, t - 1), max(t - 3, 0)
    return before, np.minimum(after, t - 1)


def moving_mask(small: Floats) -> Floats:
    """`[T, S, S, 3]` -> `[T, S, S]` in 0..1: what moves, at its present place.

    The larger of two measures: the difference to the frame before *and* the one after (ground that an object
    uncovers differs from only one of them), and the difference to the clip's median frame (which finds slow objects),
    less the change of the frame as a whole, so that a camera cut does not mark everything.
    """
    before, after = neighbours(len(small))
    step = np.minimum(_apart(small, small[before]), _apart(small, small[after]))
    from_usual = _apart(small, np.sort(small, axis=0)[len(small) // 2])
    from_usual -= 3 * np.median(from_usual, axis=(1, 2), keepdims=True)
    return np.clip((np.maximum(step, from_usual) - np.float32(0.1)) * 2, 0, 1)


def _apart(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.einsum("tyxc->tyx", np.abs(a - b)))


def resize(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """Frames uint8 `[T, H, W, 3]` -> float32 `[T, height, width, 3]` in 0..1."""
    t, h, w, c = frames.shape
    if (h, w) == (height, width):
        return frames.astype(np.float32) * np.float32(1 / 255)
    rows, columns = area_weights(h, height), area_weights(w, width) * np.float32(1 / 255)
    out = np.empty((t, height, width, c), dtype=np.float32)
    for i in range(t):  # one at a time: a float copy of large frames takes much memory
        tall = rows @ frames[i].reshape(h, w * c).astype(np.float32)  # [height, W*3]
        out[i] = columns @ tall.reshape(height, w, c)
    return out


@lru_cache(maxsize=32)
def area_weights(size: int, wanted: int) -> NDArray[np.float32]:
    """The share of each input pixel in each output pixel: weights `[wanted, size]`, whose rows sum to 1.

    Shrinking averages exactly the covered area; growing interpolates linearly between pixel centres.
    """
    edges = np.arange(wanted + 1) * (size / wanted)
    centres = (edges[:-1] + edges[1:]) / 2
    half = max(size / wanted, 1.0) / 2
    pixel = np.arange(size)
    low, high = (centres - half)[:, None], (centres + half)[:, None]
    overlap = np.minimum(pixel[None] + 1, high) - np.maximum(pixel[None], low)
    overlap = np.clip(overlap, 0.0, 1.0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), dtype=np.float32)
