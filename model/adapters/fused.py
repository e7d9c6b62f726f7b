"""The wide ends of the experts' bottlenecks, with backward passes that recompute instead of remember.

An expert's tokens are wide (`C`), its bottleneck is narrow (`d`). Written with single operations, the wide tensors
around the norms are kept for the backward pass; here only the narrow ones are, and both passes go through the rows
in pieces that stay in the cache. Rows `R` = clips x segments, `N` tokens, `E` experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PIECE = {"cpu": 2**18, "other": 2**26}
"""Elements of one wide piece: the second-level cache of a CPU core; on other devices rather few large kernels."""

NORM_PARTS = [True, True, True]


def _pieces(x: Tensor, width: int) -> Iterator[slice]:
    """Slices of the first axis of `[R, N, ...]` whose `[r, N, width]` tensors are about one piece each."""
    size = PIECE["cpu" if x.device.type == "cpu" else "other"]
    step = max(1, size // (x.shape[1] * width))
    return (slice(i, i + step) for i in range(0, x.shape[0], step))


def _sum_like(x: Tensor) -> Tensor:
    """Zeros to add up gradients of pieces in, in single precision at least."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _same_precision(tensors: list[Tensor]) -> list[Tensor]:
    """All in autocast's precision where it is on, else in that of the first."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return [x.to(dtype) for x in tensors]


class _NormedProduct(torch.autograd.Function):
    """`LN(x) W^T`; remembers `x` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, matrix: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, scale, shift, matrix)
        ctx.eps = eps
        out = x.new_empty(*x.shape[:2], matrix.shape[0])
        for piece in _pieces(x, x.shape[2]):
            normed = torch.native_layer_norm(x[piece], (x.shape[2],), scale, shift, eps)[0]
            torch.matmul(normed, matrix.t(), out=out[piece])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, matrix = ctx.saved_tensors
        shape = (x.shape[2],)
        d_x = torch.empty_like(x)
        d_scale, d_shift, d_matrix = sums = [_sum_like(part) for part in (scale, shift, matrix)]
        for piece in _pieces(x, x.shape[2]):
            normed, mean, rstd = torch.native_layer_norm(x[piece], shape, scale, shift, ctx.eps)
            narrow = grad[piece].flatten(0, 1)
            d_matrix += narrow.t() @ normed.flatten(0, 1)
            back = torch.ops.aten.native_layer_norm_backward(
                grad[piece] @ matrix, x[piece], shape, mean, rstd, scale, shift, NORM_PARTS
            )
            d_x[piece] = back[0]
            d_scale += back[1]
            d_shift += back[2]
        return d_x, *(total.to(x.dtype) for total in sums), None


def normed_product(x: Tensor, norm: nn.LayerNorm, matrix: Tensor) -> Tensor:
    """`norm(x) @ matrix.T`: `[R, N, C]`, `[d, C]` -> `[R, N, d]`."""
    x, *parts = _same_precision([x, norm.weight, norm.bias, matrix])
    with torch.autocast(x.device.type, enabled=False):
        return _NormedProduct.apply(x, *parts, norm.eps)  # type: ignore[no-any-return, no-untyped-call]


class WideEnd(NamedTuple):
    """The last steps of one expert: `norm(hidden @ matrix.T + bias)`; `hidden` `[R, N, d]`, `matrix` `[C, d]`."""

    hidden: Tensor
    matrix: Tensor
    bias: Tensor
    norm: nn.LayerNorm | None


class _WeightedEnds(torch.autograd.Function):
    """`sum_e share_e * norm_e(hidden_e W_e^T + b_e)`; remembers the narrow inputs alone."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, normed: tuple[bool, ...], eps: float, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(shares, *parts)
        ctx.normed, ctx.eps = normed, eps
        hidden, matrix = parts[0], parts[1]
        out = hidden.new_empty(*hidden.shape[:2], matrix.shape[0])
        for piece in _pieces(hidden, matrix.shape[0]):
            for e, end in enumerate(_grouped(parts)):
                y = _Wide(end, piece, normed[e], eps).value
                share = shares[piece, e, None, None]
                if e == 0:
                    torch.mul(y, share, out=out[piece])
                else:
                    out[piece].addcmul_(y, share)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shares, *parts = ctx.saved_tensors
        d_shares = torch.empty_like(shares)
        d_parts = [_sum_like(part) if i % 5 else torch.empty_like(part) for i, part in enumerate(parts)]
        for piece in _pieces(parts[0], parts[1].shape[0]):
            for e, (end, d_end) in enumerate(zip(_grouped(parts), _grouped(d_parts), strict=True)):
                wide = _Wide(end, piece, ctx.normed[e], ctx.eps)
                g = grad[piece]
                d_shares[piece, e] = torch.linalg.vecdot(g.flatten(1), wide.value.flatten(1))
                wide.backward(g * shares[piece, e, None, None], d_end)
        return d_shares, None, None, *(d.to(grad.dtype) for d in d_parts)


class _Wide:
    """One expert's wide tokens of one piece, and their backward pass into `d_end`."""

    def __init__(self, end: Sequence[Tensor], piece: slice, normed: bool, eps: float) -> None:
        hidden, matrix, bias, scale, shift = end
        self.end, self.piece, self.normed = end, piece, normed
        self.raw = self.value = torch.addmm(bias, hidden[piece].flatten(0, 1), matrix.t()).view(
            -1, hidden.shape[1], matrix.shape[0]
        )
        if normed:
            self.value, self.mean, self.rstd = torch.native_layer_norm(
                self.raw, self.raw.shape[-1:], scale, shift, eps
            )

    def backward(self, grad: Tensor, d_end: Sequence[Tensor]) -> None:
        hidden, matrix, _, scale, shift = self.end
        d_hidden, d_matrix, d_bias, d_scale, d_shift = d_end
        if self.normed:
            grad, more_scale, more_shift = torch.ops.aten.native_layer_norm_backward(
                grad, self.raw, self.raw.shape[-1:], self.mean, self.rstd, scale, shift, NORM_PARTS
            )
            d_scale += more_scale
            d_shift += more_shift
        flat = grad.flatten(0, 1)
        torch.matmul(grad, matrix, out=d_hidden[self.piece])
        d_matrix += flat.t() @ hidden[self.piece].flatten(0, 1)
        d_bias += flat.sum(0)


def _grouped(parts: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    return [parts[i : i + 5] for i in range(0, len(parts), 5)]


def weighted_ends(shares: Tensor, ends: Sequence[WideEnd]) -> Tensor:
    """`sum_e shares[:, e] * end_e`: shares `[R, E]` -> `[R, N, C]`. All norms must share one eps."""
    parts: list[Tensor] = []
    for end in ends:
        norm = (end.bias, end.bias) if end.norm is None else (end.norm.weight, end.norm.bias)
        parts += [end.hidden, end.matrix, end.bias, *norm]
    eps = next((end.norm.eps for end in ends if end.norm is not None), 0.0)
    normed = tuple(end.norm is not None for end in ends)
    shares, *parts = _same_precision([shares, *parts])
    with torch.autocast(shares.device.type, enabled=False):
        return _WeightedEnds.apply(shares, normed, eps, *parts)  # type: ignore[no-any-return, no-untyped-call]
