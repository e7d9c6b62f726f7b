"""A grouped map of layer-normalised tokens, keeping no normalised copy of the tokens for the backward pass.

The tokens are wide (`C`), the map leads to a narrow bottleneck (`d`). What a LayerNorm does to a product is a few
numbers a token, so beside the tokens themselves only narrow tensors are kept. `plain_normed_product` is the formula it
equals; the measured gain, in memory, is in docs/PLACEMENTS.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from caeav.model.adapters.kernels.precision import own_precision, working_dtype
from caeav.model.adapters.kernels.products import column_parts, grouped_product

WORTH_NUMBERS = 2**19
"""Of fewer numbers a copy costs little to keep, and the plain formula takes less time."""

PIECE = {"cpu": 2**18, "other": 2**26}
"""Numbers of one piece of wide tokens: the second-level cache of a CPU core; on other devices few large kernels."""


def normed_product(x: Tensor, norm: nn.LayerNorm, blocks: Tensor) -> Tensor:
    """The grouped map of `norm(x)`: `[R, N, C]`, `[G, d / G, C / G]` -> `[R, N, d]`."""
    if x.numel() < WORTH_NUMBERS:
        return plain_normed_product(x, norm, blocks)
    dtype = working_dtype(x)
    groups = blocks.shape[0]
    with torch.autocast(x.device.type, enabled=False):
        scaled = (blocks * norm.weight.view(groups, 1, -1)).to(dtype)
        flat = x.to(dtype).flatten(0, 1)
        product = _StandardisedProduct.apply(flat, scaled, norm.eps)  # type: ignore[no-untyped-call]
        bias = torch.bmm(blocks, norm.bias.view(groups, -1, 1)).flatten()
        return (product + bias.to(dtype)).view(*x.shape[:2], -1)  # type: ignore[no-any-return]


def plain_normed_product(x: Tensor, norm: nn.LayerNorm, blocks: Tensor) -> Tensor:
    """The formula that `normed_product` equals."""
    return grouped_product(norm(x), blocks.transpose(1, 2))


def _pieces(x: Tensor) -> Iterator[slice]:
    """Slices of the first axis of `[R * N, C]` tokens that are about one piece each."""
    step = max(1, PIECE["cpu" if x.device.type == "cpu" else "other"] // x.shape[1])
    return (slice(i, i + step) for i in range(0, x.shape[0], step))


class _StandardisedProduct(torch.autograd.Function):
    """`y_g = z_g W_g^T` with `z = (x - mean) rstd`; keeps `x`, the two numbers a token, and the narrow `y`.

    `x` `[n, C]`, `W` `[G, d / G, C / G]` -> `[n, d]`. Let `g` be the gradient of `y`, `w` the means of `W`'s rows
    over `C`. The gradient of `z` is `W^T g`, its mean `w g`, its product with `z` is `g y`, and the norm's backward
    becomes `d_x = rstd (W^T g - w g) - rstd^2 (g y / C) (x - mean)`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor, eps: float) -> Tensor:
        groups, narrow, _ = blocks.shape
        out = x.new_empty(x.shape[0], groups * narrow)
        exact = torch.promote_types(x.dtype, torch.float32)
        mean, rstd = (x.new_empty(x.shape[0], 1, dtype=exact) for _ in range(2))
        for piece in _pieces(x):
            normed, mean[piece], rstd[piece] = torch.native_layer_norm(
                x[piece], (x.shape[1],), None, None, eps
            )
            parts = zip(blocks, column_parts(normed, groups), column_parts(out[piece], groups), strict=True)
            for block, source, target in parts:
                torch.mm(source, block.t(), out=target)
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
            # The level is one more narrow channel, mapped by ones.
            left = [narrow.view(x.shape[0], groups, -1), level.unsqueeze(1).expand(-1, groups, -1)]
            levelled = torch.cat(left, dim=2).flatten(1)
            maps = torch.cat([blocks, blocks.new_ones(groups, 1, blocks.shape[2])], dim=1)
            d_x = torch.empty_like(x)
            for piece in _pieces(x):
                torch.mul(x[piece], pull[piece], out=d_x[piece])
                parts = zip(
                    column_parts(d_x[piece], groups), column_parts(levelled[piece], groups), maps, strict=True
                )
                for target, source, block in parts:
                    target.addmm_(source, block)
        d_blocks = torch.empty_like(blocks)
        parts = zip(d_blocks, column_parts(narrow, groups), column_parts(x, groups), strict=True)
        for target, d_out, source in parts:
            torch.mm(d_out.t(), source, out=target)
        d_blocks -= (mean.to(x.dtype).t() @ narrow).view(groups, -1, 1)
        return d_x, d_blocks, None
