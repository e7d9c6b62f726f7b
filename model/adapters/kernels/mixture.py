"""The weighted sum of expert outputs, `sum_e w_e norm_e(W_e h_e)`, keeping no wide tensor for the backward pass.

An expert's hidden tokens are narrow (`d`), its output is wide (`C`). Norms of the wide output are a few numbers a
token, and those follow from the narrow tokens: a batch norm becomes part of the linear map, a LayerNorm's mean and
variance are a linear and a quadratic form. The whole sum is then one grouped product, and what is kept for the
backward pass is narrow. `plain_mix_experts` is the formula it equals; the measured gain is in docs/PLACEMENTS.md.

Rows `R` = clips x segments, `N` tokens, `E` experts, `G` groups; a grouped map `[G, C / G, d / G]` takes the `G`
parts of its source one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from caeav.model.adapters.kernels.precision import own_precision, working_dtype
from caeav.model.adapters.kernels.products import grouped_product
from caeav.model.adapters.layers import TokenBatchNorm
from caeav.model.adapters.whole_batch import count, mean_row, own_rows, summed


class UpProjection(NamedTuple):
    """The last steps of one expert, not yet computed: `norm(batch_norm(W h))`, either norm optional.

    `hidden` `h` `[R, N, d]`, `blocks` `W` `[G, C / G, d / G]`.
    """

    hidden: Tensor
    blocks: Tensor
    batch_norm: TokenBatchNorm | None
    norm: nn.LayerNorm | None


def mix_experts(weights: Tensor, experts: Sequence[UpProjection]) -> Tensor:
    """`sum_e weights[:, e] * output_e`: weights `[R, E]` -> `[R, N, C]`, by one grouped product for all experts."""
    left: list[Tensor] = []
    right: list[Tensor] = []
    rows, tokens, _ = experts[0].hidden.shape
    dtype = working_dtype(experts[0].hidden)
    groups = experts[0].blocks.shape[0]
    with torch.autocast(weights.device.type, enabled=False):  # variances in half precision are no use
        exact = experts[0].blocks.dtype
        for weight, expert in zip(weights.to(exact).unbind(1), experts, strict=True):
            each = weight[:, None].expand(rows, tokens).reshape(-1, 1)  # [R * N, 1]
            hidden = expert.hidden.to(exact).flatten(0, 1)
            narrow, numbers, blocks, vectors = _factors(expert._replace(hidden=hidden), each)
            every = torch.cat(numbers, dim=1).unsqueeze(1).expand(-1, groups, -1)
            left += [narrow.view(narrow.shape[0], groups, -1), every]
            right += [
                blocks.transpose(1, 2),
                torch.stack(vectors).view(len(vectors), groups, -1).transpose(0, 1),
            ]
        factors, maps = torch.cat(left, dim=2).flatten(1), torch.cat(right, dim=1)
        return grouped_product(factors.to(dtype), maps.to(dtype)).view(rows, tokens, -1)


def plain_mix_experts(weights: Tensor, experts: Sequence[UpProjection]) -> Tensor:
    """The formula that `mix_experts` equals, expert by expert."""
    total = weights.new_zeros(())
    for weight, (hidden, blocks, batch_norm, norm) in zip(weights.unbind(1), experts, strict=True):
        wide = grouped_product(hidden, blocks.transpose(1, 2))
        wide = wide if batch_norm is None else batch_norm(wide)
        total = total + weight[:, None, None] * (wide if norm is None else norm(wide))
    return total


def _factors(expert: UpProjection, weight: Tensor) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """`weight * output` as two factors: narrow ones a token and their maps, then numbers and their vectors."""
    hidden, blocks, batch_norm, norm = expert
    bias = blocks.new_zeros(blocks.shape[0] * blocks.shape[1])
    if batch_norm is not None:
        blocks, bias = _fold(batch_norm, blocks, hidden)
    if norm is None:
        return weight * hidden, [weight], blocks, [bias]
    mean, variance = _RowMoments.apply(hidden, blocks, bias)  # type: ignore[no-untyped-call]
    factor = weight * torch.rsqrt(variance + norm.eps)  # [R * N, 1]
    scaled = blocks * norm.weight.view(blocks.shape[0], -1, 1)
    return (
        factor * hidden,
        [factor, -factor * mean, weight],
        scaled,
        [bias * norm.weight, norm.weight, norm.bias],
    )


def _fold(norm: TokenBatchNorm, blocks: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of one grouped map equal to batch-normalising the grouped map of `hidden` `[n, d]`.

    In training the statistics of the wide product come from mean and covariance of the narrow `hidden`.
    """
    if norm.training:
        mean, variance = _product_moments(blocks, hidden)
        with torch.no_grad():
            rows = count(hidden)
            unbiased = variance * (rows / max(rows - 1, 1))
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
    else:
        mean, variance = norm.running_mean, norm.running_var
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return blocks * scale.view(blocks.shape[0], -1, 1), norm.bias - mean * scale


