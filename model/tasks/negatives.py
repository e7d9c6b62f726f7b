"""Frames of other videos for the matching network of AVQA, drawn from seed, epoch and row alone.

Shapes: `B` samples, `T` segments, `L` tokens, `C` channels, `V` videos of the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from caeav.model.batch import NEGATIVE, TokenBatch
from caeav.model.data import Epoch, SplitData

REFERENCE_FRAMES = 60
"""Frames a clip that the reference's rejection counts with, left from longer clips."""


class Negatives:
    """Adds `negative.visual` `[B, T, L, C]` in training: tokens of the deepest visual tap that the run reads.

    `mixed`, the reference (REFERENCE section 6): for each segment a random number below `T V`; its quotient by `T` is
    the video, the remainder the segment; drawn anew while its quotient by 60 is the clip's own video, which hardly
    ever keeps the own one out. Otherwise one other video, segment by segment. A split of one video has no negatives.
    """

    def __init__(self, *, mixed: bool) -> None:
        self._mixed = mixed

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: SplitData, epoch: Epoch | None
    ) -> TokenBatch:
        """A `Change`."""
        videos = len(data.clips)
        if epoch is None or videos < 2:
            return batch
        tap = list(batch.visual)[-1]
        draw = _mixed if self._mixed else _other_video
        found = [
            draw(np.random.default_rng([*epoch, row]), data.clip_of[row], videos, batch.visual[tap].shape[1])
            for row in rows
        ]
        clips, segments = (torch.tensor(np.stack(x)) for x in zip(*found, strict=True))
        return replace(batch, extra={**batch.extra, NEGATIVE: data.segments(tap, clips, segments)})


Drawn = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Numbers of videos and of their segments, both `[T]`."""


def _other_video(rng: np.random.Generator, own: int, videos: int, segments: int) -> Drawn:
    other = int(rng.integers(videos - 1))
    return np.full(segments, other + (other >= own)), np.arange(segments)


def _mixed(rng: np.random.Generator, own: int, videos: int, segments: int) -> Drawn:
    numbers = rng.integers(videos * segments, size=segments)
    # A single rejected block may be all there is, in a set of a few videos.
    while videos * segments > REFERENCE_FRAMES and (rejected := numbers // REFERENCE_FRAMES == own).any():
        numbers[rejected] = rng.integers(videos * segments, size=int(rejected.sum()))
    return numbers // segments, numbers % segments
