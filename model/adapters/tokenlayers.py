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

from caeav.model.attention import require_divisible


class GroupedLinear(nn.Module):
    """A grouped 1x1 convolution without bias: weight `[out, in / groups]`, uniform `+-1/sqrt(in / groups)`.

    Multiplies by the block-diagonal matrix: for the few groups in use one dense product is faster than slices.
    """

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        require_divisible(channels, groups, "groups")
        require_divisible(out_channels, groups, "groups")
        self.groups = groups
        bound = 1.0 / math.sqrt(channels // groups)
        self.weight = nn.Parameter(torch.empty(out_channels, channels // groups).uniform_(-bound, bound))

    def matrix(self) -> Tensor:
        """The dense `[out, in]` matrix."""
        if self.groups == 1:
            return self.weight
        return torch.block_diag(*self.weight.chunk(self.groups))  # type: ignore[no-any-return, no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        return F.linear(x, self.matrix())


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
        return F.batch_norm(
            x.reshape(-1, x.shape[-1]),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        ).view_as(x)

    def fold(self, matrix: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias of one linear map equal to normalising `source @ matrix.T`.

        `matrix` `[C, d]`, `source` `[..., d]`. In training the statistics of the (wide) product come from mean and
        covariance of the (narrow) source, so the product is written once and not read again.
        """
        if self.training:
            mean, variance = self._product_moments(matrix, source)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return matrix * scale.unsqueeze(1), self.bias - mean * scale

    def _product_moments(self, matrix: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(source.device.type, enabled=False):  # a covariance in half precision is no use
            flat = source.reshape(-1, source.shape[-1]).to(matrix.dtype)
            centre = flat.mean(dim=0)
            centred = flat - centre
            covariance = (centred.transpose(0, 1) @ centred) / flat.shape[0]
            mean = matrix @ centre
            variance = ((matrix @ covariance) * matrix).sum(dim=1)
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
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    return _MixTokens.apply(weight.to(dtype), x.to(dtype), bias.to(dtype))  # type: ignore[no-any-return, no-untyped-call]
