"""Both ends of the experts' bottlenecks: the wide tensors around their norms are neither kept nor, mostly, made.

An expert's tokens are wide (`C`), its bottleneck is narrow (`d`). A norm of wide tokens next to a linear map is a
number a token and a centred map, so what is kept for the backward pass is narrow. Rows `R` = clips x segments, `N`
tokens, `E` experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PIECE = {"cpu": 2**18, "other": 2**26}
"""Elements of one wide piece: the second-level cache of a CPU core; on other devices rather few large kernels."""


def _pieces(x: Tensor, width: int) -> Iterator[slice]:
    """Slices of the first axis of `[R, N, ...]` whose `[r, N, width]` tensors are about one piece each."""
    size = PIECE["cpu" if x.device.type == "cpu" else "other"]
    step = max(1, size // (x.shape[1] * width))
    return (slice(i, i + step) for i in range(0, x.shape[0], step))


class _StandardisedProduct(torch.autograd.Function):
    """`y = z W^T` with `z = (x - mean) rstd`; remembers `x`, the two numbers a token, and the narrow `y`.

    Let `g` be the gradient of `y` and `V` the rows of `W` less their means (which changes nothing, as `z` has none).
    Then `z`'s gradient `V^T g` has no mean, its product with `z` is `g y`, and the norm's backward becomes
    `d_x = rstd V^T g - rstd^2 (g y / C) (x - mean)`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, eps: float) -> Tensor:
        out = x.new_empty(*x.shape[:2], matrix.shape[0])
        moments: list[tuple[Tensor, Tensor]] = []
        for piece in _pieces(x, x.shape[2]):
            normed, *numbers = torch.native_layer_norm(x[piece], (x.shape[2],), None, None, eps)
            torch.matmul(normed, matrix.t(), out=out[piece])
            moments.append((numbers[0], numbers[1]))
        mean, rstd = (torch.cat(part) for part in zip(*moments, strict=True))
        ctx.save_for_backward(x, matrix, out, mean, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, matrix, out, mean, rstd = ctx.saved_tensors
        narrow = (grad * rstd).to(x.dtype)
        d_x = None
        if ctx.needs_input_grad[0]:  # cached tokens need none
            pull = ((grad * out).sum(dim=-1, keepdim=True) * rstd.square() / x.shape[2]).to(x.dtype)
            left = torch.cat([narrow, (pull * mean).to(x.dtype)], dim=-1)
            right = torch.cat([matrix - matrix.mean(dim=1, keepdim=True), matrix.new_ones(1, x.shape[2])])
            d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            for piece in _pieces(x, x.shape[2]):
                torch.matmul(left[piece], right, out=d_x[piece])
                d_x[piece].addcmul_(x[piece], pull[piece], value=-1)
        flat = narrow.flatten(0, 1).t()
        d_matrix = flat @ x.flatten(0, 1) - flat @ mean.to(x.dtype).flatten(0, 1)
        return d_x, d_matrix, None


def normed_product(x: Tensor, norm: nn.LayerNorm, matrix: Tensor) -> Tensor:
    """`norm(x) @ matrix.T`: `[R, N, C]`, `[d, C]` -> `[R, N, d]`."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        scaled = (matrix * norm.weight).to(dtype)
        product = _StandardisedProduct.apply(x.to(dtype), scaled, norm.eps)  # type: ignore[no-untyped-call]
        return product + (matrix @ norm.bias).to(dtype)  # type: ignore[no-any-return]


class WideEnd(NamedTuple):
    """The last steps of one expert: `norm(hidden @ matrix.T + bias)`; `hidden` `[R, N, d]`, `matrix` `[C, d]`."""

    hidden: Tensor
    matrix: Tensor
    bias: Tensor
    norm: nn.LayerNorm | None


class _RowVariance(torch.autograd.Function):
    """Mean of squares of `y = V h + b` over `C` for every token: `h` `[R, N, d]`, `[C, d]`, `[C]` -> `[R, N, 1]`.

    A quadratic form of the narrow `h`. It subtracts large numbers where `y` is small, hence the double precision in
    passing; the gradients have no such square in them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, matrix, bias)
        h, v, b = hidden.double(), matrix.double(), bias.double()
        form = torch.matmul(h, v.t() @ v).add_(2 * (b @ v)).mul_(h).sum(dim=-1, keepdim=True)
        return ((form + b.square().sum()) / matrix.shape[0]).clamp_min_(0).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden, matrix, bias = ctx.saved_tensors
        pull = 2 / matrix.shape[0] * grad  # d y = pull * y
        pulled = pull * hidden
        d_hidden = pull * (torch.matmul(hidden, matrix.t() @ matrix) + bias @ matrix)
        moment, total = pulled.flatten(0, 1).t() @ hidden.flatten(0, 1), pulled.sum(dim=(0, 1))
        d_matrix = (matrix @ moment).addr_(bias, total)
        return d_hidden, d_matrix, matrix @ total + bias * pull.sum()


def _narrow_norm(end: WideEnd, norm: nn.LayerNorm, share: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Factors of `share * norm(y)`, `y = hidden @ matrix.T + bias`.

    Centred over `C`, `y` is `V h + b` with centred `V`, `b`.
    """
    matrix, bias = end.matrix - end.matrix.mean(dim=0), end.bias - end.bias.mean()
    variance = _RowVariance.apply(end.hidden, matrix, bias)  # type: ignore[no-untyped-call]
    factor = share * torch.rsqrt(variance + norm.eps)  # [R, N, 1]
    left = [factor * end.hidden, factor, share.expand_as(factor)]
    return left, [(matrix * norm.weight.unsqueeze(1)).t(), (bias * norm.weight)[None], norm.bias[None]]


def weighted_ends(shares: Tensor, ends: Sequence[WideEnd]) -> Tensor:
    """`sum_e shares[:, e] * end_e`: shares `[R, E]` -> `[R, N, C]`, by one product for all experts."""
    left: list[Tensor] = []
    right: list[Tensor] = []
    with torch.autocast(shares.device.type, enabled=False):  # variances in half precision are no use
        exact = ends[0].matrix.dtype
        for share, end in zip(shares.to(exact)[..., None, None].unbind(1), ends, strict=True):
            end = end._replace(hidden=end.hidden.to(exact))
            if end.norm is None:
                more = [share * end.hidden, share.expand(*end.hidden.shape[:2], 1)]
                more_right = [end.matrix.t(), end.bias[None]]
            else:
                more, more_right = _narrow_norm(end, end.norm, share)
            left += more
            right += more_right
        factors, maps = torch.cat(left, dim=-1), torch.cat(right)
    return torch.matmul(factors, maps)
