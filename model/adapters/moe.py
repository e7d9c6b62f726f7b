"""AVMoE: a router mixes cross-modal and unimodal experts, segment by segment (REFERENCE sections 2.12 to 2.14).

Own tokens `x` `[BT, N, C]`, the other modality's `[BT, M, D]`; the context is the other modality brought to `[BT, N,
C]`. `d` is the bottleneck's width, `K` the number of latents, `E` of experts (cross first, then unimodal). The
mixture is dense: every expert is evaluated. The residual is not yet added. One implementation for all tasks; what
differs is an option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.batch import AdapterError
from caeav.model.adapters.config import UniAttention
from caeav.model.adapters.kernels.latents import attend_latents, read_through_maps
from caeav.model.adapters.kernels.mixture import UpProjection, mix_experts
from caeav.model.adapters.kernels.normed import normed_product
from caeav.model.adapters.kernels.products import grouped_product
from caeav.model.adapters.layers import (
    GroupedLinear,
    LowRankContext,
    PackedAttention,
    TokenBatchNorm,
    map_tokens,
    square_side,
)
from caeav.model.adapters.whole_batch import over_all_rows

FRAME_HEADS = 4
FRAME_DROPOUT = 0.2


# ---- attention of the experts ----


def attention_scale(channels: int, scaled: bool) -> float:
    """What attention's products are multiplied by: the reference does not scale them."""
    return 1 / math.sqrt(channels) if scaled else 1.0


def read_context(queries: Tensor, context: Tensor) -> Tensor:
    """`softmax(q c^T) c`: queries `[K, C]`, context `[BT, N, C]` -> `[BT, K, C]`."""
    return torch.softmax(queries @ context.transpose(1, 2), dim=-1) @ context


def latent_attention(
    x: Tensor, context: Tensor, latents: Tensor, gate: Tensor, *, scaled: bool = False
) -> Tensor:
    """`x + gate * softmax(x R^T) R` with `R = latents + softmax(latents c^T) c`; `scaled`: products / sqrt(C).

    `x`, `context` `[BT, N, C]`, `latents` `[K, C]` -> `[BT, N, C]`. The latents stand between the two token sets,
    so the cost is linear in both.
    """
    scale = attention_scale(x.shape[-1], scaled)
    return attend_latents(x, latents + read_context(scale * latents, context), gate, scale)


def mutual_attention(x: Tensor, gate: Tensor, *, scaled: bool = False) -> Tensor:
    """`x + gate * S^T x`, `S = softmax(x x^T)` over its last axis: AVVP's parameter-free attention.

    The reference contracts the row index of `S`, so the weights of one output token do not add up to 1. `scaled`
    divides the products by sqrt(C).
    """
    scale = attention_scale(x.shape[-1], scaled)
    weights = torch.softmax(torch.bmm(scale * x, x.transpose(1, 2)), dim=-1)  # [BT, N, N]
    return torch.baddbmm(x, weights.transpose(1, 2), gate * x)


# ---- experts ----


