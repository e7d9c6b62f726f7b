"""A product for each group of channels, written where it belongs, forward and backward.

Written with single operations (`plain_grouped_product`) every group's part is made by itself and copied together. The
measured gain, in memory, is in docs/PLACEMENTS.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from caeav.model.adapters.kernels.precision import own_precision, working_dtype


def grouped_product(x: Tensor, blocks: Tensor) -> Tensor:
    """A matrix for each group of channels: `[..., G * k]`, `[G, k, m]` -> `[..., G * m]`."""
    dtype = working_dtype(x)
    flat = x.reshape(-1, x.shape[-1]).to(dtype)
    product = _GroupedProduct.apply(flat, blocks.to(dtype).contiguous())  # type: ignore[no-untyped-call]
    return product.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def plain_grouped_product(x: Tensor, blocks: Tensor) -> Tensor:
    """The formula that `grouped_product` equals."""
    parts = x.chunk(blocks.shape[0], dim=-1)
    return torch.cat([part @ block for part, block in zip(parts, blocks, strict=True)], dim=-1)


class _GroupedProduct(torch.autograd.Function):
    """`[n, G * k]`, `[G, k, m]` -> `[n, G * m]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor) -> Tensor:
        ctx.save_for_backward(x, blocks)
        groups, _, width = blocks.shape
        out = x.new_empty(x.shape[0], groups * width)
        for target, part, block in zip(
            column_parts(out, groups), column_parts(x, groups), blocks, strict=True
        ):
            torch.mm(part, block, out=target)
        return out

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, blocks = ctx.saved_tensors
        groups = blocks.shape[0]
        grad = grad.contiguous()  # that of a sum is one number, which products would copy for each group
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_blocks = torch.empty_like(blocks) if ctx.needs_input_grad[1] else None
        parts = zip(column_parts(x, groups), column_parts(grad, groups), strict=True)
        for g, (part, d_out) in enumerate(parts):
            if d_x is not None:
                torch.mm(d_out, blocks[g].t(), out=column_parts(d_x, groups)[g])
            if d_blocks is not None:
                torch.mm(part.t(), d_out, out=d_blocks[g])
        return d_x, d_blocks


def column_parts(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """The `G` parts of a matrix's columns, as views."""
    return x.chunk(groups, dim=1)
