"""Mixing over time at a fixed token place: depthwise convolution and channel shift (REFERENCE 2.3, 2.8).

Tokens are `[BT, L, C]`, rows clip by clip; `segments` (`T`) tells where a clip ends. Nothing crosses clips: both
ends are padded with zeros. No transposition to `[B * L, C, T]`: a convolution of length 3 is three shifted
multiply-adds on the tokens as they lie.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from caeav.model.adapters.lowrank import make_linear

TemporalMode = Literal["dwconv", "tsm", "tsm+dw"]


def clip_view(x: Tensor, segments: int) -> Tensor:
    """`[BT, ...]` -> `[B, T, ...]`; a ValueError when the rows are no whole number of clips."""
    if x.shape[0] % segments:
        raise ValueError(f"{x.shape[0]} rows are not a whole number of clips of {segments} segments")
    return x.view(x.shape[0] // segments, segments, *x.shape[1:])


class DepthwiseOverTime(nn.Module):
    """A convolution over time for every channel by itself: weight `[C, 3]`, bias `[C]`, zero padding."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        bound = 1.0 / math.sqrt(3)
        self.weight = nn.Parameter(torch.empty(channels, 3).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor, segments: int) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`."""
        before, now, after = self.weight.unbind(1)
        clips = clip_view(x, segments)
        mixed = torch.addcmul(self.bias, clips, now)  # [B, T, L, C]
        step = self.dilation
        if step < segments:
            mixed[:, step:].addcmul_(clips[:, :-step], before)
            mixed[:, :-step].addcmul_(clips[:, step:], after)
        return mixed.flatten(0, 1)


@torch.no_grad()
def shift_over_time(x: Tensor, segments: int) -> Tensor:
    """Channels `[0, f)` from the segment before, `[f, 2f)` from the one after, `f = max(1, C // 8)`; no gradient."""
    fold = max(1, x.shape[-1] // 8)
    shifted = x.clone()
    clips, out = clip_view(x, segments), clip_view(shifted, segments)
    out[:, 1:, :, :fold] = clips[:, :-1, :, :fold]
    out[:, 0, :, :fold] = 0
    out[:, :-1, :, fold : 2 * fold] = clips[:, 1:, :, fold : 2 * fold]
    out[:, -1, :, fold : 2 * fold] = 0
    return shifted


class TemporalConv(nn.Module):
    """CASE's temporal step: depthwise, pointwise, LayerNorm; no residual, no gate (REFERENCE 2.8)."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = DepthwiseOverTime(channels, dilation)
        self.pointwise = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, segments: int) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`."""
        return self.norm(self.pointwise(self.depthwise(x, segments)))  # type: ignore[no-any-return]


class TemporalEnrichment(nn.Module):
    """`x + gamma * norm(h)` with `h` mixed over time (REFERENCE 2.3).

    Modes: `dwconv` convolves; `tsm` shifts an eighth of the channels each way; `tsm+dw` convolves the shifted
    tokens. The shift passes no gradient to `x`, as in the reference.
    """

    def __init__(
        self, channels: int, mode: TemporalMode = "dwconv", gate_init: float = 0.0, map_rank: int = 0
    ) -> None:
        super().__init__()
        self.mode = mode
        if mode != "tsm":
            self.depthwise = DepthwiseOverTime(channels)
            self.pointwise = make_linear(channels, channels, map_rank)
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(torch.full((1,), gate_init))

    def forward(self, x: Tensor, segments: int) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`, every token (CASTE computes only the selected ones)."""
        mixed = x if self.mode == "dwconv" else shift_over_time(x, segments)
        if self.mode != "tsm":
            mixed = self.depthwise(mixed, segments)
        return x + self.gamma * self.increment(mixed)

    def increment(self, mixed: Tensor) -> Tensor:
        """`norm(pointwise(mixed))` of tokens already mixed over time: what `gamma` scales."""
        return self.norm(mixed if self.mode == "tsm" else self.pointwise(mixed))  # type: ignore[no-any-return]
