"""Linear maps of low rank, which the `lite` preset puts in place of large square ones and of token resampling.

Tokens `[BT, N, C]`, the other modality's `[BT, M, D]`, rank `r`.
"""

from __future__ import annotations

from torch import Tensor, nn

from caeav.model.adapters.layers import mix_tokens


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
