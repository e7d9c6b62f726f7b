"""Both ends of the experts' bottlenecks: the wide tensors around their norms are neither kept nor, mostly, made.

An expert's tokens are wide (`C`), its bottleneck is narrow (`d`). A norm of wide tokens next to a linear map is a
few numbers a token beside the map, so what is kept for the backward pass is narrow. Rows `R` = clips x segments, `N`
tokens, `E` experts, `G` groups; a grouped map `[G, o, i]` takes the `G` parts of its source one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from caeav.model.adapters.kernels.precision import own_precision, working_dtype
from caeav.model.adapters.layers import grouped_product, parts

PIECE = {"cpu": 2**18, "other": 2**26}
"""Elements of one wide piece: the second-level cache of a CPU core; on other devices rather few large kernels."""


def _pieces(x: Tensor) -> Iterator[slice]:
    """Slices of the first axis of `[R * N, C]` tokens that are about one piece each."""
    step = max(1, PIECE["cpu" if x.device.type == "cpu" else "other"] // x.shape[1])
    return (slice(i, i + step) for i in range(0, x.shape[0], step))


class _StandardisedProduct(torch.autograd.Function):
    """`y_g = z_g W_g^T` with `z = (x - mean) rstd`; remembers `x`, the two numbers a token, and the narrow `y`.

    `x` `[n, C]`, `W` `[G, d / G, C / G]` -> `[n, d]`. Let `g` be the gradient of `y`, `w` the means of `W`'s rows
    over `C`. The gradient of `z` is `W^T g`, its mean `w g`, its product with `z` is `g y`, and the norm's backward
    becomes `d_x = rstd (W^T g - w g) - rstd^2 (g y / C) (x - mean)`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, eps: float) -> Tensor:
        groups, narrow, _ = blocks.shape
        out = x.new_empty(x.shape[0], groups * narrow)
        mean, rstd = (
            x.new_empty(x.shape[0], 1, dtype=torch.promote_types(x.dtype, torch.float32)) for _ in "mr"
        )
        for piece in _pieces(x):
            normed, mean[piece], rstd[piece] = torch.native_layer_norm(
                x[piece], (x.shape[1],), None, None, eps
            )
            for block, source, product in zip(
                blocks, parts(normed, groups), parts(out[piece], groups), strict=True
            ):
                torch.mm(source, block.t(), out=product)
        ctx.save_for_backward(x, blocks, out, mean, rstd)
        return out

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, blocks, out, mean, rstd = ctx.saved_tensors
        groups, channels = blocks.shape[0], x.shape[1]
        narrow = (grad * rstd).to(x.dtype)
        d_x = None
        if ctx.needs_input_grad[0]:  # cached tokens need none
            pull = (grad * out).sum(dim=1, keepdim=True) * rstd.square() / channels
            level = (pull * mean - (narrow @ (blocks.sum(dim=2).view(-1, 1) / channels))).to(x.dtype)
            pull = -pull.to(x.dtype)
            left = [narrow.view(x.shape[0], groups, -1), level.unsqueeze(1).expand(-1, groups, -1)]
            levelled = torch.cat(left, dim=2).flatten(
                1
            )  # the level as one more narrow channel, mapped by ones
            maps = torch.cat([blocks, blocks.new_ones(groups, 1, blocks.shape[2])], dim=1)
            d_x = torch.empty_like(x)
            for piece in _pieces(x):
                torch.mul(x[piece], pull[piece], out=d_x[piece])
                for target, source, block in zip(
                    parts(d_x[piece], groups), parts(levelled[piece], groups), maps, strict=True
                ):
                    target.addmm_(source, block)
        d_blocks = torch.empty_like(blocks)
        for target, pulled, source in zip(d_blocks, parts(narrow, groups), parts(x, groups), strict=True):
            torch.mm(pulled.t(), source, out=target)
        d_blocks -= (mean.to(x.dtype).t() @ narrow).view(groups, -1, 1)
        return d_x, d_blocks, None


