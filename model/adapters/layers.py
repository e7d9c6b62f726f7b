"""Linear layers over tokens that expert adapters need: grouped, batch-normalised, and over the token axis.

Tokens `[BT, N, C]`. Written for tokens as they lie: nothing is permuted to `[BT, C, N, 1]`, which also avoids a
wrong BatchNorm2d gradient of torch 2.13 on the CPU for such views.

Linear maps of low rank, which the `lite` preset puts in place of large square ones and of token resampling.

Tokens `[BT, N, C]`, the other modality's `[BT, M, D]`, rank `r`.

Which tokens matter: hard top-k by energy, and CASE's differentiable selector (REFERENCE sections 2.4, 2.7).

A token's energy is its squared length. Rows `BT`, tokens `L`, channels `C`; `k = max(1, int(L * ratio))`.

Mixing over time at a fixed token place: depthwise convolution and channel shift (REFERENCE 2.3, 2.8).

Tokens are `[BT, L, C]`, rows clip by clip; `segments` (`T`) tells where a clip ends. Nothing crosses clips: both
ends are padded with zeros. No transposition to `[B * L, C, T]`: a convolution of length 3 is three shifted
multiply-adds on the tokens as they lie.

Multi-head attention with one packed query/key/value matrix, as heads and frame-attention experts use it.

`N` rows, `S`/`Q` source and query tokens, `C` channels. Batch-first throughout; the units of CASE, which keep
separate matrices, live in `adapters/units.py`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.kernels.precision import own_precision, working_dtype

MIN_TEMPERATURE = 1e-3
MIN_SUM = 1e-6


def selected_count(tokens: int, ratio: float) -> int:
    """How many of `tokens` a `ratio` keeps: truncated, at least 1 (double precision, as the reference)."""
    return max(1, int(tokens * ratio))


@torch.no_grad()
def top_tokens(x: Tensor, ratio: float) -> Tensor:
    """Indices `[BT, k]` (in no particular order) of the most energetic tokens of `[BT, L, C]`."""
    # Lengths rank like energies and need no squared copy of the tokens; half precision would make ties.
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    length = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
    return torch.topk(length, selected_count(x.shape[1], ratio), dim=1, sorted=False).indices


def token_topk_mask(x: Tensor, ratio: float) -> Tensor:
    """1 for the most energetic tokens, 0 for the others: `[BT, L, C]` -> `[BT, L, 1]`, no gradient."""
    index = top_tokens(x, ratio)
    return x.new_zeros(x.shape[:2]).scatter_(1, index, 1.0).unsqueeze(-1)


class TokenSelector(nn.Module):
    """Soft weights of the selected tokens, summing to 1 in every segment.

    Eval: `1/k` for each of the `k` most energetic tokens, without gradient. Train: a softmax over energies plus
    Gumbel noise, cut below its `k`-th largest value and renormalised; gradients reach the tokens and the
    temperature.

    whole: a selected token weighs 1 instead, an unselected one 0, in training as in eval mode. The gradient in
    training is that of the probabilities (straight through), so it reaches unselected tokens as well.
    """

    def __init__(self, ratio: float, *, whole: bool = False) -> None:
        super().__init__()
        self.ratio = ratio
        self.whole = whole
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`[BT, L, C]` -> weights `[BT, L, 1]` and, in training, the uncut probabilities `[BT, L]`.

        `noise`: `[BT, L]` drawn from Exp(1), for reproducing a call; drawn here when absent.
        """
        if not self.training:
            mask = token_topk_mask(x, self.ratio)
            if self.whole:
                return mask, None
            return mask / mask.sum(dim=1, keepdim=True).clamp_min(MIN_SUM), None
        energy = x.square().sum(dim=-1)
        if noise is None:
            noise = torch.empty_like(energy).exponential_()
        logits = (energy - noise.log()) / self.temperature.clamp_min(MIN_TEMPERATURE)
        probabilities = torch.softmax(logits, dim=-1)  # [BT, L]
        k = selected_count(x.shape[1], self.ratio)
        if self.whole:
            best = logits.detach().topk(k, dim=-1).indices  # logits do not underflow
            chosen = torch.zeros_like(probabilities).scatter_(1, best, 1.0)
            return (chosen + (probabilities - probabilities.detach())).unsqueeze(-1), probabilities
        threshold = probabilities.detach().topk(k, dim=-1).values[:, -1:]
        kept = probabilities * (probabilities >= threshold)
        return (kept / kept.sum(dim=-1, keepdim=True).clamp_min(MIN_SUM)).unsqueeze(-1), probabilities


