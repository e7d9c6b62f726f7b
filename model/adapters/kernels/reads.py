"""Everything CASTE reads from its own tokens, in one differentiable step with a hand-written backward.

CASTE needs of `[BT, L, C]` tokens: their mean, their softmax-pooled vector, the selected tokens, and those tokens
convolved over time. Written with single operations, each of the four would hand back a full-size gradient; here
the backward makes one full-size tensor. Not a general layer: only `caste.py` uses it.

What latents read of the other modality, without bringing it to this one's tokens; how tokens ask the latents.

The cross experts look at the other modality `o` `[R, M, D]` only through `K` latents `l` `[K, C]`, and the router
through a mean. Written out, each needs the context `c = (W_n o + b_n 1^T) W_c^T + 1 b_c^T`, `[R, N, C]`; but with
the logits `l c^T` and the means `S c` the maps go to the side of the latents, `a = l W_c` `[K, D]`:

    l c^T = (a o^T) W_n^T + (a 1) b_n^T + const     (what is equal for all tokens leaves the softmax alone)
    S c   = ((S W_n) o + (S b_n) 1^T) W_c^T + 1 b_c^T                            (rows of S sum to 1)

The token map `[N, M]`, the largest matrix of the layer, then meets `2K` vectors a row instead of `min(C, D)`, and
the channel map `K` instead of `min(N, M)`. Backward passes are written out: the gradient of every map is one product
over all its uses, in the layout that is fast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from caeav.model.adapters.kernels.precision import own_precision, working_dtype
from caeav.model.adapters.layers import clip_view


def _softmax_backward(grad: Tensor, attention: Tensor) -> Tensor:
    return torch.ops.aten._softmax_backward_data(grad, attention, -1, attention.dtype)  # type: ignore[no-any-return]


class _ReadThroughMaps(torch.autograd.Function):
    """`S c` and the mean of `c`: `o` `[R, M, D]`, `l` `[K, C]`, `W_n`, `b_n`, `W_c`, `b_c` -> `[R, K, C]`, `[R, C]`.

    All rows' latents are taken together as `P = R K` for the token map; one more row of `S` is the mean.
    """

    @staticmethod
    def forward(
        ctx: Any,
        other: Tensor,
        latents: Tensor,
        tokens: Tensor,
        shifts: Tensor,
        channels: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows, count = other.shape[0], latents.shape[0]
        asking = latents @ channels  # a: [K, D]
        asked = torch.matmul(asking, other.transpose(1, 2)).flatten(0, 1)  # [P, M]
        slope = asking.sum(dim=1).repeat(rows)
        attention = torch.softmax((asked @ tokens.t()).addr_(slope, shifts), dim=-1)  # [P, N]
        shares = torch.cat([attention, attention.new_full((1, shifts.shape[0]), 1 / shifts.shape[0])])
        del attention
        read, shift = shares @ tokens, shares @ shifts  # [P + 1, M], [P + 1]
        low = other.new_empty(rows * (count + 1), other.shape[2])  # latents of all rows, then the means
        torch.baddbmm(
            shift[:-1].view(rows, count, 1),
            read[:-1].view(rows, count, -1),
            other,
            out=low[:-rows].view(rows, count, -1),
        )
        torch.add(torch.matmul(read[-1], other), shift[-1], out=low[-rows:])
        seen = torch.addmm(bias, low, channels.t())
        ctx.save_for_backward(other, latents, tokens, shifts, channels, asking, asked, shares, read, low)
        return seen[:-rows].view(rows, count, -1), seen[-rows:]

    @staticmethod
    @own_precision
    def backward(ctx: Any, d_seen: Tensor, d_mean: Tensor) -> tuple[Tensor | None, ...]:
        other, latents, tokens, shifts, channels, asking, asked, shares, read, low = ctx.saved_tensors
        rows, count = other.shape[0], latents.shape[0]
        # The channel map met what was read, the means and, transposed, the latents: one gradient for all.
        left = torch.cat([d_seen.flatten(0, 1), d_mean, latents])
        right = torch.cat([low, torch.empty_like(asking)])
        d_asking, d_low = right[-count:], left[:-count] @ channels
        d_bias = left[:-count].sum(dim=0)

        each, mean = d_low[:-rows].view(rows, count, -1), d_low[-rows:]  # [R, K, D], [R, D]
        d_read = torch.empty_like(read)
        torch.bmm(each, other.transpose(1, 2), out=d_read[:-1].view(rows, count, -1))
        d_read[-1] = torch.bmm(other, mean.unsqueeze(2)).sum(dim=(0, 2))
        d_shift = torch.cat([each.sum(dim=2).flatten(), mean.sum().view(1)])

        d_logits = (d_read[:-1] @ tokens.t()).addr_(d_shift[:-1], shifts)
        d_logits = _softmax_backward(d_logits, shares[:-1])  # [P, N]
        slope = asking.sum(dim=1).repeat(rows)
        d_tokens = torch.cat([d_logits, shares]).t() @ torch.cat([asked, d_read])
        d_shifts = d_logits.t() @ slope + shares.t() @ d_shift
        d_asked = (d_logits @ tokens).view(rows, count, -1)  # [R, K, M]

        flat = d_asked.transpose(0, 1).reshape(count, -1)  # [K, R * M]
        torch.mm(flat, other.flatten(0, 1), out=d_asking)
        d_asking += (d_logits @ shifts).view(rows, count).sum(dim=0).unsqueeze(1)
        d_other = None
        if ctx.needs_input_grad[0]:  # cached tokens need none
            d_other = torch.matmul(d_asked.transpose(1, 2), asking)
            d_other.baddbmm_(read[:-1].view(rows, count, -1).transpose(1, 2), each)
            d_other.addcmul_(read[-1].view(1, -1, 1), mean.unsqueeze(1))
        return d_other, d_asking @ channels.t(), d_tokens, d_shifts, left.t() @ right, d_bias


def read_through_maps(
    other: Tensor, asking: Tensor, tokens: nn.Linear, channels: nn.Linear
) -> tuple[Tensor, Tensor]:
    """`softmax(asking c^T) c` and the mean of `c` over its tokens, for the context `c` of `other` `[R, M, D]`.

    `asking` `[K, C]`, `tokens` `M -> N`, `channels` `D -> C` -> `[R, K, C]`, `[R, C]`.
    """
    dtype = working_dtype(other)
    given = other, asking, tokens.weight, tokens.bias, channels.weight, channels.bias
    with torch.autocast(other.device.type, enabled=False):
        return _ReadThroughMaps.apply(*(part.to(dtype) for part in given))  # type: ignore[no-any-return, no-untyped-call]


class _AskLatents(torch.autograd.Function):
    """`x + gate * A r`, `A = softmax(scale x r^T)`: `[R, N, C]`, `[R, K, C]`, `[1]` -> `[R, N, C]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, read: Tensor, gate: Tensor, scale: float) -> Tensor:
        weights = torch.softmax(torch.bmm(x, read.transpose(1, 2)).mul_(scale), dim=-1)  # [R, N, K]
        ctx.save_for_backward(x, read, gate, weights)
        ctx.scale = scale
        if x.shape[1] < x.shape[2]:  # the gate goes to the smaller of both factors
            return torch.baddbmm(x, gate * weights, read)
        return torch.baddbmm(x, weights, gate * read)

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, read, gate, weights = ctx.saved_tensors
        d_weights = torch.bmm(grad, read.transpose(1, 2))
        d_gate = torch.sum(d_weights * weights).view(1)
        d_logits = _softmax_backward(d_weights.mul_(gate), weights).mul_(ctx.scale)
        d_read = torch.bmm(weights.transpose(1, 2), grad).mul_(gate)
        d_read.baddbmm_(d_logits.transpose(1, 2), x)
        d_x = torch.baddbmm(grad, d_logits, read) if ctx.needs_input_grad[0] else None
        return d_x, d_read, d_gate, None


def ask_latents(x: Tensor, read: Tensor, gate: Tensor, *, scale: float = 1.0) -> Tensor:
    """`x + gate * softmax(scale x R^T) R`, `R` `[BT, K, C]` being what the latents have read; `x` `[BT, N, C]`."""
    dtype = working_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return _AskLatents.apply(x.to(dtype), read.to(dtype), gate.to(dtype), scale)  # type: ignore[no-any-return, no-untyped-call]


class TokenReads(NamedTuple):
    """`mean`, `pooled`: `[BT, C]`. `rows`, `mixed`: `[BT, k, C]`, the selected tokens, plain and mixed over time."""

    mean: Tensor
    pooled: Tensor
    rows: Tensor
    mixed: Tensor


def neighbour_rows(index: Tensor, tokens: int, segments: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flat row numbers of selected tokens and of the same places one segment before and after.

    `index` `[BT, k]` within `tokens` a segment -> `[BT * k]`, `[B * (T-1) * k]` (segments 2..T look back) and
    `[B * (T-1) * k]` (segments 1..T-1 look ahead).
    """
    start = torch.arange(index.shape[0], device=index.device).unsqueeze(1) * tokens
    now = clip_view(index + start, segments)  # [B, T, k]
    return now.flatten(), (now[:, 1:] - tokens).flatten(), (now[:, :-1] + tokens).flatten()


class _ReadTokens(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, score: Tensor, weight: Tensor, bias: Tensor, index: Tensor, segments: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, tokens, channels = x.shape
        flat = x.reshape(-1, channels)
        attention = torch.softmax(x @ score, dim=1)  # [BT, L]
        pooling = torch.stack([attention, torch.full_like(attention, 1.0 / tokens)], dim=1)
        pooled, mean = torch.bmm(pooling, x).unbind(1)
        now, before, after = neighbour_rows(index, tokens, segments)
        chosen = flat.index_select(0, now).view(rows, -1, channels)
        mixed = torch.addcmul(bias, chosen, weight[:, 1])
        clips = clip_view(mixed, segments)  # [B, T, k, C]
        clips[:, 1:].addcmul_(flat.index_select(0, before).view_as(clips[:, 1:]), weight[:, 0])
        clips[:, :-1].addcmul_(flat.index_select(0, after).view_as(clips[:, :-1]), weight[:, 2])
        ctx.save_for_backward(x, score, weight, attention, pooled, chosen, index)
        ctx.segments = segments
        return mean, pooled, chosen, mixed

    @staticmethod
    @own_precision
    def backward(
        ctx: Any, d_mean: Tensor, d_pooled: Tensor, d_rows: Tensor, d_mixed: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None, None]:
        x, score, weight, attention, pooled, chosen, index = ctx.saved_tensors
        segments = ctx.segments
        tokens, channels = x.shape[1:]
        flat = x.reshape(-1, channels)

        # Pooling: d_attention_l = <x_l, d_pooled>; the softmax turns it into d_logit.
        d_attention = torch.bmm(x, d_pooled.unsqueeze(2))[..., 0] - (pooled * d_pooled).sum(-1, keepdim=True)
        d_logit = attention * d_attention  # [BT, L]
        d_score = d_logit.flatten() @ flat
        now, before, after = neighbour_rows(index, tokens, segments)
        d_clips = clip_view(d_mixed, segments)
        later, earlier = d_clips[:, 1:].reshape(-1, channels), d_clips[:, :-1].reshape(-1, channels)
        d_x = None
        if ctx.needs_input_grad[0]:  # cached tokens need none
            left = torch.stack([attention, torch.full_like(attention, 1.0 / tokens), d_logit], dim=2)
            right = torch.stack([d_pooled, d_mean, score.expand_as(d_mean)], dim=1)
            d_x = torch.bmm(left, right)  # [BT, L, C], the only full-size tensor made here
            d_flat = d_x.view(-1, channels)
            d_flat.index_add_(0, now, torch.addcmul(d_rows, d_mixed, weight[:, 1]).view(-1, channels))
            d_flat.index_add_(0, before, later * weight[:, 0])
            d_flat.index_add_(0, after, earlier * weight[:, 2])
        d_weight = torch.stack(
            [
                (flat.index_select(0, before) * later).sum(0),
                (chosen * d_mixed).sum((0, 1)),
                (flat.index_select(0, after) * earlier).sum(0),
            ],
            dim=1,
        )
        return d_x, d_score, d_weight, d_mixed.sum((0, 1)), None, None


def read_tokens(
    x: Tensor, score: Tensor, weight: Tensor, bias: Tensor, index: Tensor, segments: int
) -> TokenReads:
    """Mean, pooled and selected tokens of `x` `[BT, L, C]`, and the selected ones convolved over time.

    `score` `[C]`: pooling weights are its softmaxed products with the tokens. `weight` `[C, 3]`, `bias` `[C]`: the
    depthwise convolution. `index` `[BT, k]`: the selected tokens, distinct within a row. Runs in `x`'s precision
    whatever autocast says: the reductions are too long for half precision to be worth it.
    """
    with torch.autocast(x.device.type, enabled=False):
        given = (score.to(x.dtype), weight.to(x.dtype), bias.to(x.dtype))
        return TokenReads(*_ReadTokens.apply(x, *given, index, segments))  # type: ignore[no-untyped-call]


def scatter_rows(values: Tensor, index: Tensor, tokens: int) -> Tensor:
    """Tokens `[BT, L, C]` that are `values` `[BT, k, C]` at `index` `[BT, k]` and 0 elsewhere."""
    rows, _, channels = values.shape
    start = torch.arange(rows, device=index.device).unsqueeze(1) * tokens
    full = values.new_zeros(rows * tokens, channels)
    return full.index_copy(0, (index + start).flatten(), values.flatten(0, 1)).view(rows, tokens, channels)
