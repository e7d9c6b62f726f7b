"""How latents read the other modality through its maps, and how tokens attend latents, with backward passes by hand.

Written with single operations (`plain_read_through_maps`, `plain_attend_latents`) the gradient of each map is made
once for each of its uses, and those are large matrices; here it is one product over all uses. The measured gain is in
docs/PLACEMENTS.md. Rows `R` = clips x segments, `K` latents.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.kernels.precision import own_precision, working_dtype


def read_through_maps(
    other: Tensor, queries: Tensor, tokens: nn.Linear, channels: nn.Linear
) -> tuple[Tensor, Tensor]:
    """`softmax(q c^T) c` and the mean of the context `c = (W_n o + b_n 1^T) W_c^T + 1 b_c^T`, which is never made.

    `other` is `o` `[R, M, D]`, `queries` `q` `[K, C]`, `tokens` `W_n` (`M -> N`), `channels` `W_c` (`D -> C`); returns
    `[R, K, C]` and `[R, C]`. The maps are applied to the few queries, `a = q W_c` `[K, D]`, and to the few attention
    weights `S` `[K, N]`:

        q c^T = (a o^T) W_n^T + (a 1) b_n^T + const     (what is equal for all tokens does not change the softmax)
        S c   = ((S W_n) o + (S b_n) 1^T) W_c^T + 1 b_c^T                               (rows of S sum to 1)

    The token map, the largest matrix of the layer, then meets `2K` vectors a row instead of `min(C, D)`, and the
    channel map `K` instead of `min(N, M)`. The mean is one more row of `S`.
    """
    dtype = working_dtype(other)
    sources = other, queries, tokens.weight, tokens.bias, channels.weight, channels.bias
    with torch.autocast(other.device.type, enabled=False):
        return _ReadThroughMaps.apply(*(x.to(dtype) for x in sources))  # type: ignore[no-any-return, no-untyped-call]


def plain_read_through_maps(
    other: Tensor, queries: Tensor, tokens: nn.Linear, channels: nn.Linear
) -> tuple[Tensor, Tensor]:
    """The formula that `read_through_maps` equals."""
    rows, count = other.shape[0], queries.shape[0]
    a = queries @ channels.weight  # [K, D]
    logits = F.linear(a @ other.transpose(1, 2), tokens.weight) + a.sum(dim=1, keepdim=True) * tokens.bias
    weights = torch.softmax(logits, dim=-1).flatten(0, 1)  # [R * K, N]
    mean = weights.new_full((1, tokens.out_features), 1 / tokens.out_features)
    weights = torch.cat([weights, mean])
    read, shift = weights @ tokens.weight, weights @ tokens.bias  # [R * K + 1, M], [R * K + 1]
    pooled = torch.baddbmm(shift[:-1].view(rows, count, 1), read[:-1].view(rows, count, -1), other)
    return channels(pooled), channels(read[-1] @ other + shift[-1])


def attend_latents(x: Tensor, latents: Tensor, gate: Tensor, scale: float) -> Tensor:
    """`x + gate * softmax(scale x L^T) L`: `x` `[R, N, C]`, latents `L` `[R, K, C]` -> `[R, N, C]`."""
    dtype = working_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        sources = x.to(dtype), latents.to(dtype), gate.to(dtype)
        return _AttendLatents.apply(*sources, scale)  # type: ignore[no-any-return, no-untyped-call]


def plain_attend_latents(x: Tensor, latents: Tensor, gate: Tensor, scale: float) -> Tensor:
    """The formula that `attend_latents` equals."""
    weights = torch.softmax(torch.bmm(x, (scale * latents).transpose(1, 2)), dim=-1)
    return torch.baddbmm(x, weights, gate * latents)


def _softmax_backward(grad: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype)  # type: ignore[no-any-return]


class _ReadThroughMaps(torch.autograd.Function):
    """`o` `[R, M, D]`, `q` `[K, C]`, `W_n`, `b_n`, `W_c`, `b_c` -> `S c` `[R, K, C]` and the mean of `c` `[R, C]`.

    All rows' latents are taken together as `P = R K` for the token map; one more row of `S` is the mean.
    """

    @staticmethod
    def forward(
        ctx: Any,
        other: Tensor,
        queries: Tensor,
        tokens: Tensor,
        shifts: Tensor,
        channels: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows, count = other.shape[0], queries.shape[0]
        a = queries @ channels  # [K, D]
        products = torch.matmul(a, other.transpose(1, 2)).flatten(0, 1)  # [P, M]
        slope = a.sum(dim=1).repeat(rows)
        attention = torch.softmax((products @ tokens.t()).addr_(slope, shifts), dim=-1)  # [P, N]
        weights = torch.cat([attention, attention.new_full((1, shifts.shape[0]), 1 / shifts.shape[0])])
        del attention
        read, shift = weights @ tokens, weights @ shifts  # [P + 1, M], [P + 1]
        low = other.new_empty(rows * (count + 1), other.shape[2])  # latents of all rows, then the means
        torch.baddbmm(
            shift[:-1].view(rows, count, 1),
            read[:-1].view(rows, count, -1),
            other,
            out=low[:-rows].view(rows, count, -1),
        )
        torch.add(torch.matmul(read[-1], other), shift[-1], out=low[-rows:])
        out = torch.addmm(bias, low, channels.t())
        ctx.save_for_backward(other, queries, tokens, shifts, channels, a, products, weights, read, low)
        return out[:-rows].view(rows, count, -1), out[-rows:]

    @staticmethod
    @own_precision
    def backward(ctx: Any, d_out: Tensor, d_mean: Tensor) -> tuple[Tensor | None, ...]:
        other, queries, tokens, shifts, channels, a, products, weights, read, low = ctx.saved_tensors
        rows, count = other.shape[0], queries.shape[0]
        # The channel map met what was read, the means and, transposed, the queries: one gradient for all.
        left = torch.cat([d_out.flatten(0, 1), d_mean, queries])
        right = torch.cat([low, torch.empty_like(a)])
        d_a, d_low = right[-count:], left[:-count] @ channels
        d_bias = left[:-count].sum(dim=0)

        each, mean = d_low[:-rows].view(rows, count, -1), d_low[-rows:]  # [R, K, D], [R, D]
        d_read = torch.empty_like(read)
        torch.bmm(each, other.transpose(1, 2), out=d_read[:-1].view(rows, count, -1))
        d_read[-1] = torch.bmm(other, mean.unsqueeze(2)).sum(dim=(0, 2))
        d_shift = torch.cat([each.sum(dim=2).flatten(), mean.sum().view(1)])

        d_logits = (d_read[:-1] @ tokens.t()).addr_(d_shift[:-1], shifts)
        d_logits = _softmax_backward(d_logits, weights[:-1])  # [P, N]
        slope = a.sum(dim=1).repeat(rows)
        d_tokens = torch.cat([d_logits, weights]).t() @ torch.cat([products, d_read])
        d_shifts = d_logits.t() @ slope + weights.t() @ d_shift
        d_products = (d_logits @ tokens).view(rows, count, -1)  # [R, K, M]

        flat = d_products.transpose(0, 1).reshape(count, -1)  # [K, R * M]
        torch.mm(flat, other.flatten(0, 1), out=d_a)
        d_a += (d_logits @ shifts).view(rows, count).sum(dim=0).unsqueeze(1)
        d_other = None
        if ctx.needs_input_grad[0]:  # cached tokens need none
            d_other = torch.matmul(d_products.transpose(1, 2), a)
            d_other.baddbmm_(read[:-1].view(rows, count, -1).transpose(1, 2), each)
            d_other.addcmul_(read[-1].view(1, -1, 1), mean.unsqueeze(1))
        return d_other, d_a @ channels.t(), d_tokens, d_shifts, left.t() @ right, d_bias


class _AttendLatents(torch.autograd.Function):
    """`x` `[R, N, C]`, latents `[R, K, C]`, gate `[1]` -> `[R, N, C]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, latents: Tensor, gate: Tensor, scale: float) -> Tensor:
        weights = torch.softmax(torch.bmm(x, latents.transpose(1, 2)).mul_(scale), dim=-1)  # [R, N, K]
        ctx.save_for_backward(x, latents, gate, weights)
        ctx.scale = scale
        return torch.baddbmm(x, weights, gate * latents)

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, latents, gate, weights = ctx.saved_tensors
        d_weights = torch.bmm(grad, latents.transpose(1, 2))
        d_gate = torch.sum(d_weights * weights).view(1)
        d_logits = _softmax_backward(d_weights.mul_(gate), weights).mul_(ctx.scale)
        d_latents = torch.bmm(weights.transpose(1, 2), grad).mul_(gate)
        d_latents.baddbmm_(d_logits.transpose(1, 2), x)
        d_x = torch.baddbmm(grad, d_logits, latents) if ctx.needs_input_grad[0] else None
        return d_x, d_latents, d_gate, None
