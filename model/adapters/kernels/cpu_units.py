"""CASE's units with hand-written backward passes that keep little: for training on the CPU.

There dropout takes `scaled_dot_product_attention` off its fused path, and autograd keeps every step of a unit. What
is kept here: queries, keys, values, the sum in front of the norm, the feed-forward's hidden layer, and dropout's
masks as single bytes. Attention is computed again in the backward pass, a fiftieth of the unit's work. On a GPU, under
autocast and without gradients `units.py` goes its plain way; both give the same numbers.

`N` rows, `Q` query and `S` source tokens, `C` channels, `h` heads.

Memory that was freed, given back to the system: what keeps a training step's peak near what is alive.

During a backward pass activations die and gradients, of other sizes, are born. The C library's allocator takes the
gradients from new pages and keeps the freed ones for later, so that a process holds the sum of both where the
largest of either would do. On glibc one call returns the freed pages; elsewhere nothing happens here, and neither is
anything needed on a GPU, whose allocator reuses its blocks.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.kernels.precision import own_precision

WORTH_BYTES = 2**22


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """The C library's `malloc_trim`, where it has one."""
    try:
        found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # a platform whose C library cannot be opened like this
        return None
    return found


def return_free_memory(before: Tensor) -> None:
    """Give freed pages back, before a gradient of the size of `before` is made; nothing for small ones."""
    trim = _trim()
    if trim is not None and before.nbytes >= WORTH_BYTES:
        trim(0)


def pays(x: Tensor) -> bool:
    """Whether these are the better way for `x`."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _draw(x: Tensor, rate: float) -> Tensor | None:
    """Which elements of `x` dropout takes, a mask of its shape; None at rate 0.

    Drawn as four numbers of 16 bits out of each of 64, in a quarter of the time of `bernoulli_`; the rate is met to
    1/131072.
    """
    if rate == 0:
        return None
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    return (drawn.view(torch.int16)[: x.numel()] < round(rate * 2**16) - 2**15).view(x.shape)


def _without(x: Tensor, gone: Tensor | None, rate: float) -> Tensor:
    """`x` with what is gone at 0 and the rest scaled up; `x` itself where nothing is."""
    return x if gone is None else x.masked_fill(gone, 0).mul_(1 / (1 - rate))


def _add_dropped(x: Tensor, change: Tensor, gone: Tensor | None, rate: float) -> Tensor:
    """`x + dropout(change)`, written over `change`."""
    if gone is not None:
        change.masked_fill_(gone, 0)
    return torch.add(x, change, alpha=1 / (1 - rate), out=change)


def _heads(x: Tensor, heads: int) -> tuple[Tensor, ...]:
    """`[N, S, C]` -> every head's `[N, S, C / heads]`, views: a batched product over all heads would copy them."""
    return x.view(*x.shape[:2], heads, -1).unbind(2)