def _product_moments(blocks: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance `[C]` over all tokens, of all processes, of the grouped map of `hidden` `[n, d]`."""
    groups = blocks.shape[0]
    centre = mean_row(hidden)
    centred = (own_rows(hidden) - centre).view(-1, groups, blocks.shape[2])
    covariance = summed(torch.bmm(centred.permute(1, 2, 0), centred.transpose(0, 1))) / count(hidden)
    mean = torch.bmm(blocks, centre.view(groups, -1, 1)).flatten()
    return mean, (torch.bmm(blocks, covariance) * blocks).sum(dim=2).flatten()


class _RowMoments(torch.autograd.Function):
    """Mean and variance of `y = W h + b` over `C`: `[n, d]`, `[G, C / G, d / G]`, `[C]` -> `[n, 1]` and `[n, 1]`.

    A linear and a quadratic form of the narrow `h`. The latter subtracts large numbers where `y` varies little, hence
    the double precision in passing; the gradients have no such square in them. With `p = 2 g_v / C` and `g_m / C`
    for the two gradients, `d_y = p (y - mean) + g_m / C`.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, blocks: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        groups, channels = blocks.shape[0], bias.shape[0]
        h, w, b = hidden.double(), blocks.double(), bias.double()
        form = torch.bmm(w.transpose(1, 2), w)  # [G, d / G, d / G]
        cross = torch.bmm(b.view(groups, 1, -1), w).flatten()  # [d]
        level = w.sum(dim=1).flatten() / channels
        mean = torch.addmv(b.mean(), h, level).unsqueeze(1)
        product = grouped_product(h, form)
        square = torch.linalg.vecdot(product.add_(2 * cross), h).unsqueeze(1) + b.square().sum()
        variance = (square / channels - mean.square()).clamp_min_(0)
        mean = mean.to(hidden.dtype)
        ctx.save_for_backward(hidden, blocks, bias, mean, form.to(hidden.dtype), cross.to(hidden.dtype))
        return mean, variance.to(hidden.dtype)

    @staticmethod
    @own_precision
    def backward(ctx: Any, d_mean: Tensor, d_variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, blocks, bias, mean, form, cross = ctx.saved_tensors
        groups, channels = blocks.shape[0], bias.shape[0]
        pull = 2 / channels * d_variance
        # d_y = pull (W h + b) + level, the latter equal in all channels
        level = d_mean / channels - pull * mean
        pulled = pull * hidden
        column = blocks.sum(dim=1).flatten()  # [d]
        d_hidden = torch.cat([level, pull], dim=1) @ torch.stack([column, cross])
        d_hidden += grouped_product(pulled, form)
        by_group = zip(pulled.chunk(groups, dim=1), hidden.chunk(groups, dim=1), strict=True)
        moments = torch.stack([left.t() @ right for left, right in by_group])
        total = pulled.sum(dim=0).view(groups, 1, -1)
        d_blocks = torch.bmm(blocks, moments)
        d_blocks += bias.view(groups, -1, 1) * total
        d_blocks += (level.t() @ hidden).view(groups, 1, -1)
        d_bias = torch.bmm(blocks, total.transpose(1, 2)).flatten()
        return d_hidden, d_blocks, d_bias + bias * pull.sum() + level.sum()
