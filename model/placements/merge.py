"""How a change made at one stage reaches the next on the ladder: a learned low-rank patch merge.

In the live backbone a change of a stage's tokens would run through the merging of patches and the blocks behind it.
The ladder has only the cached taps; this map stands for the first-order response. It has no bias, so no change
below means no change above, exactly. Tokens `[BT, L, C]`.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.batch import TapSpec


def square_side(tokens: int) -> int | None:
    """The side of a square grid of `tokens`, None when there is none."""
    side = math.isqrt(tokens)
    return side if side * side == tokens else None


def merge_patches(x: Tensor, side: int) -> Tensor:
    """Concatenate 2x2 neighbours of a `side x side` grid: `[BT, side^2, C]` -> `[BT, side^2 / 4, 4C]`.

    Order within a patch: (0,0), (1,0), (0,1), (1,1) as (row, column), the backbones' own.
    """
    half = side // 2
    rows, _, channels = x.shape
    grid = x.reshape(rows, half, 2, half, 2, channels)  # [BT, row, in-row, column, in-column, C]
    return grid.permute(0, 1, 3, 4, 2, 5).reshape(rows, half * half, 4 * channels)


def pool_tokens(x: Tensor, tokens: int) -> Tensor:
    """Adaptive average pooling to `tokens`, over the grid where both counts are squares, else along the axis."""
    own, wanted = square_side(x.shape[1]), square_side(tokens)
    channels_first = x.transpose(1, 2)
    if own is not None and wanted is not None:
        grid = F.adaptive_avg_pool2d(channels_first.reshape(x.shape[0], -1, own, own), wanted)
        return grid.flatten(2).transpose(1, 2)
    return F.adaptive_avg_pool1d(channels_first, tokens).transpose(1, 2)


class LowRankMerge(nn.Module):
    """From one stage's tokens and channels to the next's: merge or pool tokens, then `C -> rank -> C'`."""

    def __init__(self, below: TapSpec, above: TapSpec, rank: int) -> None:
        super().__init__()
        side = square_side(below.tokens)
        merges = side is not None and side % 2 == 0 and below.tokens == 4 * above.tokens
        self.merge_side = side if merges else None
        self.tokens = above.tokens
        self.down = nn.Linear(below.channels * (4 if merges else 1), rank, bias=False)
        self.up = nn.Linear(rank, above.channels, bias=False)

    def forward(self, delta: Tensor) -> Tensor:
        """`[BT, L, C]` of the stage below -> `[BT, L', C']` of the stage above."""
        if self.merge_side is not None:
            delta = merge_patches(delta, self.merge_side)
        elif delta.shape[1] != self.tokens:
            delta = pool_tokens(delta, self.tokens)
        return self.up(self.down(delta))  # type: ignore[no-any-return]