def _per_head(left: Sequence[Tensor], right: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """A batched product for every head, into `out`."""
    for factor, other, target in zip(left, right, out, strict=True):
        torch.bmm(factor, other, out=target)


def _linear_backward(ctx: Any, at: int, grad: Tensor, source: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the weight and bias that are inputs `at` and `at + 1`."""
    flat = grad.flatten(0, 1)
    d_weight = flat.t() @ source.flatten(0, 1) if ctx.needs_input_grad[at] else None
    return d_weight, flat.sum(dim=0) if ctx.needs_input_grad[at + 1] else None


def _norm_backward(
    grad: Tensor, summed: Tensor, numbers: tuple[Tensor, Tensor], weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.native_layer_norm_backward(  # type: ignore[no-any-return]
        grad, summed, weight.shape, *numbers, weight, bias, [True, True, True]
    )


class _Maps(torch.autograd.Function):
    """Queries of `x` `[N, Q, C]`, keys and values of `source` `[N, S, C]`, which is None where it is `x` itself.

    A step by itself: what attention keeps is gone when the gradients of these large maps are made. The gradients of
    what was mapped are summed where the first of them lies.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor | None, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`maps`: weight and bias of the query, key and value map in turn."""
        ctx.save_for_backward(x, source, *maps[::2])
        attended = x if source is None else source
        return F.linear(x, *maps[:2]), F.linear(attended, *maps[2:4]), F.linear(attended, *maps[4:])

    @staticmethod
    @own_precision
    def backward(ctx: Any, d_query: Tensor, d_key: Tensor, d_value: Tensor) -> tuple[Tensor | None, ...]:
        x, source, of_query, of_key, of_value = ctx.saved_tensors
        return_free_memory(of_query)
        attended = x if source is None else source
        d_maps = (
            *_linear_backward(ctx, 2, d_query, x),
            *_linear_backward(ctx, 4, d_key, attended),
            *_linear_backward(ctx, 6, d_value, attended),
        )
        d_x = torch.matmul(d_query, of_query) if ctx.needs_input_grad[0] else None
        d_source = None
        if source is not None and ctx.needs_input_grad[1]:
            d_source = torch.matmul(d_key, of_key)
        d_attended = d_source
        if source is None and d_x is not None:
            d_attended = d_x
            d_x.flatten(0, 1).addmm_(d_key.flatten(0, 1), of_key)
        if d_attended is not None:
            d_attended.flatten(0, 1).addmm_(d_value.flatten(0, 1), of_value)
        return d_x, d_source, *d_maps


class _Attention(torch.autograd.Function):
    """`norm(x + dropout(out(dropout(softmax(q k^T)) v)))`; `q` `[N, Q, C]`, `k`, `v` `[N, S, C]`, `x` `[N, Q, C]`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        mask: Tensor | None,
        heads: int,
        rates: tuple[float, float],
        eps: float,
    ) -> Tensor:
        ctx.heads, ctx.rates, ctx.scale = heads, rates, (query.shape[2] // heads) ** -0.5
        weights = _Attention.weigh(query, key, mask, heads, ctx.scale)
        gone_weights = _draw(weights, rates[0])
        mixed = torch.empty_like(query)
        kept = _without(weights, gone_weights, rates[0])
        _per_head(kept.unbind(1), _heads(value, heads), _heads(mixed, heads))
        del weights, kept
        summed = F.linear(mixed, weight, bias)
        gone = _draw(summed, rates[1])
        _add_dropped(residual, summed, gone, rates[1])
        out, *numbers = torch.native_layer_norm(summed, norm_weight.shape, norm_weight, norm_bias, eps)
        ctx.save_for_backward(
            query, key, value, weight, norm_weight, norm_bias, mask, gone_weights, summed, gone, *numbers
        )
        return out

    @staticmethod
    def weigh(query: Tensor, key: Tensor, mask: Tensor | None, heads: int, scale: float) -> Tensor:
        """Attention weights `[N, h, Q, S]`; `mask` `[N, S]` is True at what may be attended."""
        logits = query.new_empty(query.shape[0], heads, query.shape[1], key.shape[1])
        _per_head(_heads(query, heads), [k.transpose(1, 2) for k in _heads(key, heads)], logits.unbind(1))
        logits.mul_(scale)
        if mask is not None:
            logits.masked_fill_(~mask[:, None, None, :], float("-inf"))
        return torch.softmax(logits, dim=-1)

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weight, norm_weight, norm_bias, mask, gone_weights, summed, gone, *numbers = (
            ctx.saved_tensors
        )
        heads, rates, scale = ctx.heads, ctx.rates, ctx.scale
        d_residual, d_norm_weight, d_norm_bias = _norm_backward(
            grad, summed, (numbers[0], numbers[1]), norm_weight, norm_bias
        )
        d_out = _without(d_residual, gone, rates[1])
        weights = _Attention.weigh(query, key, mask, heads, scale)
        dropped = _without(weights, gone_weights, rates[0])
        mixed = torch.empty_like(query)
        _per_head(dropped.unbind(1), _heads(value, heads), _heads(mixed, heads))
        d_weight, d_bias = _linear_backward(ctx, 4, d_out, mixed)
        del mixed
        d_mixed = _heads(torch.matmul(d_out, weight), heads)
        del d_out
        d_value, d_weights = torch.empty_like(value), torch.empty_like(weights)
        _per_head(dropped.transpose(2, 3).unbind(1), d_mixed, _heads(d_value, heads))
        _per_head(d_mixed, [v.transpose(1, 2) for v in _heads(value, heads)], d_weights.unbind(1))
        del d_mixed, dropped
        d_weights = _without(d_weights, gone_weights, rates[0])
        d_logits = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(scale)
        d_query, d_key = torch.empty_like(query), torch.empty_like(key)
        _per_head(d_logits.unbind(1), _heads(key, heads), _heads(d_query, heads))
        _per_head(d_logits.transpose(2, 3).unbind(1), _heads(query, heads), _heads(d_key, heads))
        norms = d_norm_weight, d_norm_bias
        return d_query, d_key, d_value, d_residual, d_weight, d_bias, *norms, None, None, None, None


def attention(
    x: Tensor,
    source: Tensor,
    maps: Sequence[nn.Linear],
    norm: nn.LayerNorm,
    *,
    mask: Tensor | None,
    heads: int,
    weight_dropout: float,
    dropout: float,
) -> Tensor:
    """An attention unit; `x` `[N, Q, C]`, `source` `[N, S, C]`, maps of query, key, value and output -> `[N, Q, C]`."""
    *reads, out = maps
    parameters = [p for part in reads for p in (part.weight, part.bias)]
    read = _Maps.apply(x, None if source is x else source, *parameters)  # type: ignore[no-untyped-call]
    rest = out.weight, out.bias, norm.weight, norm.bias, mask, heads, (weight_dropout, dropout), norm.eps
    return _Attention.apply(*read, x, *rest)  # type: ignore[no-any-return, no-untyped-call]


class _FeedForward(torch.autograd.Function):
    """`norm(x + dropout(fc_out(dropout(relu(fc_in(x))))))`; `x` `[N, S, C]`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        in_weight: Tensor,
        in_bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        rate: float,
        eps: float,
    ) -> Tensor:
        ctx.rate = rate
        hidden = F.linear(x, in_weight, in_bias).relu_()
        gone = _draw(hidden, rate)
        if gone is not None:  # what is above 0 afterwards was neither rectified nor dropped: no mask is kept
            hidden.masked_fill_(gone, 0).mul_(1 / (1 - rate))
        summed = F.linear(hidden, out_weight, out_bias)
        gone = _draw(summed, rate)
        _add_dropped(x, summed, gone, rate)
        out, *numbers = torch.native_layer_norm(summed, norm_weight.shape, norm_weight, norm_bias, eps)
        ctx.save_for_backward(
            x, in_weight, out_weight, norm_weight, norm_bias, hidden, summed, gone, *numbers
        )
        return out

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, in_weight, out_weight, norm_weight, norm_bias, hidden, summed, gone, *numbers = ctx.saved_tensors
        return_free_memory(in_weight)
        d_summed, d_norm_weight, d_norm_bias = _norm_backward(
            grad, summed, (numbers[0], numbers[1]), norm_weight, norm_bias
        )
        d_out = _without(d_summed, gone, ctx.rate)
        d_out_weight, d_out_bias = _linear_backward(ctx, 3, d_out, hidden)
        d_hidden = torch.matmul(d_out, out_weight).mul_(1 / (1 - ctx.rate))
        del d_out
        d_hidden = torch.ops.aten.threshold_backward(d_hidden, hidden, 0)
        d_in_weight, d_in_bias = _linear_backward(ctx, 1, d_hidden, x)
        if ctx.needs_input_grad[0]:
            d_summed.flatten(0, 1).addmm_(d_hidden.flatten(0, 1), in_weight)
        maps = d_in_weight, d_in_bias, d_out_weight, d_out_bias
        return d_summed, *maps, d_norm_weight, d_norm_bias, None, None


def feed_forward(
    x: Tensor, fc_in: nn.Linear, fc_out: nn.Linear, norm: nn.LayerNorm, *, dropout: float
) -> Tensor:
    """A feed-forward unit; `[N, S, C]`."""
    parameters = fc_in.weight, fc_in.bias, fc_out.weight, fc_out.bias, norm.weight, norm.bias
    return _FeedForward.apply(x, *parameters, dropout, norm.eps)  # type: ignore[no-any-return, no-untyped-call]
