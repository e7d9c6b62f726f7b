"""HTS-AT, the audio network of the reference: a Swin transformer (V1) on mel images, walked block by block.

Written for this program and equal to the published network, whose parameter names `checkpoint.py` translates; its
final norm, pooling and class heads are not needed here and left out. `LiveHtsat` opens it for adapters inside it.
Shapes: tokens `[N, L, C]` of `N` windows of audio lie on a `height x width` grid, row by row; attention acts within
windows of `S` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.pipeline.backbones.htsat.frontend import FrontEnd, MelImage, fill_window, round_int16

MASKED = -100.0
"""What the published network adds to a logit where a shifted window joins opposite edges of the image."""


def to_windows(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """`[N, L, C]` -> `[N * windows, window^2, C]`, windows row by row."""
    rows, _, channels = x.shape
    height, width = grid
    x = x.view(rows, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Inverse of `to_windows`."""
    height, width = grid
    channels = x.shape[-1]
    x = x.view(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height * width, channels)


def relative_index(window: int) -> Tensor:
    """`[S, S]`: the row of the bias table for each query and key of a window."""
    place = torch.arange(window)
    step = place.unsqueeze(1) - place.unsqueeze(0) + window - 1  # [window, window], 0 .. 2 window - 2
    rows = step.repeat_interleave(window, 0).repeat_interleave(window, 1)
    columns = step.repeat(window, window)
    return rows * (2 * window - 1) + columns


