"""What CASTE needs of its own tokens, in one differentiable step with a hand-written backward.

CASTE reads from `[BT, L, C]` tokens their mean, their softmax-pooled vector, the selected tokens, and those tokens
convolved over time. Written with single operations (`plain_pool_and_select`), each of the four hands back a gradient of
full size; here the backward makes one. The measured gain is in docs/PLACEMENTS.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from caeav.model.adapters.kernels.precision import own_precision
from caeav.model.adapters.layers import clip_view


class PooledTokens(NamedTuple):
    """`mean`, `pooled`: `[BT, C]`. `selected`, `mixed`: `[BT, k, C]`, selected tokens, plain and mixed over time."""

    mean: Tensor
    pooled: Tensor
    selected: Tensor
    mixed: Tensor


def pool_and_select(
    x: Tensor, score: Tensor, weight: Tensor, bias: Tensor, index: Tensor, segments: int
) -> PooledTokens:
    """Mean, pooled and selected tokens of `x` `[BT, L, C]`, and the selected ones convolved over time.

    `score` `[C]`: pooling weights are its softmaxed products with the tokens. `weight` `[C, 3]`, `bias` `[C]`: the
    depthwise convolution. `index` `[BT, k]`: the selected tokens, distinct within a row. Runs in `x`'s precision
    whatever autocast says: the reductions are too long for half precision to be worth it.
    """
    with torch.autocast(x.device.type, enabled=False):
        parameters = (score.to(x.dtype), weight.to(x.dtype), bias.to(x.dtype))
        return PooledTokens(*_PoolAndSelect.apply(x, *parameters, index, segments))  # type: ignore[no-untyped-call]


def plain_pool_and_select(
    x: Tensor, score: Tensor, weight: Tensor, bias: Tensor, index: Tensor, segments: int
) -> PooledTokens:
    """The formula that `pool_and_select` equals, in single operations."""
    attention = torch.softmax(x @ score, dim=1).unsqueeze(1)  # [BT, 1, L]
    take = index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
    selected = x.gather(1, take)
    clips, places = clip_view(x, segments), clip_view(take, segments)
    mixed = torch.addcmul(bias, clip_view(selected, segments), weight[:, 1])  # [B, T, k, C]
    mixed[:, 1:].addcmul_(clips[:, :-1].gather(2, places[:, 1:]), weight[:, 0])
    mixed[:, :-1].addcmul_(clips[:, 1:].gather(2, places[:, :-1]), weight[:, 2])
    return PooledTokens(x.mean(dim=1), torch.bmm(attention, x)[:, 0], selected, mixed.flatten(0, 1))


class _PoolAndSelect(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, score: Tensor, weight: Tensor, bias: Tensor, index: Tensor, segments: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, tokens, channels = x.shape
        flat = x.reshape(-1, channels)
        attention = torch.softmax(x @ score, dim=1)  # [BT, L]
        pooling = torch.stack([attention, torch.full_like(attention, 1.0 / tokens)], dim=1)
        pooled, mean = torch.bmm(pooling, x).unbind(1)
        now, before, after = _neighbours(index, tokens, segments)
        selected = flat.index_select(0, now).view(rows, -1, channels)
        mixed = torch.addcmul(bias, selected, weight[:, 1])
        clips = clip_view(mixed, segments)  # [B, T, k, C]
        clips[:, 1:].addcmul_(flat.index_select(0, before).view_as(clips[:, 1:]), weight[:, 0])
        clips[:, :-1].addcmul_(flat.index_select(0, after).view_as(clips[:, :-1]), weight[:, 2])
        ctx.save_for_backward(x, score, weight, attention, pooled, selected, index)
        ctx.segments = segments
        return mean, pooled, selected, mixed

    @staticmethod
    @own_precision
    def backward(
        ctx: Any, d_mean: Tensor, d_pooled: Tensor, d_selected: Tensor, d_mixed: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None, None]:
        x, score, weight, attention, pooled, selected, index = ctx.saved_tensors
        segments = ctx.segments
        tokens, channels = x.shape[1:]
        flat = x.reshape(-1, channels)

        # Pooling: d_attention_l = <x_l, d_pooled>; the softmax turns it into d_logit.
        d_attention = torch.bmm(x, d_pooled.unsqueeze(2))[..., 0] - (pooled * d_pooled).sum(-1, keepdim=True)
        d_logit = attention * d_attention  # [BT, L]
        d_score = d_logit.flatten() @ flat
        now, before, after = _neighbours(index, tokens, segments)
        d_clips = clip_view(d_mixed, segments)
        later, earlier = d_clips[:, 1:].reshape(-1, channels), d_clips[:, :-1].reshape(-1, channels)
        d_x = None
        if ctx.needs_input_grad[0]:  # cached tokens need none
            left = torch.stack([attention, torch.full_like(attention, 1.0 / tokens), d_logit], dim=2)
            right = torch.stack([d_pooled, d_mean, score.expand_as(d_mean)], dim=1)
            d_x = torch.bmm(left, right)  # [BT, L, C], the only tensor of full size made here
            d_flat = d_x.view(-1, channels)
            d_flat.index_add_(0, now, torch.addcmul(d_selected, d_mixed, weight[:, 1]).view(-1, channels))
            d_flat.index_add_(0, before, later * weight[:, 0])
            d_flat.index_add_(0, after, earlier * weight[:, 2])
        d_weight = torch.stack(
            [
                (flat.index_select(0, before) * later).sum(0),
                (selected * d_mixed).sum((0, 1)),
                (flat.index_select(0, after) * earlier).sum(0),
            ],
            dim=1,
        )
        return d_x, d_score, d_weight, d_mixed.sum((0, 1)), None, None


def _neighbours(index: Tensor, tokens: int, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flat row numbers of selected tokens and of the same places one segment before and after.

    `index` `[BT, k]` within `tokens` a segment -> `[BT * k]`, `[B * (T-1) * k]` (segments 2..T look back) and
    `[B * (T-1) * k]` (segments 1..T-1 look ahead).
    """
    start = torch.arange(index.shape[0], device=index.device).unsqueeze(1) * tokens
    now = clip_view(index + start, segments)  # [B, T, k]
    return now.flatten(), (now[:, 1:] - tokens).flatten(), (now[:, :-1] + tokens).flatten()