TemporalMode = Literal["dwconv", "tsm", "tsm+dw"]


def clip_view(x: Tensor, segments: int) -> Tensor:
    """`[BT, ...]` -> `[B, T, ...]`; a ValueError when the rows are no whole number of clips."""
    if x.shape[0] % segments:
        raise ValueError(f"{x.shape[0]} rows are not a whole number of clips of {segments} segments")
    return x.view(x.shape[0] // segments, segments, *x.shape[1:])


class DepthwiseOverTime(nn.Module):
    """A convolution over time for every channel by itself: weight `[C, 3]`, bias `[C]`, zero padding."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        bound = 1.0 / math.sqrt(3)
        self.weight = nn.Parameter(torch.empty(channels, 3).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))

    def forward(self, x: Tensor, segments: int) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`."""
        before, now, after = self.weight.unbind(1)
        clips = clip_view(x, segments)
        mixed = torch.addcmul(self.bias, clips, now)  # [B, T, L, C]
        step = self.dilation
        if step < segments:
            mixed[:, step:].addcmul_(clips[:, :-step], before)
            mixed[:, :-step].addcmul_(clips[:, step:], after)
        return mixed.flatten(0, 1)


@torch.no_grad()
def shift_over_time(x: Tensor, segments: int) -> Tensor:
    """Channels `[0, f)` from the segment before, `[f, 2f)` from the one after, `f = max(1, C // 8)`; no gradient."""
    fold = max(1, x.shape[-1] // 8)
    shifted = x.clone()
    clips, out = clip_view(x, segments), clip_view(shifted, segments)
    out[:, 1:, :, :fold] = clips[:, :-1, :, :fold]
    out[:, 0, :, :fold] = 0
    out[:, :-1, :, fold : 2 * fold] = clips[:, 1:, :, fold : 2 * fold]
    out[:, -1, :, fold : 2 * fold] = 0
    return shifted


class TemporalConv(nn.Module):
    """CASE's temporal step: depthwise, pointwise, LayerNorm; no residual, no gate (REFERENCE 2.8)."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = DepthwiseOverTime(channels, dilation)
        self.pointwise = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, segments: int) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`."""
        return self.norm(self.pointwise(self.depthwise(x, segments)))  # type: ignore[no-any-return]


class TemporalEnrichment(nn.Module):
    """`x + gamma * norm(h)` with `h` mixed over time (REFERENCE 2.3).

    Modes: `dwconv` convolves; `tsm` shifts an eighth of the channels each way; `tsm+dw` convolves the shifted
    tokens. The shift passes no gradient to `x`, as in the reference.
    """

    def __init__(
        self, channels: int, mode: TemporalMode = "dwconv", gate_init: float = 0.0, map_rank: int = 0
    ) -> None:
        super().__init__()
        self.mode = mode
        if mode != "tsm":
            self.depthwise = DepthwiseOverTime(channels)
            self.pointwise = make_linear(channels, channels, map_rank)
        self.norm = nn.LayerNorm(channels)
        self.gamma = nn.Parameter(torch.full((1,), gate_init))

    def forward(self, x: Tensor, segments: int) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`, every token (CASTE computes only the selected ones)."""
        mixed = x if self.mode == "dwconv" else shift_over_time(x, segments)
        if self.mode != "tsm":
            mixed = self.depthwise(mixed, segments)
        return x + self.gamma * self.increment(mixed)

    def increment(self, mixed: Tensor) -> Tensor:
        """`norm(pointwise(mixed))` of tokens already mixed over time: what `gamma` scales."""
        return self.norm(mixed if self.mode == "tsm" else self.pointwise(mixed))  # type: ignore[no-any-return]


class WidthError(CaeavError):
    """A width that does not fit the number of heads or groups it is split into."""


def require_divisible(width: int, parts: int, what: str) -> None:
    """Raise `WidthError` unless `width` splits evenly into `parts` (`what` names them)."""
    if parts < 1 or width % parts:
        raise WidthError(
            f"a width of {width} channels does not split into {parts} {what}",
            hint=f"choose a number of {what} that divides {width}",
        )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[N, S, C]` -> `[N, heads, S, C / heads]`."""
    rows, tokens, channels = x.shape
    return x.view(rows, tokens, heads, channels // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[N, heads, S, C / heads]` -> `[N, S, C]`."""
    return x.transpose(1, 2).flatten(-2)


class PackedAttention(nn.Module):
    """`softmax(Q K^T / sqrt(C / heads)) V`, dropout on the weights, one output map (REFERENCE section 0, MHA).

    Initial values: packed weight Xavier-uniform as one `[3C, C]` matrix, biases 0, output weight as a plain Linear.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        require_divisible(channels, heads, "heads")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, query: Tensor, source: Tensor | None = None) -> Tensor:
        """`query` `[N, Q, C]` attends `source` `[N, S, C]` (itself by default) -> `[N, Q, C]`."""
        if source is None:
            q, k, v = self.qkv(query).chunk(3, dim=-1)
        else:
            width = query.shape[-1]
            q = F.linear(query, self.qkv.weight[:width], self.qkv.bias[:width])
            k, v = F.linear(source, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(
            split_heads(q, self.heads),
            split_heads(k, self.heads),
            split_heads(v, self.heads),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(merge_heads(mixed))  # type: ignore[no-any-return]


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

    def with_running_statistics(self, x: Tensor) -> Tensor:
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


class LowRankLinear(nn.Module):
    """`up(down(x))`: `[..., i]` -> `[..., o]` through `r` channels, bias at the end."""

    def __init__(self, in_channels: int, out_channels: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(in_channels, rank, bias=False)
        self.up = nn.Linear(rank, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., i]` -> `[..., o]`."""
        return self.up(self.down(x))  # type: ignore[no-any-return]


def make_linear(in_channels: int, out_channels: int, rank: int) -> nn.Linear | LowRankLinear:
    """A full map where `rank` is 0 or would not make it smaller, else one of that rank."""
    if rank == 0 or rank * (in_channels + out_channels) >= in_channels * out_channels:
        return nn.Linear(in_channels, out_channels)
    return LowRankLinear(in_channels, out_channels, rank)


def last_map(linear: nn.Linear | LowRankLinear) -> nn.Linear:
    """The map whose weight and bias decide the size of the output, for initial values."""
    return linear.up if isinstance(linear, LowRankLinear) else linear


class LowRankContext(nn.Module):
    """The other modality at this one's tokens and width, through `r` tokens.

    Tokens are gathered first (`M -> r`), the channels of those few mapped (`D -> C`), then spread (`r -> N`); the
    bias of every token is equal in all channels, as that of the full map.
    """

    def __init__(
        self,
        other_tokens: int,
        tokens: int,
        token_rank: int,
        other_channels: int,
        channels: int,
        channel_rank: int,
    ) -> None:
        super().__init__()
        self.gather = nn.Linear(other_tokens, token_rank, bias=False)
        self.channels = make_linear(other_channels, channels, channel_rank)
        self.spread = nn.Linear(token_rank, tokens)

    def forward(self, other: Tensor) -> Tensor:
        """`[BT, M, D]` -> `[BT, N, C]`."""
        few = mix_tokens(self.gather.weight, other, other.new_zeros(1, 1))  # [BT, r, D]
        return mix_tokens(self.spread.weight, self.channels(few), self.spread.bias.unsqueeze(-1))