class Bottleneck(nn.Module):
    """`[pre_norm] -> down -> [BN] -> [ReLU] -> up -> [BN] -> [post_norm] -> [out_gate]`; the gate starts at 0.

    gate_first: the gate comes before post_norm, which divides its size out again (LAVISH's and DG-SCT's AVS copies).
    """

    def __init__(
        self,
        channels: int,
        bottleneck: int,
        groups: int,
        *,
        activation: bool,
        batch_norm: bool = False,
        pre_norm: bool = True,
        post_norm: bool = True,
        out_gate: bool = True,
        gate_first: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate_first = gate_first
        self.pre_norm = nn.LayerNorm(channels) if pre_norm else None
        self.down = GroupedLinear(channels, bottleneck, groups)
        self.down_bn = TokenBatchNorm(bottleneck) if batch_norm else None
        self.up = GroupedLinear(bottleneck, channels, groups)
        self.up_bn = TokenBatchNorm(channels) if batch_norm else None
        self.post_norm = nn.LayerNorm(channels) if post_norm else None
        self.out_gate = nn.Parameter(torch.zeros(1)) if out_gate else None

    def bottleneck(self, x: Tensor) -> UpProjection:
        """`[BT, N, C]` through the bottleneck; the layer computes the up-projections of all experts together."""
        norm = self.pre_norm
        hidden = self.down(x) if norm is None else normed_product(x, norm, self.down.blocks())
        if self.down_bn is not None:
            hidden = self.down_bn(hidden)
        if self.activation:
            hidden = F.relu(hidden)
        return UpProjection(hidden, self.up.blocks(), self.up_bn, self.post_norm)

    def gated(self, weight: Tensor) -> Tensor:
        """What the normed output is multiplied by when the expert has this weight: the gate is part of it."""
        return weight if self.out_gate is None else self.out_gate * weight

    def output(self, expert: UpProjection) -> Tensor:
        """The expert's own output `[BT, N, C]`."""
        if self.gate_first:
            return self._gated_before_norm(expert)
        return mix_experts(self.gated(expert.hidden.new_ones(expert.hidden.shape[0], 1)), [expert])

    def _gated_before_norm(self, expert: UpProjection) -> Tensor:
        wide = grouped_product(expert.hidden, expert.blocks.transpose(1, 2))
        wide = wide if expert.batch_norm is None else expert.batch_norm(wide)
        wide = wide if self.out_gate is None else self.out_gate * wide
        return wide if expert.norm is None else expert.norm(wide)


class CrossExpert(Bottleneck):
    """Attends the other modality through `K` latents, then a ReLU bottleneck. `latent_tokens` start U[0, 1).

    scaled: divide the attention's products by sqrt(C), which the reference does not.
    """

    def __init__(
        self,
        channels: int,
        bottleneck: int,
        groups: int,
        latents: int,
        *,
        gate_init: float = 0.0,
        scaled: bool = False,
        **options: bool,
    ) -> None:
        super().__init__(channels, bottleneck, groups, activation=True, **options)
        self.scale = attention_scale(channels, scaled)
        self.latent_tokens = nn.Parameter(torch.rand(latents, channels))
        self.attn_gate = nn.Parameter(torch.full((1,), gate_init))

    def queries(self) -> Tensor:
        """The latents `[K, C]` as they query the context."""
        return self.scale * self.latent_tokens

    def prepare(self, x: Tensor, read: Tensor) -> UpProjection:
        """Everything but the up-projection; `read` `[BT, K, C]` is what the queries read of the context."""
        return self.bottleneck(attend_latents(x, self.latent_tokens + read, self.attn_gate, self.scale))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x`, `context` `[BT, N, C]` -> `[BT, N, C]`."""
        return self.output(self.prepare(x, read_context(self.queries(), context)))


class UniExpert(Bottleneck):
    """A linear bottleneck on one modality (the reference never calls its activation), after an optional attention.

    nonlinear: call the activation. scaled: as in the cross expert (`frame` attention is scaled in any case).

    attention: `none` (AVE, AVQA); `gated`, parameter-free over tokens (AVVP); `frame`, multi-head over all rows of
    the batch at one token place, so that frames of different clips mix (AVS v1); `latent`, as the cross expert's
    but on itself (AVS v2).
    """

    def __init__(
        self,
        channels: int,
        bottleneck: int,
        groups: int,
        *,
        attention: UniAttention = "none",
        latents: int = 32,
        gate_init: float = 0.0,
        frame_dropout: float = FRAME_DROPOUT,
        scaled: bool = False,
        nonlinear: bool = False,
        **options: bool,
    ) -> None:
        super().__init__(channels, bottleneck, groups, activation=nonlinear, **options)
        self.attention = attention
        self.scaled = scaled
        if attention == "frame":
            self.frame_attn = PackedAttention(channels, FRAME_HEADS, frame_dropout)
        if attention == "latent":
            self.latent_tokens = nn.Parameter(torch.rand(latents, channels))
        if attention in ("latent", "gated"):
            self.attn_gate = nn.Parameter(torch.full((1,), gate_init))

    def prepare(self, x: Tensor) -> UpProjection:
        """Everything but the up-projection."""
        if self.attention == "gated":
            x = mutual_attention(x, self.attn_gate, scaled=self.scaled)
        elif self.attention == "frame":
            x = over_all_rows(lambda rows: self.frame_attn(rows.transpose(0, 1)).transpose(0, 1), x)
        elif self.attention == "latent":
            x = latent_attention(x, x, self.latent_tokens, self.attn_gate, scaled=self.scaled)
        return self.bottleneck(x)

    def forward(self, x: Tensor) -> Tensor:
        """`[BT, N, C]` -> `[BT, N, C]`."""
        return self.output(self.prepare(x))


# ---- the other modality as context ----


class ContextMaps(nn.Module):
    """The other modality `[BT, M, D]` at this one's tokens and channels `[BT, N, C]`: linear maps over both axes.

    token_rank above 0 goes through that many tokens, with a channel map of channel_rank. resize: no token map; channels
    are mapped, then the square grid is resized (bicubic) to this modality's (DG-SCT's S4 copy).
    """

    def __init__(
        self,
        channels: int,
        tokens: int,
        other_channels: int,
        other_tokens: int,
        *,
        token_rank: int = 0,
        channel_rank: int = 0,
        resize: bool = False,
    ) -> None:
        super().__init__()
        self.low_rank_context = None
        self.grids: tuple[int, int] | None = None
        if resize:
            self.grids = _side(other_tokens), _side(tokens)
            self.channel_proj = nn.Linear(other_channels, channels)
        elif token_rank:
            self.low_rank_context = LowRankContext(
                other_tokens, tokens, token_rank, other_channels, channels, channel_rank
            )
        else:
            self.token_proj = nn.Linear(other_tokens, tokens)
            self.channel_proj = nn.Linear(other_channels, channels)

    def read(self, other: Tensor, queries: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """What each of the queries `[K, C]` reads of the context, `[BT, K, C]`, and the context's mean `[BT, C]`."""
        counts = [len(part) for part in queries]
        if self.reads_through_maps(sum(counts)):
            read, mean = read_through_maps(
                other, torch.cat(list(queries)), self.token_proj, self.channel_proj
            )
            return list(torch.split(read, counts, dim=1)), mean
        context = self.context(other)
        return [read_context(part, context) for part in queries], context.mean(dim=1)

    def context(self, other: Tensor) -> Tensor:
        """The other modality `[BT, M, D]` as `[BT, N, C]`: tokens and channels mapped, cheaper order first."""
        if self.low_rank_context is not None:
            return self.low_rank_context(other)  # type: ignore[no-any-return]
        if self.grids is not None:
            return _resized(self.channel_proj(other), *self.grids)
        tokens, channels = self.token_proj, self.channel_proj
        tokens_first, channels_first = self._context_costs()
        if tokens_first <= channels_first:
            return channels(map_tokens(tokens, other))  # type: ignore[no-any-return]
        # The maps commute; the token bias, equal in all channels, then meets the row sums of the channel map.
        bias = torch.outer(tokens.bias, channels.weight.sum(dim=1)) + channels.bias  # [N, C]
        narrow = F.linear(other, channels.weight).transpose(1, 2)
        return F.linear(narrow, tokens.weight).transpose(1, 2) + bias

    def reads_through_maps(self, queries: int) -> bool:
        """Whether reading through the maps takes fewer operations than making the context and reading that."""
        if self.low_rank_context is not None or self.grids is not None or not queries:
            return False
        m, n = self.token_proj.in_features, self.token_proj.out_features
        d, c = self.channel_proj.in_features, self.channel_proj.out_features
        through_maps = queries * (2 * m * d + 2 * m * n + d * c)
        return through_maps < min(self._context_costs()) + queries * 2 * n * c

    def _context_costs(self) -> tuple[int, int]:
        """Multiplications per row to make the context: with tokens mapped first, and with channels mapped first."""
        m, n = self.token_proj.in_features, self.token_proj.out_features
        d, c = self.channel_proj.in_features, self.channel_proj.out_features
        return n * d * (m + c), m * c * (d + n)


def _side(tokens: int) -> int:
    side = square_side(tokens)
    if side is None:
        raise AdapterError(
            f"{tokens} tokens form no square grid, which resizing one modality to the other's needs",
            hint="set dg_sct.context_map to linear, or use backbones with square grids",
        )
    return side


def _resized(x: Tensor, side: int, wanted: int) -> Tensor:
    """Tokens of a `side x side` grid `[BT, side^2, C]` -> `[BT, wanted^2, C]`, bicubic."""
    grid = x.transpose(1, 2).reshape(x.shape[0], -1, side, side)
    grid = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2)


# ---- the layer ----


def load_balance(probabilities: Tensor, *, uniform_target: bool = False) -> Tensor:
    """`-sum_e log mean(p_e)` of `[BT, E]` probabilities, a scalar; smallest when experts are used equally often.

    The reference means the divergence from the uniform distribution but fills its target with 1 instead of 1/E: the
    minimum is in the same place, but lies at `E log E`, and the force is `E` times as large. `uniform_target` gives
    the divergence itself, which is 0 at its minimum.
    """
    used = probabilities.mean(dim=0).log()
    return -used.mean() - math.log(used.numel()) if uniform_target else -used.sum()


class Router(nn.Module):
    """Three layers from token means to a distribution over experts."""

    def __init__(self, channels: int, experts: int, width: int = 128) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * channels, width)
        self.fc2 = nn.Linear(width, 32)
        self.fc3 = nn.Linear(32, experts)

    def forward(self, means: Tensor, logit_noise: Tensor | None = None) -> Tensor:
        """`[BT, 2C]` -> probabilities `[BT, E]`; `logit_noise` `[BT, E]` is added before the softmax."""
        logits = self.fc3(F.relu(self.fc2(F.relu(self.fc1(means)))))
        return torch.softmax(logits if logit_noise is None else logits + logit_noise, dim=-1)


class MoeOutput(NamedTuple):
    """`residual` `[BT, N, C]`; `probabilities` `[BT, E]` of the experts."""

    residual: Tensor
    probabilities: Tensor


class AvMoe(ContextMaps):
    """Brings the other modality to this one's tokens and width, routes, and adds up the experts.

    `router_noise`: standard deviation of normal noise on the router's logits in training (AVS: 0.01). `token_rank`
    above 0 brings the other modality here through that many tokens, with a channel map of `channel_rank`.
    """

    def __init__(
        self,
        channels: int,
        tokens: int,
        other_channels: int,
        other_tokens: int,
        *,
        bottleneck: int,
        groups: int = 2,
        latents: int = 32,
        cross_experts: int = 1,
        uni_experts: int = 1,
        uni_attention: UniAttention = "none",
        gate_init: float = 0.0,
        router_noise: float = 0.0,
        batch_norm: bool = False,
        pre_norm: bool = True,
        post_norm: bool = True,
        out_gate: bool = True,
        token_rank: int = 0,
        channel_rank: int = 0,
        router_width: int = 128,
        scaled_attention: bool = False,
        nonlinear_uni: bool = False,
    ) -> None:
        super().__init__(
            channels, tokens, other_channels, other_tokens, token_rank=token_rank, channel_rank=channel_rank
        )
        if cross_experts + uni_experts < 1:
            raise ValueError("an AVMoE layer needs at least one expert")
        self.router_noise = router_noise
        options = {
            "scaled": scaled_attention,
            "batch_norm": batch_norm,
            "pre_norm": pre_norm,
            "post_norm": post_norm,
            "out_gate": out_gate,
        }
        self.cross_experts = nn.ModuleList(
            CrossExpert(channels, bottleneck, groups, latents, gate_init=gate_init, **options)
            for _ in range(cross_experts)
        )
        self.uni_experts = nn.ModuleList(
            UniExpert(
                channels,
                bottleneck,
                groups,
                attention=uni_attention,
                latents=latents,
                gate_init=gate_init,
                nonlinear=nonlinear_uni,
                **options,
            )
            for _ in range(uni_experts)
        )
        self.router = Router(channels, cross_experts + uni_experts, router_width)

    def forward(self, x: Tensor, other: Tensor, noise: Tensor | None = None) -> MoeOutput:
        """Residual of `x` and the experts' probabilities.

        `noise`: standard normal draws `[BT, E]` for the router that reproduce a call; None draws them here.
        """
        if noise is None and self.training and self.router_noise > 0:
            noise = torch.randn(x.shape[0], self.router.fc3.out_features, device=x.device, dtype=x.dtype)
        cross = cast("list[CrossExpert]", list(self.cross_experts))
        uni = cast("list[UniExpert]", list(self.uni_experts))
        reads, context_mean = self.read(other, [expert.queries() for expert in cross])
        prepared = [expert.prepare(x, part) for expert, part in zip(cross, reads, strict=True)]
        prepared += [expert.prepare(x) for expert in uni]
        means = torch.cat([x.mean(dim=1), context_mean], dim=-1)
        p = self.router(means, None if noise is None else self.router_noise * noise)
        weights = [expert.gated(p[:, e]) for e, expert in enumerate((*cross, *uni))]
        return MoeOutput(mix_experts(torch.stack(weights, dim=1), prepared), p)
