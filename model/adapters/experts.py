"""The experts of AVMoE: bottlenecks with and without a look at the other modality (REFERENCE 2.12, 2.13).

Tokens `x` and context `c` are `[BT, N, C]` (the layer has already brought the other modality to this shape), `d` =
bottleneck width, `K` latents. One implementation for all tasks; what differs is an option.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.kernels.fused import WideEnd, normed_product, weighted_ends
from caeav.model.adapters.latentreads import ask_latents
from caeav.model.adapters.layers import GroupedLinear, TokenBatchNorm
from caeav.model.attention import PackedAttention

UniAttention = Literal["none", "gated", "frame", "latent"]
FRAME_HEADS = 4
FRAME_DROPOUT = 0.2


def latent_attention(
    x: Tensor, context: Tensor, latents: Tensor, gate: Tensor, *, scaled: bool = False
) -> Tensor:
    """`x + gate * softmax(x R^T) R` with `R = latents + softmax(latents c^T) c`; `scaled`: products / sqrt(C).

    `x`, `context` `[BT, N, C]`, `latents` `[K, C]` -> `[BT, N, C]`. The latents stand between the two token sets,
    so the cost is linear in both.
    """
    scale = attention_scale(x.shape[-1], scaled)
    pooled = torch.matmul(
        torch.softmax(torch.matmul(scale * latents, context.transpose(1, 2)), dim=-1), context
    )
    return ask_latents(x, latents + pooled, gate, scale=scale)


def attention_scale(channels: int, scaled: bool) -> float:
    """What attention's products are multiplied by."""
    return 1 / math.sqrt(channels) if scaled else 1.0


def mutual_attention(x: Tensor, gate: Tensor, *, scaled: bool = False) -> Tensor:
    """`x + gate * S^T x`, `S = softmax(x x^T)` over its last axis: AVVP's parameter-free attention.

    The reference contracts the row index of `S`, so the weights of one output token do not add up to 1. `scaled`
    divides the products by sqrt(C).
    """
    weights = torch.softmax(
        torch.bmm(attention_scale(x.shape[-1], scaled) * x, x.transpose(1, 2)), dim=-1
    )  # [BT, N, N]
    return torch.baddbmm(x, weights.transpose(1, 2), gate * x)


class Bottleneck(nn.Module):
    """`[pre_norm] -> down -> [BN] -> [ReLU] -> up -> [BN] -> [post_norm] -> [out_gate]`; the gate starts at 0."""

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
    ) -> None:
        super().__init__()
        self.activation = activation
        self.pre_norm = nn.LayerNorm(channels) if pre_norm else None
        self.down = GroupedLinear(channels, bottleneck, groups)
        self.down_bn = TokenBatchNorm(bottleneck) if batch_norm else None
        self.up = GroupedLinear(bottleneck, channels, groups)
        self.up_bn = TokenBatchNorm(channels) if batch_norm else None
        self.post_norm = nn.LayerNorm(channels) if post_norm else None
        self.out_gate = nn.Parameter(torch.zeros(1)) if out_gate else None

    def narrow(self, x: Tensor) -> Tensor:
        """Up to the bottleneck: `[BT, N, C]` -> `[BT, N, d]`."""
        norm = self.pre_norm
        hidden = self.down(x) if norm is None else normed_product(x, norm, self.down.blocks())
        if self.down_bn is not None:
            hidden = self.down_bn(hidden)
        return F.relu(hidden) if self.activation else hidden

    def widen(self, hidden: Tensor) -> WideEnd:
        """From the bottleneck on, not yet computed; the batch norm becomes part of the linear map."""
        blocks = self.up.blocks()
        bias = blocks.new_zeros(self.up.weight.shape[0])
        if self.up_bn is not None:
            blocks, bias = self.up_bn.fold(blocks, hidden)
        return WideEnd(hidden, blocks, bias, self.post_norm)

    def share(self, share: Tensor) -> Tensor:
        """What the expert's normed output is multiplied by when it counts `share`: the gate is part of it."""
        return share if self.out_gate is None else self.out_gate * share

    def alone(self, end: WideEnd) -> Tensor:
        """The expert's own output `[BT, N, C]`."""
        return weighted_ends(self.share(end.hidden.new_ones(end.hidden.shape[0], 1)), [end])


class CrossExpert(Bottleneck):
    """Looks at the other modality through `K` latents, then a ReLU bottleneck. `latent_tokens` start U[0, 1).

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
        self.scaled = scaled
        self.latent_tokens = nn.Parameter(torch.rand(latents, channels))
        self.attn_gate = nn.Parameter(torch.full((1,), gate_init))

    def end(self, x: Tensor, context: Tensor) -> WideEnd:
        """All but the wide end's computation, which the layer does for all experts together."""
        seen = latent_attention(x, context, self.latent_tokens, self.attn_gate, scaled=self.scaled)
        return self.widen(self.narrow(seen))

    def asking(self) -> Tensor:
        """The latents `[K, C]` as they meet the context's tokens."""
        return attention_scale(self.latent_tokens.shape[1], self.scaled) * self.latent_tokens

    def end_of_reading(self, x: Tensor, pooled: Tensor) -> WideEnd:
        """`end` for latents that have already read: `pooled` `[BT, K, C]` is `softmax(asking c^T) c`."""
        scale = attention_scale(x.shape[-1], self.scaled)
        seen = ask_latents(x, self.latent_tokens + pooled, self.attn_gate, scale=scale)
        return self.widen(self.narrow(seen))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x`, `context` `[BT, N, C]` -> `[BT, N, C]`."""
        return self.alone(self.end(x, context))


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

    def end(self, x: Tensor) -> WideEnd:
        """All but the wide end's computation, which the layer does for all experts together."""
        if self.attention == "gated":
            x = mutual_attention(x, self.attn_gate, scaled=self.scaled)
        elif self.attention == "frame":
            x = self.frame_attn(x.transpose(0, 1)).transpose(0, 1)
        elif self.attention == "latent":
            x = latent_attention(x, x, self.latent_tokens, self.attn_gate, scaled=self.scaled)
        return self.widen(self.narrow(x))

    def forward(self, x: Tensor) -> Tensor:
        """`[BT, N, C]` -> `[BT, N, C]`."""
        return self.alone(self.end(x))