def shift_mask(grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """`[windows, S, S]` to add to the logits: `MASKED` between tokens that were not neighbours before the shift."""

    def regions(length: int) -> Tensor:
        place = torch.arange(length)
        return (place >= length - window).long() + (place >= length - shift).long()

    region = 3 * regions(grid[0]).unsqueeze(1) + regions(grid[1]).unsqueeze(0)  # [height, width]
    windows = to_windows(region.reshape(1, -1, 1), grid, window)[..., 0]  # [windows, S]
    same = windows.unsqueeze(1) == windows.unsqueeze(2)
    return torch.zeros(same.shape).masked_fill_(~same, MASKED)


class StochasticDepth(nn.Module):
    """In training, drops a branch for a whole row with probability `rate` and scales the other rows up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`[N, ...]` -> the same shape."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        kept = x.new_empty(x.shape[0], *(1 for _ in x.shape[1:])).bernoulli_(keep)
        return x * (kept / keep)


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias per offset and head."""

    index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("index", relative_index(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Windows `[N * windows, S, C]`, `mask` `[windows, S, S]` -> the same shape."""
        count, tokens, channels = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias_table[self.index].permute(2, 0, 1)  # [heads, S, S]
        if mask is not None:
            windows = mask.shape[0]
            bias = (bias + mask.to(bias.dtype).unsqueeze(1)).repeat(count // windows, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.out(mixed.transpose(1, 2).reshape(count, tokens, channels))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """`fc_out(gelu(fc_in(x)))`."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(channels, hidden)
        self.fc_out = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, L, C]` -> `[N, L, C]`."""
        return self.fc_out(F.gelu(self.fc_in(x)))  # type: ignore[no-any-return]


class HtsatBlock(nn.Module):
    """`x + attention(norm1(x))`, then `x + mlp(norm2(x))`, in windows shifted by `shift`.

    A grid no larger than the window is one window, without a shift.
    """

    mask: Tensor | None

    def __init__(
        self,
        channels: int,
        heads: int,
        grid: tuple[int, int],
        *,
        window: int = 8,
        shift: int = 0,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if min(grid) <= window:
            window, shift = min(grid), 0
        self.grid = grid
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, mlp_ratio * channels)
        self.drop_path = StochasticDepth(drop_path)
        self.register_buffer("mask", shift_mask(grid, window, shift) if shift else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, L, C]` -> `[N, L, C]`."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor) -> Tensor:
        height, width = self.grid
        if self.shift:
            x = x.view(-1, height, width, x.shape[-1]).roll((-self.shift, -self.shift), (1, 2)).flatten(1, 2)
        x = self.attn(to_windows(x, self.grid, self.window), self.mask)
        x = from_windows(x, self.grid, self.window)
        if self.shift:
            x = x.view(-1, height, width, x.shape[-1]).roll((self.shift, self.shift), (1, 2)).flatten(1, 2)
        return x


class PatchMerging(nn.Module):
    """Joins 2x2 neighbours, normalises them, and maps them to twice the channels (norm first, as in Swin V1)."""

    def __init__(self, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, L, C]` -> `[N, L / 4, 2C]`; order of the neighbours (row, column): 00, 10, 01, 11."""
        rows, _, channels = x.shape
        height, width = self.grid
        x = x.view(rows, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(x.reshape(rows, -1, 4 * channels)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class HtsatConfig:
    """The size of a network; the defaults are the AudioSet network's."""

    front_end: FrontEnd = field(default_factory=FrontEnd)
    patch: int = 4
    channels: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8
    mlp_ratio: int = 4
    drop_path: float = 0.1


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of the image, row by row, and a norm."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, channels, patch, stride=patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        """`[N, 1, image_size, image_size]` -> `[N, L, C]`."""
        return self.norm(self.proj(image).flatten(2).transpose(1, 2))  # type: ignore[no-any-return]


class HtsatStage(nn.Module):
    """Blocks on one grid, every second one shifted, and the merging into the next stage."""

    def __init__(
        self,
        config: HtsatConfig,
        number: int,
        grid: tuple[int, int],
        drop_paths: Sequence[float],
    ) -> None:
        super().__init__()
        self.channels = config.channels * 2**number
        self.tokens = grid[0] * grid[1]
        self.blocks = nn.ModuleList(
            HtsatBlock(
                self.channels,
                config.heads[number],
                grid,
                window=config.window,
                shift=config.window // 2 if j % 2 else 0,
                mlp_ratio=config.mlp_ratio,
                drop_path=rate,
            )
            for j, rate in enumerate(drop_paths)
        )
        last = number == len(config.depths) - 1
        self.merge = None if last else PatchMerging(self.channels, grid)


class Htsat(nn.Module):
    """The whole network from waveforms to the last stage's tokens."""

    def __init__(self, config: HtsatConfig | None = None) -> None:
        super().__init__()
        self.config = config = HtsatConfig() if config is None else config
        self.image = MelImage(config.front_end)
        self.patches = PatchEmbedding(config.channels, config.patch)
        rates = torch.linspace(0, config.drop_path, sum(config.depths)).tolist()
        size = config.front_end.image_size // config.patch
        self.stages = nn.ModuleList()
        for number, depth in enumerate(config.depths):
            grid = (size >> number, size >> number)
            begin = sum(config.depths[:number])
            self.stages.append(HtsatStage(config, number, grid, rates[begin : begin + depth]))

    def embed(self, windows: Tensor, mixup: Tensor | None = None) -> Tensor:
        """Windows `[N, samples]`, repeated to the length of the network's input -> tokens entering stage 1."""
        front_end = self.config.front_end
        windows = round_int16(windows) if front_end.int16 else windows
        windows = fill_window(windows, front_end.window_s * front_end.rate_hz, front_end.filling)
        return self.patches(self.image(windows, mixup))  # type: ignore[no-any-return]

    def forward(self, windows: Tensor, mixup: Tensor | None = None) -> list[Tensor]:
        """Tokens at the end of every stage, before merging."""
        x = self.embed(windows, mixup)
        found = []
        for stage in open_stages(self):
            for block in stage.blocks:
                x = block(x)
            found.append(x)
            if stage.merging is not None:
                x = stage.merge(x)
        return found


@dataclass(frozen=True)
class LiveHtsatStage:
    """One stage as adapters use it: whole blocks, tokens in and tokens out."""

    tokens: int
    channels: int
    blocks: tuple[Callable[[Tensor], Tensor], ...]
    merging: nn.Module | None

    def merge(self, x: Tensor) -> Tensor:
        """Tokens of this stage -> tokens entering the next; raises `ValueError` for the last stage."""
        if self.merging is None:
            raise ValueError("the last stage is not merged")
        return self.merging(x)  # type: ignore[no-any-return]


def open_stages(network: Htsat) -> tuple[LiveHtsatStage, ...]:
    """The stages of a network, in order, sharing its weights."""
    return tuple(
        LiveHtsatStage(stage.tokens, stage.channels, tuple(stage.blocks), stage.merge)
        for stage in network.stages
        if isinstance(stage, HtsatStage)
    )


class LiveHtsat:
    """`Htsat` opened up for adapters inside it.

    Its input is windows `[BT, samples]` at `rate_hz`, or `[BT, samples, 1]` as the tap `audio.windows` holds them.
    """

    def __init__(self, network: Htsat) -> None:
        self.module = network
        self.rate_hz = network.config.front_end.rate_hz
        self.stages = open_stages(network)

    def embed(self, windows: Tensor) -> Tensor:
        """Windows -> tokens entering the first stage."""
        return self.module.embed(windows.flatten(1))
