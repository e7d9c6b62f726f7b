"""Frames of other videos for the matching network of AVQA as the reference draws them, from seed, epoch and row alone.

They bypass the adapters: a network with adapters can tell them by that alone. The revision takes other clips of the
batch (heads/avqa.py).

Shapes: `B` samples, `T` segments, `L` tokens, `C` channels, `V` videos of the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from caeav.model.adapters.batch import NEGATIVE, TokenBatch
from caeav.model.train.data import Epoch, SplitData

REFERENCE_FRAMES = 60
"""Frames a clip that the reference's rejection counts with, left from longer clips."""


class Negatives:
    """Adds `negative.visual` `[B, T, L, C]` in training: tokens of the deepest visual tap that the run reads.

    For each segment a random number below `T V` (REFERENCE section 6); its quotient by `T` is the video, the remainder
    the segment; drawn anew while its quotient by 60 is the clip's own video, which hardly ever keeps the own one out.
    A split of one video has no negatives.
    """

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: SplitData, epoch: Epoch | None
    ) -> TokenBatch:
        """A `Change`."""
        videos = len(data.clips)
        if epoch is None or videos < 2:
            return batch
        tap = list(batch.visual)[-1]
        found = [
            _mixed(
                np.random.default_rng([*epoch, row]), data.clip_of[row], videos, batch.visual[tap].shape[1]
            )
            for row in rows
        ]
        clips, segments = (torch.tensor(np.stack(x)) for x in zip(*found, strict=True))
        return replace(batch, extra={**batch.extra, NEGATIVE: data.segments(tap, clips, segments)})


Drawn = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Numbers of videos and of their segments, both `[T]`."""


def _mixed(rng: np.random.Generator, own: int, videos: int, segments: int) -> Drawn:
    numbers = rng.integers(videos * segments, size=segments)
    # A single rejected block may be all there is, in a set of a few videos.
    while videos * segments > REFERENCE_FRAMES and (rejected := numbers // REFERENCE_FRAMES == own).any():
        numbers[rejected] = rng.integers(videos * segments, size=int(rejected.sum()))
    return numbers // segments, numbers % segments
