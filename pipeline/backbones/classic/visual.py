"""The `classic` visual backbone: fixed patch descriptors pooled into four taps, like the stages of a network.

It needs no weights and only numpy, so the whole path runs anywhere; it is not meant to compete with a learned
backbone. Deeper taps have fewer, wider tokens: means say what fills a region, maxima keep a small object visible,
and the last tap adds the whole picture to each quarter. Shapes: `T` segments, `L` tokens, `C` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.patches import GRID, GROUPS, SIDE, Floats, describe_patches
from caeav.pipeline.backbones.base import Tap
from caeav.pipeline.backbones.resize import resize

VERSION = 1
LIMIT = 30.0
"""Values are cut here, far inside float16."""

_FILL = ("edges", "edge_strength", "moments", "chroma", "hues", "greys", "change")
_MOVING = ("moving_hues", "moving_edges")
_STILL = ("dct", *_FILL)
_POOL = {"mean": (-0.2, 1.5), "max": (0.6, 1.0), "std": (0.4, 2.0)}


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
        return (
            Tap("visual.stage1", 64, 64),
            Tap("visual.stage2", 16, 128),
            Tap("visual.stage3", 4, 192),
            Tap("visual.stage4", 4, 256),
        )

    def describe(self) -> Mapping[str, Any]:
        """Settings; there are no weights to digest."""
        return {"version": VERSION, "side": SIDE, "grid": GRID, "fit": "stretch", "groups": dict(GROUPS)}

    def tokens(self, clips: Sequence[NDArray[Any]]) -> list[dict[str, Floats]]:
        """Frames uint8 `[T, H, W, 3]` -> `{tap: [T, L, C]}`, clip by clip."""
        return [self._clip(frames) for frames in clips]

    def _clip(self, frames: NDArray[Any]) -> dict[str, Floats]:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3]")
        groups, moving = describe_patches(resize(frames, SIDE, SIDE))
        parts = (_stage1(groups), _stage2(groups), _stage3(groups), _stage4(groups, moving))
        return {tap.name: _tokens(x) for tap, x in zip(self.taps(), parts, strict=True)}


def _stage1(groups: Mapping[str, Floats]) -> Floats:
    t = len(groups["dct"])
    return np.concatenate([_take(groups, *_STILL), _places(t, GRID)], axis=-1)


def _stage2(groups: Mapping[str, Floats]) -> Floats:
    t, side = len(groups["dct"]), 4
    largest = _take(groups, "edges", "edge_strength", "chroma", "hues", "greys", "change")
    return np.concatenate(
        [
            _pool(_take(groups, *_STILL, *_MOVING), side, "mean"),
            _pool(largest, side, "max"),
            _pool(groups["moments"], side, "std"),
            _places(t, side),
        ],
        axis=-1,
    )


def _stage3(groups: Mapping[str, Floats]) -> Floats:
    t, side = len(groups["dct"]), 2
    everything = _take(groups, *_STILL, *_MOVING)
    varied = _take(groups, "edges", "edge_strength", "moments", "hues")
    return np.concatenate(
        [
            _pool(everything, side, "mean"),
            _pool(everything, side, "max"),
            _pool(varied, side, "std"),
            _places(t, side),
        ],
        axis=-1,
    )


def _stage4(groups: Mapping[str, Floats], moving: Floats) -> Floats:
    t, side = len(groups["dct"]), 2
    near = [
        _pool(_take(groups, "hues", "edges", *_MOVING, "change"), side, "max"),
        _pool(_take(groups, "moments", "change", *_MOVING, "edge_strength"), side, "mean"),
        _places(t, side),
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
    return np.concatenate([*near, np.broadcast_to(whole, (t, side, side, whole.shape[-1]))], axis=-1)


def _take(groups: Mapping[str, Floats], *names: str) -> Floats:
    return np.concatenate([groups[name] for name in names], axis=-1)


def _pool(x: Floats, side: int, how: str) -> Floats:
    """`[T, GRID, GRID, C]` -> `[T, side, side, C]`."""
    t, _, _, c = x.shape
    p = GRID // side
    blocks = x.reshape(t, side, p, side, p, c)
    if how == "std":
        centre = blocks.mean(axis=(2, 4), keepdims=True)
        pooled = np.sqrt(np.square(blocks - centre).mean(axis=(2, 4)))
    else:
        pooled = blocks.max(axis=(2, 4)) if how == "max" else blocks.mean(axis=(2, 4))
    offset, scale = _POOL[how]
    return np.asarray((pooled - np.float32(offset)) * np.float32(scale), dtype=np.float32)


def _places(t: int, side: int) -> Floats:
    """Where each token lies, `[T, side, side, 4]`: down, right, their product, distance from the middle."""
    at = ((np.arange(side) + 0.5) / side * 2 - 1) * 1.5
    y, x = np.meshgrid(at, at, indexing="ij")
    grid = np.stack([y, x, x * y, np.hypot(x, y) - 1], axis=-1).astype(np.float32)
    return np.broadcast_to(grid, (t, side, side, 4))


def _mass(moving: Floats) -> Floats:
    """Middle and spread of what moves, `[T, 1, 1, 4]`; zeros when nothing does."""
    at = np.linspace(-1, 1, moving.shape[1], dtype=np.float32)
    weight = moving.sum(axis=(1, 2)) + np.float32(1e-3)
    parts = []
    for profile in (moving.sum(axis=2), moving.sum(axis=1)):
        middle = profile @ at / weight
        spread = np.sqrt(np.maximum(profile @ (at * at) / weight - middle * middle, 0))
        parts += [middle * 2, spread * 2]
    return np.stack(parts, axis=-1)[:, None, None].astype(np.float32)


def _upheaval(change: Floats) -> Floats:
    """How much of the picture is new against before and after, `[T, 1, 1, 2]`: large at a cut."""
    luma = change[..., [0, 6]]
    return np.median(luma.reshape(len(luma), -1, 2), axis=1)[:, None, None].astype(np.float32)


def _tokens(x: Floats) -> Floats:
    """Grid `[T, side, side, C]` -> tokens `[T, L, C]` inside the float16-safe range."""
    t, side, _, c = x.shape
    return np.clip(x.reshape(t, side * side, c), -LIMIT, LIMIT).astype(np.float32)
