"""The `classic` audio backbone: log-mel patches pooled into four taps, like the stages of a network.

No weights, numpy only. Tokens lie on grids of time x frequency (8x8, 4x4, 2x2, 2x2; time first, frequency fastest);
the last tap adds a summary of the whole segment to each token. Levels are given both as they are and over the
clip's own background, so an event stands out of steady noise.
Shapes: `T` segments, `F` spectral frames a segment, `M` tokens, `D` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.melscale import (
    BANDS,
    FFT,
    FRAMES,
    LOW_HZ,
    Floats,
    Sound,
    analyse,
    dct_matrix,
)
from caeav.pipeline.backbones.patches import neighbours
from caeav.pipeline.backbones.base import Tap
from caeav.pipeline.backbones.sound_summary import summarise

VERSION = 1
RATE_HZ = 16_000
GRID = 8
LIMIT = 30.0
"""Values are cut here, far inside float16."""

_POOL = {"mean": (0.0, 1.3), "max": (0.8, 0.9), "std": (0.5, 1.8)}


class ClassicAudio:
    """Taps `audio.stage1` ... `audio.stage4` of 64, 16, 4 and 4 tokens."""

    name = "classic"
    modality: Literal["audio"] = "audio"
    runs_in: Literal["worker"] = "worker"
    rate_hz: int | None = RATE_HZ

    def __init__(self, choice: ModelChoice) -> None:
        choice.refuse_options()

    def taps(self) -> tuple[Tap, ...]:
        """From shallow to deep."""
        return (
            Tap("audio.stage1", 64, 32),
            Tap("audio.stage2", 16, 64),
            Tap("audio.stage3", 4, 128),
            Tap("audio.stage4", 4, 256),
        )

    def describe(self) -> Mapping[str, Any]:
        """Settings; there are no weights to digest."""
        return {
            "version": VERSION,
            "rate_hz": RATE_HZ,
            "bands": BANDS,
            "frames": FRAMES,
            "fft": FFT,
            "low_hz": LOW_HZ,
            "grid": GRID,
        }

    def tokens(self, clips: Sequence[NDArray[Any]]) -> list[dict[str, Floats]]:
        """Windows float32 `[T, samples]` at `RATE_HZ` -> `{tap: [T, M, D]}`, clip by clip."""
        return [self._clip(windows) for windows in clips]

    def _clip(self, windows: NDArray[Any]) -> dict[str, Floats]:
        if windows.ndim != 2 or windows.dtype != np.float32 or windows.size == 0:
            raise ValueError(f"windows are {windows.dtype} {windows.shape}, expected float32 [T, samples]")
        sound = analyse(windows, RATE_HZ)
        patches = _patches(sound)
        stages = (
            np.concatenate([patches, _places(len(patches), GRID)], axis=-1),
            _stage2(patches),
            _stage3(patches),
            _stage4(patches, summarise(sound)),
        )
        return {tap.name: _tokens(x) for tap, x in zip(self.taps(), stages, strict=True)}


def _patches(sound: Sound) -> Floats:
    """`[T, GRID, GRID, 30]`: descriptors of patches of 12 spectral frames x 8 bands."""
    level, above = sound.level_db, sound.above_db
    t = len(level)
    f, b = FRAMES // GRID, BANDS // GRID
    onset = np.maximum(np.diff(above, axis=1, prepend=above[:, :1]), 0)

    def cut(x: Floats) -> Floats:
        return x.reshape(t, GRID, f, GRID, b).transpose(0, 1, 3, 2, 4)  # [T, time, frequency, f, b]

    here, over, rise = cut(level), cut(above), cut(onset)
    mean = here.mean(axis=(3, 4))
    over_mean = over.mean(axis=(3, 4))
    before, after = neighbours(t)
    waves = dct_matrix(f, 4).T @ here @ dct_matrix(b, 4)  # [T, time, frequency, 4, 4]
    flat = waves.reshape(t, GRID, GRID, 16)[..., 1:]
    single = [
        (mean + 50) / 15,
        (here.max(axis=(3, 4)) + 42) / 15,
        (here.min(axis=(3, 4)) + 60) / 15,
        over_mean / 5 - 0.7,
        over.max(axis=(3, 4)) / 8 - 1,
        (over > 6).mean(axis=(3, 4)) * 4 - 0.7,
        here.std(axis=(3, 4)) / 3 - 1.5,
        rise.mean(axis=(3, 4)) - 1,
        rise.max(axis=(3, 4)) / 6 - 1.3,
        (here.max(axis=4) - here.mean(axis=4)).mean(axis=3) / 3 - 1.7,  # peaks along frequency: tones
        (here.max(axis=3) - here.mean(axis=3)).mean(axis=3) / 3 - 1.5,  # peaks along time: clicks
        (mean - mean[before]) / 8,
        (mean - mean[after]) / 8,
        (over_mean - over_mean[before]) / 5,
        (over_mean - over_mean[after]) / 5,
    ]
    return np.concatenate([np.stack(single, axis=-1), flat / 12], axis=-1).astype(np.float32)


def _stage2(patches: Floats) -> Floats:
    side = 4
    parts = [_pool(patches, side, "mean"), _pool(patches, side, "max"), _places(len(patches), side)]
    return np.concatenate([*parts, _pool(patches[..., [3, 4]], side, "std")], axis=-1)


def _stage3(patches: Floats) -> Floats:
    side = 2
    pooled = [_pool(patches, side, how) for how in ("mean", "max", "std")]
    inner = _pool(patches, 4, "mean")[..., [0, 3, 4, 7, 9]]  # a 2x2 view inside each token
    t = len(patches)
    inside = inner.reshape(t, side, 2, side, 2, 5).transpose(0, 1, 3, 2, 4, 5).reshape(t, side, side, 20)
    uneven = patches[..., :16].std(axis=(1, 2))[:, None, None] * 1.5 - 0.7  # over the whole segment
    wide = np.broadcast_to(uneven, (t, side, side, 16))
    return np.concatenate([*pooled, inside, wide, _places(t, side)], axis=-1)


def _stage4(patches: Floats, summary: Floats) -> Floats:
    side, t = 2, len(patches)
    near = [_pool(patches, side, how) for how in ("mean", "max", "std")]
    local = np.concatenate([*near, _places(t, side), _pool(patches[..., [0, 3, 4, 7]], side, "max")], axis=-1)
    whole = np.broadcast_to(summary[:, None, None], (t, side, side, summary.shape[-1]))
    return np.concatenate([local, whole], axis=-1)


def _pool(x: Floats, side: int, how: str) -> Floats:
    """`[T, GRID, GRID, C]` -> `[T, side, side, C]`."""
    t, grid, _, c = x.shape
    p = grid // side
    blocks = x.reshape(t, side, p, side, p, c)
    pooled = getattr(blocks, how)(axis=(2, 4))
    offset, scale = _POOL[how]
    return np.asarray((pooled - np.float32(offset)) * np.float32(scale), dtype=np.float32)


def _places(t: int, side: int) -> Floats:
    """Where each token lies: time and frequency, `[T, side, side, 2]`."""
    at = ((np.arange(side) + 0.5) / side * 2 - 1) * 1.5
    grid = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1).astype(np.float32)
    return np.broadcast_to(grid, (t, side, side, 2))


def _tokens(x: Floats) -> Floats:
    """Grid `[T, side, side, D]` -> tokens `[T, M, D]` inside the float16-safe range."""
    t, side, _, d = x.shape
    return np.clip(x.reshape(t, side * side, d), -LIMIT, LIMIT).astype(np.float32)
