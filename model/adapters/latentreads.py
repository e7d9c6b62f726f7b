"""What latents read of the other modality, without bringing it to this one's tokens.

The cross experts look at the other modality `o` `[BT, M, D]` only through `K` latents `l` `[K, C]`, and the router
through a mean. Written out, each needs the context `c = (W_n o + b_n 1^T) W_c^T + 1 b_c^T`, `[BT, N, C]`; but with
the logits `l c^T` and the means `S c` the maps go to the side of the latents, `a = l W_c` `[K, D]`:

    l c^T = (a o^T) W_n^T + (a 1) b_n^T + const     (what is equal for all tokens leaves the softmax alone)
    S c   = ((S W_n) o + (S b_n) 1^T) W_c^T + 1 b_c^T                            (rows of S sum to 1)

The token map `[N, M]`, the largest matrix of the layer, then meets `2K` vectors a row instead of `min(C, D)`, and
the channel map `K` instead of `min(N, M)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _ReadThroughTokens(torch.autograd.Function):
    """`S = softmax(a W^T + s b^T)`, then `S W` and `S b`; the last row of both is the mean over the `N` tokens.

    `a` `[P, M]`, `s` `[P]`, `W` `[N, M]`, `b` `[N]` -> `[P + 1, M]`, `[P + 1]`. One product makes all of the weight's
    gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, asked: Tensor, slope: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = asked @ weight.t()  # [P, N]
        attention = torch.softmax(logits.addr_(slope, bias), dim=-1)
        shares = torch.cat([attention, attention.new_full((1, bias.shape[0]), 1 / bias.shape[0])])
        ctx.save_for_backward(asked, slope, weight, bias, shares)
        return shares @ weight, shares @ bias

    @staticmethod
    def backward(ctx: Any, d_read: Tensor, d_shift: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        asked, slope, weight, bias, shares = ctx.saved_tensors
        attention = shares[:-1]
        d_logits = (d_read[:-1] @ weight.t()).addr_(d_shift[:-1], bias)
        d_logits = torch.ops.aten._softmax_backward_data(d_logits, attention, -1, attention.dtype)
        d_weight = torch.cat([d_logits, shares]).t() @ torch.cat([asked, d_read])
        d_bias = d_logits.t() @ slope + shares.t() @ d_shift
        return d_logits @ weight, d_logits @ bias, d_weight, d_bias


def read_through_maps(
    other: Tensor, asking: Tensor, tokens: nn.Linear, channels: nn.Linear
) -> tuple[Tensor, Tensor]:
    """`softmax(asking c^T) c` and the mean of `c` over its tokens, for the context `c` of `other` `[BT, M, D]`.

    `asking` `[K, C]`, `tokens` `M -> N`, `channels` `D -> C` -> `[BT, K, C]`, `[BT, C]`.
    """
    rows, latents = other.shape[0], asking.shape[0]
    asking = asking @ channels.weight  # [K, D]
    asked = torch.matmul(asking, other.transpose(1, 2))  # [BT, K, M]
    slope = asking.sum(dim=1).repeat(rows)
    given = [part.to(asked.dtype) for part in (asked.flatten(0, 1), slope, tokens.weight, tokens.bias)]
    with torch.autocast(other.device.type, enabled=False):
        read, shift = _ReadThroughTokens.apply(*given)  # type: ignore[no-untyped-call]
    # The mean's row is the same for all rows of the batch.
    read = torch.cat([read[:-1].view(rows, latents, -1), read[-1].expand(rows, 1, -1)], dim=1)
    shift = torch.cat([shift[:-1].view(rows, latents), shift[-1].expand(rows, 1)], dim=1).unsqueeze(-1)
    seen = channels(torch.bmm(read, other.to(read.dtype)) + shift)  # [BT, K + 1, C]
    return seen[:, :-1], seen[:, -1]