def normed_product(x: Tensor, norm: nn.LayerNorm, blocks: Tensor) -> Tensor:
    """The grouped map of `norm(x)`: `[R, N, C]`, `[G, d / G, C / G]` -> `[R, N, d]`."""
    dtype = working_dtype(x)
    groups = blocks.shape[0]
    with torch.autocast(x.device.type, enabled=False):
        scaled = (blocks * norm.weight.view(groups, 1, -1)).to(dtype)
        flat = x.to(dtype).flatten(0, 1)
        product = _StandardisedProduct.apply(flat, scaled, norm.eps)  # type: ignore[no-untyped-call]
        bias = torch.bmm(blocks, norm.bias.view(groups, -1, 1)).flatten()
        return (product + bias.to(dtype)).view(*x.shape[:2], -1)  # type: ignore[no-any-return]


class WideEnd(NamedTuple):
    """The last steps of one expert: the norm of a grouped map.

    `hidden` `[R, N, d]`, `blocks` `[G, C / G, d / G]`, `bias` `[C]`.
    """

    hidden: Tensor
    blocks: Tensor
    bias: Tensor
    norm: nn.LayerNorm | None


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
        product = torch.cat([part @ block for part, block in zip(parts(h, groups), form, strict=True)], dim=1)
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
        level = (
            d_mean / channels - pull * mean
        )  # d_y = pull (W h + b) + level, the latter equal in all channels
        pulled = pull * hidden
        column = blocks.sum(dim=1).flatten()  # [d]
        d_hidden = torch.cat([level, pull], dim=1) @ torch.stack([column, cross])
        for target, part, block in zip(parts(d_hidden, groups), parts(pulled, groups), form, strict=True):
            target.addmm_(part, block)
        moments = [
            left.t() @ right for left, right in zip(parts(pulled, groups), parts(hidden, groups), strict=True)
        ]
        total = pulled.sum(dim=0).view(groups, 1, -1)
        d_blocks = torch.bmm(blocks, torch.stack(moments))
        d_blocks += bias.view(groups, -1, 1) * total
        d_blocks += (level.t() @ hidden).view(groups, 1, -1)
        d_bias = torch.bmm(blocks, total.transpose(1, 2)).flatten()
        return d_hidden, d_blocks, d_bias + bias * pull.sum() + level.sum()


def _factors(end: WideEnd, share: Tensor) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """`share * norm(W h + b)` as two factors: narrow ones a token and their maps, then numbers and their vectors."""
    hidden, blocks, bias, norm = end
    if norm is None:
        return share * hidden, [share], blocks, [bias]
    mean, variance = _RowMoments.apply(hidden, blocks, bias)  # type: ignore[no-untyped-call]
    factor = share * torch.rsqrt(variance + norm.eps)  # [n, 1]
    scaled = blocks * norm.weight.view(blocks.shape[0], -1, 1)
    return (
        factor * hidden,
        [factor, -factor * mean, share],
        scaled,
        [bias * norm.weight, norm.weight, norm.bias],
    )


def weighted_ends(shares: Tensor, ends: Sequence[WideEnd]) -> Tensor:
    """`sum_e shares[:, e] * end_e`: shares `[R, E]` -> `[R, N, C]`, by one grouped product for all experts."""
    left: list[Tensor] = []
    right: list[Tensor] = []
    rows, tokens, _ = ends[0].hidden.shape
    dtype = working_dtype(ends[0].hidden)
    groups = ends[0].blocks.shape[0]
    with torch.autocast(shares.device.type, enabled=False):  # variances in half precision are no use
        exact = ends[0].blocks.dtype
        for share, end in zip(shares.to(exact).unbind(1), ends, strict=True):
            each = share[:, None].expand(rows, tokens).reshape(-1, 1)  # [R * N, 1]
            end = end._replace(hidden=end.hidden.to(exact).flatten(0, 1))
            narrow, numbers, blocks, vectors = _factors(end, each)
            every = torch.cat(numbers, dim=1).unsqueeze(1).expand(-1, groups, -1)
            left += [narrow.view(narrow.shape[0], groups, -1), every]
            right += [
                blocks.transpose(1, 2),
                torch.stack(vectors).view(len(vectors), groups, -1).transpose(0, 1),
            ]
        factors, maps = torch.cat(left, dim=2).flatten(1), torch.cat(right, dim=1)
        return grouped_product(factors.to(dtype), maps.to(dtype)).view(rows, tokens, -1)
