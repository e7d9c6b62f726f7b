"""Negatives as the reference draws them: frames of other videos, from seed, epoch and row alone.

They bypass the adapters, so a network with adapters can tell them apart by that alone. The revision takes other clips
of the batch instead (`head.py`). Shapes: `B` samples, `T` segments, `L` tokens, `C` channels, `V` videos of the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from caeav.model.adapters.batch import NEGATIVE, ClipData, Epoch, TokenBatch

REFERENCE_FRAMES = 60
"""Frames per clip that the reference's rejection assumes; a remnant of longer clips."""


class Negatives:
    """A `BatchTransform`: in training, adds `negative.visual` `[B, T, L, C]`, tokens of the deepest visual tap read.

    For each segment a random number below `T V` (REFERENCE section 6); its quotient by `T` is the video, the remainder
    the segment. It is drawn again while its quotient by 60 is the clip's own video, which hardly ever keeps that one
    out. A split of one video has no negatives.
    """

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: ClipData, epoch: Epoch | None
    ) -> TokenBatch:
        """See the class."""
        videos = len(data.clips)
        if epoch is None or videos < 2:
            return batch
        tap = list(batch.visual)[-1]
        segments = batch.visual[tap].shape[1]
        drawn = [
            _draw(np.random.default_rng([*epoch, row]), data.clip_of[row], videos, segments) for row in rows
        ]
        clips, places = (torch.tensor(np.stack(x)) for x in zip(*drawn, strict=True))
        return replace(batch, extra={**batch.extra, NEGATIVE: data.segments(tap, clips, places)})


def _draw(
    rng: np.random.Generator, own: int, videos: int, segments: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of videos and of their segments, both `[T]`."""
    numbers = rng.integers(videos * segments, size=segments)
    # In a set of few videos the rejected block may be all there is.
    while videos * segments > REFERENCE_FRAMES and (rejected := numbers // REFERENCE_FRAMES == own).any():
        numbers[rejected] = rng.integers(videos * segments, size=int(rejected.sum()))
    return numbers // segments, numbers % segments
