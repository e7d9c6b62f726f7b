"""Linear layers over tokens that expert adapters need: grouped, batch-normalised, and over the token axis.

Tokens `[BT, N, C]`. Written for tokens as they lie: nothing is permuted to `[BT, C, N, 1]`, which also avoids a
wrong BatchNorm2d gradient of torch 2.13 on the CPU for such views.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.kernels.precision import own_precision, working_dtype
from caeav.model.attention import require_divisible


def parts(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """The `G` column blocks of a matrix, as views."""
    return x.chunk(groups, dim=1)


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        groups, _, width = right.shape
        out = left.new_empty(left.shape[0], groups * width)
        for target, part, block in zip(parts(out, groups), parts(left, groups), right, strict=True):
            torch.mm(part, block, out=target)
        return out

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        groups = right.shape[0]
        grad = grad.contiguous()  # that of a sum is one number, which products would copy for each group
        d_left = torch.empty_like(left) if ctx.needs_input_grad[0] else None
        d_right = torch.empty_like(right) if ctx.needs_input_grad[1] else None
        for g, (part, pulled) in enumerate(zip(parts(left, groups), parts(grad, groups), strict=True)):
            if d_left is not None:
                torch.mm(pulled, right[g].t(), out=parts(d_left, groups)[g])
            if d_right is not None:
                torch.mm(part.t(), pulled, out=d_right[g])
        return d_left, d_right


def grouped_product(left: Tensor, right: Tensor) -> Tensor:
    """Column blocks times a matrix each: `[n, G * k]`, `[G, k, m]` -> `[n, G * m]`."""
    return _GroupedProduct.apply(left, right.contiguous())  # type: ignore[no-any-return, no-untyped-call]


class GroupedLinear(nn.Module):
    """A grouped 1x1 convolution without bias: weight `[out, in / groups]`, uniform `+-1/sqrt(in / groups)`."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        require_divisible(channels, groups, "groups")
        require_divisible(out_channels, groups, "groups")
        self.groups = groups
        bound = 1.0 / math.sqrt(channels // groups)
        self.weight = nn.Parameter(torch.empty(out_channels, channels // groups).uniform_(-bound, bound))

    def blocks(self) -> Tensor:
        """`[groups, out / groups, in / groups]`, a matrix for each group."""
        return self.weight.view(self.groups, -1, self.weight.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        dtype = working_dtype(x)
        flat, maps = x.reshape(-1, x.shape[-1]), self.blocks().transpose(1, 2)
        return grouped_product(flat.to(dtype), maps.to(dtype)).view(*x.shape[:-1], -1)


class TokenBatchNorm(nn.Module):
    """Batch normalisation of channels over all rows and tokens; eps 1e-5, momentum 0.1, as BatchNorm2d."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` -> `[..., C]`."""
        return self._normalise(x, self.training)

    def remembered(self, x: Tensor) -> Tensor:
        """`[..., C]` -> `[..., C]` by the statistics of earlier calls, which stay as they are, in training too."""
        return self._normalise(x, False)

    def _normalise(self, x: Tensor, own_statistics: bool) -> Tensor:
        return F.batch_norm(
            x.reshape(-1, x.shape[-1]),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            own_statistics,
            self.momentum,
            self.eps,
        ).view_as(x)

    def fold(self, blocks: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of one grouped map equal to normalising a grouped map of `source`.

        `blocks` `[G, C / G, d / G]`, `source` `[..., d]` -> the same, `[C]`. In training the statistics of the (wide)
        product come from mean and covariance of the (narrow) source: the product is written once and not read again.
        """
        if self.training:
            mean, variance = self._product_moments(blocks, source)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return blocks * scale.view(blocks.shape[0], -1, 1), self.bias - mean * scale

    def _product_moments(self, blocks: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        groups = blocks.shape[0]
        with torch.autocast(source.device.type, enabled=False):  # a covariance in half precision is no use
            flat = source.reshape(-1, source.shape[-1]).to(blocks.dtype)
            centre = flat.mean(dim=0)
            centred = (flat - centre).view(flat.shape[0], groups, -1)
            covariance = torch.bmm(centred.permute(1, 2, 0), centred.transpose(0, 1)) / flat.shape[0]
            mean = torch.bmm(blocks, centre.view(groups, -1, 1)).flatten()
            variance = (torch.bmm(blocks, covariance) * blocks).sum(dim=2).flatten()
        self._remember(mean, variance, flat.shape[0])
        return mean, variance

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        unbiased = variance * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


class _MixTokens(torch.autograd.Function):
    """`W @ x + b` for every row; backward without a weight gradient per row (`[BT, N, M]` would be gigabytes)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight, x)
        ctx.bias_shape = bias.shape
        return torch.baddbmm(bias, weight.expand(x.shape[0], -1, -1), x)

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight, x = ctx.saved_tensors
        d_weight = d_x = d_bias = None
        if ctx.needs_input_grad[0]:
            d_weight = torch.addbmm(weight, grad, x.transpose(1, 2), beta=0)
        if ctx.needs_input_grad[1]:
            d_x = torch.bmm(weight.t().expand(x.shape[0], -1, -1), grad)
        if ctx.needs_input_grad[2]:
            d_bias = grad.sum(0).sum_to_size(ctx.bias_shape)
        return d_weight, d_x, d_bias


def mix_tokens(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    """A linear map over the token axis: `[N, M]`, `[BT, M, C]`, bias `[N, 1]` or `[N, C]` -> `[BT, N, C]`."""
    dtype = working_dtype(x)
    return _MixTokens.apply(weight.to(dtype), x.to(dtype), bias.to(dtype))  # type: ignore[no-any-return, no-untyped-call]
