"""Layers that several adapters and heads share: token selection, linear maps, normalisation, time, attention.

Tokens are `[BT, L, C]`: rows are clips x segments, clip by clip, with `L` tokens of `C` channels each; where a layer
mixes segments, `segments` (`T`) tells where a clip ends. Layers work on tokens as they lie: nothing is permuted to
`[BT, C, L, 1]` or `[B * L, C, T]`, which also avoids a wrong BatchNorm2d gradient of torch 2.13 on the CPU for such
views.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.kernels.products import grouped_product

MIN_TEMPERATURE = 1e-3
MIN_SUM = 1e-6


class WidthError(CaeavError):
    """A width that does not fit the number of heads or groups it is split into."""


def require_divisible(width: int, parts: int, what: str) -> None:
    """Raise `WidthError` unless `width` splits evenly into `parts` (`what` names them)."""
    if parts < 1 or width % parts:
        raise WidthError(
            f"a width of {width} channels does not split into {parts} {what}",
            hint=f"choose a number of {what} that divides {width}",
        )


def clip_view(x: Tensor, segments: int) -> Tensor:
    """`[BT, ...]` -> `[B, T, ...]`; a ValueError unless the rows are a whole number of clips."""
    if x.shape[0] % segments:
        raise ValueError(f"{x.shape[0]} rows are not a whole number of clips of {segments} segments")
    return x.view(x.shape[0] // segments, segments, *x.shape[1:])


def square_side(tokens: int) -> int | None:
    """The side of the square grid that `tokens` tokens form, None when they form none."""
    side = math.isqrt(tokens)
    return side if side * side == tokens else None


# ---- token selection (REFERENCE sections 2.4 and 2.7); a token's energy is its squared length ----


def selected_count(tokens: int, ratio: float) -> int:
    """How many of `tokens` a `ratio` keeps: truncated, at least 1 (double precision, as in the reference)."""
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
    """CASE's differentiable selector: soft weights of the selected tokens, summing to 1 in every segment.

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

        `noise`: draws `[BT, L]` from Exp(1) that reproduce a call; None draws them here.
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


# ---- linear maps: of low rank, in groups of channels, over the token axis ----


class LowRankLinear(nn.Module):
    """`up(down(x))`: `[..., i]` -> `[..., o]` through `rank` channels, with the bias at the end."""

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
    """The map whose initial weight and bias decide the size of the output."""
    return linear.up if isinstance(linear, LowRankLinear) else linear


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
        return grouped_product(x, self.blocks().transpose(1, 2))


def map_tokens(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear map over the token axis: `M -> N`, `[BT, M, C]` -> `[BT, N, C]`."""
    return linear(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


class LowRankContext(nn.Module):
    """The other modality `[BT, M, D]` at this one's tokens and width `[BT, N, C]`, through `token_rank` tokens.

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
        return map_tokens(self.spread, self.channels(map_tokens(self.gather, other)))


# ---- normalisation ----


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
        """`[..., C]` -> `[..., C]` as in eval mode, in training too; the running statistics stay as they are."""
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


# ---- convolution over time at a fixed token (REFERENCE sections 2.3 and 2.8) ----


class DepthwiseOverTime(nn.Module):
    """A convolution over time for every channel by itself: weight `[C, 3]`, bias `[C]`, zero padding.

    Three shifted multiply-adds on the tokens as they lie.
    """

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


class TemporalConv(nn.Module):
    """CASE's temporal step: depthwise, pointwise, LayerNorm; no residual, no gate (REFERENCE section 2.8)."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.depthwise = DepthwiseOverTime(channels, dilation)
        self.pointwise = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, segments: int) -> Tensor:
        """`[BT, L, C]` -> `[BT, L, C]`."""
        return self.norm(self.pointwise(self.depthwise(x, segments)))  # type: ignore[no-any-return]


# ---- attention ----


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[N, S, C]` -> `[N, heads, S, C / heads]`."""
    rows, tokens, channels = x.shape
    return x.view(rows, tokens, heads, channels // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[N, heads, S, C / heads]` -> `[N, S, C]`."""
    return x.transpose(1, 2).flatten(-2)


class PackedAttention(nn.Module):
    """Multi-head attention with one packed query, key and value map (REFERENCE section 0, MHA), batch first.

    `softmax(Q K^T / sqrt(C / heads)) V`, dropout on the weights, one output map. Initial values: packed weight
    Xavier-uniform as one `[3C, C]` matrix, biases 0, output weight as a plain Linear.
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
