"""CASE's units with hand-written backward passes that keep little: for training on the CPU.

There dropout takes `scaled_dot_product_attention` off its fused path, and autograd keeps every step of a unit. What
is kept here: queries, keys, values, the sum in front of the norm, the feed-forward's hidden layer, and dropout's
masks as single bytes. Attention is computed again in the backward pass, a fiftieth of the unit's work. On a GPU, under
autocast and without gradients `units.py` goes its plain way; both give the same numbers.

`N` rows, `Q` query and `S` source tokens, `C` channels, `h` heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from caeav.model.adapters.precision import own_precision
from caeav.model.attention import merge_heads, split_heads


def pays(x: Tensor) -> bool:
    """Whether these are the better way for `x`."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _drop(x: Tensor, rate: float) -> Tensor | None:
    """Zero a share of `x` in place and scale up the rest; the mask of what stays, None at rate 0."""
    if rate == 0:
        return None
    keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - rate)
    _apply(x, keep, rate)
    return keep


def _apply(x: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    return x if keep is None else x.mul_(keep).mul_(1 / (1 - rate))


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
        keep_weights = _drop(weights, rates[0])
        mixed = merge_heads(torch.matmul(weights, split_heads(value, heads)))
        del weights
        summed = torch.nn.functional.linear(mixed, weight, bias)
        keep = _drop(summed, rates[1])
        summed += residual
        out, *numbers = torch.native_layer_norm(summed, norm_weight.shape, norm_weight, norm_bias, eps)
        ctx.save_for_backward(
            query, key, value, weight, norm_weight, norm_bias, mask, keep_weights, summed, keep, *numbers
        )
        return out

    @staticmethod
    def weigh(query: Tensor, key: Tensor, mask: Tensor | None, heads: int, scale: float) -> Tensor:
        """Attention weights `[N, h, Q, S]`; `mask` `[N, S]` is True at what may be attended."""
        logits = torch.matmul(split_heads(query, heads), split_heads(key, heads).transpose(2, 3)).mul_(scale)
        if mask is not None:
            logits.masked_fill_(~mask[:, None, None, :], float("-inf"))
        return torch.softmax(logits, dim=-1)

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weight, norm_weight, norm_bias, mask, keep_weights, summed, keep, *numbers = (
            ctx.saved_tensors
        )
        heads, rates, scale = ctx.heads, ctx.rates, ctx.scale
        d_residual, d_norm_weight, d_norm_bias = _norm_backward(
            grad, summed, (numbers[0], numbers[1]), norm_weight, norm_bias
        )
        d_out = d_residual if keep is None else _apply(d_residual.clone(), keep, rates[1])
        weights = _Attention.weigh(query, key, mask, heads, scale)
        dropped = weights if keep_weights is None else _apply(weights.clone(), keep_weights, rates[0])
        each_value = split_heads(value, heads)
        mixed = merge_heads(torch.matmul(dropped, each_value))
        d_weight, d_bias = _linear_backward(ctx, 4, d_out, mixed)
        del mixed
        d_mixed = split_heads(torch.matmul(d_out, weight), heads)
        del d_out
        d_value = merge_heads(torch.matmul(dropped.transpose(2, 3), d_mixed))
        d_weights = _apply(torch.matmul(d_mixed, each_value.transpose(2, 3)), keep_weights, rates[0])
        del d_mixed, dropped
        d_logits = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(scale)
        d_query = merge_heads(torch.matmul(d_logits, split_heads(key, heads)))
        d_key = merge_heads(torch.matmul(d_logits.transpose(2, 3), split_heads(query, heads)))
        norms = d_norm_weight, d_norm_bias
        return d_query, d_key, d_value, d_residual, d_weight, d_bias, *norms, None, None, None, None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor,
    out: nn.Linear,
    norm: nn.LayerNorm,
    *,
    mask: Tensor | None,
    heads: int,
    weight_dropout: float,
    dropout: float,
) -> Tensor:
    """An attention unit behind its query, key and value maps; `[N, Q, C]`."""
    rest = out.weight, out.bias, norm.weight, norm.bias, mask, heads, (weight_dropout, dropout), norm.eps
    return _Attention.apply(query, key, value, residual, *rest)  # type: ignore[no-any-return, no-untyped-call]


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
        hidden = torch.nn.functional.linear(x, in_weight, in_bias).relu_()
        _drop(hidden, rate)  # what is above 0 afterwards was neither rectified nor dropped: no mask is needed
        summed = torch.nn.functional.linear(hidden, out_weight, out_bias)
        keep = _drop(summed, rate)
        summed += x
        out, *numbers = torch.native_layer_norm(summed, norm_weight.shape, norm_weight, norm_bias, eps)
        ctx.save_for_backward(
            x, in_weight, out_weight, norm_weight, norm_bias, hidden, summed, keep, *numbers
        )
        return out

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, in_weight, out_weight, norm_weight, norm_bias, hidden, summed, keep, *numbers = ctx.saved_tensors
        d_summed, d_norm_weight, d_norm_bias = _norm_backward(
            grad, summed, (numbers[0], numbers[1]), norm_weight, norm_bias
        )
        d_out = d_summed if keep is None else _apply(d_summed.clone(), keep, ctx.rate)
        d_out_weight, d_out_bias = _linear_backward(ctx, 3, d_out, hidden)
        d_hidden = torch.matmul(d_out, out_weight).mul_(1 / (1 - ctx.rate))
        del d_out
        d_hidden = torch.ops.aten.threshold_backward(d_hidden, hidden, 0)
        d_in_weight, d_in_bias = _linear_backward(ctx, 1, d_hidden, x)
        if ctx.needs_input_grad[0]:
            d_summed = torch.addmm(d_summed.flatten(0, 1), d_hidden.flatten(0, 1), in_weight).view_as(x)
        maps = d_in_weight, d_in_bias, d_out_weight, d_out_bias
        return d_summed, *maps, d_norm_weight, d_norm_bias, None, None


def feed_forward(
    x: Tensor, fc_in: nn.Linear, fc_out: nn.Linear, norm: nn.LayerNorm, *, dropout: float
) -> Tensor:
    """A feed-forward unit; `[N, S, C]`."""
    parameters = fc_in.weight, fc_in.bias, fc_out.weight, fc_out.bias, norm.weight, norm.bias
    return _FeedForward.apply(x, *parameters, dropout, norm.eps)  # type: ignore[no-any-return, no-untyped-call]
