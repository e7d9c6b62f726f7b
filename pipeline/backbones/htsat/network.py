"""HTS-AT, the audio network of the reference, as a stack of stages that can be walked block by block.

Tokens `[N, L, C]`, one row a window of sound. The final norm, pooling and class heads of the published network are
not used by anything here and do not exist. `LiveHtsat` offers the network to adapters inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from caeav.pipeline.backbones.htsat_blocks import HtsatBlock, PatchMerging
from caeav.pipeline.backbones.htsat.frontend import SoundConfig, SoundPicture, fill_window, round_int16


@dataclass(frozen=True)
class HtsatConfig:
    """The AudioSet network's shape; tests use smaller ones."""

    sound: SoundConfig = field(default_factory=SoundConfig)
    patch: int = 4
    channels: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8
    mlp_ratio: int = 4
    drop_path: float = 0.1


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of the picture, row by row, and a norm."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, channels, patch, stride=patch)
        self.norm = nn.LayerNorm(channels)

    def forward(self, picture: Tensor) -> Tensor:
        """`[N, 1, side, side]` -> `[N, L, C]`."""
        return self.norm(self.proj(picture).flatten(2).transpose(1, 2))  # type: ignore[no-any-return]


class HtsatStage(nn.Module):
    """Blocks on one grid, every second one shifted, and the merging that leads to the next stage."""

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
        self.picture = SoundPicture(config.sound)
        self.patches = PatchEmbedding(config.channels, config.patch)
        rates = torch.linspace(0, config.drop_path, sum(config.depths)).tolist()
        side = config.sound.picture // config.patch
        self.stages = nn.ModuleList()
        for number, depth in enumerate(config.depths):
            grid = (side >> number, side >> number)
            begin = sum(config.depths[:number])
            self.stages.append(HtsatStage(config, number, grid, rates[begin : begin + depth]))

    def embed(self, windows: Tensor, mixup: Tensor | None = None) -> Tensor:
        """Windows `[N, samples]`, repeated to the network's 10 s where shorter -> tokens entering stage 1."""
        sound = self.config.sound
        windows = round_int16(windows) if sound.int16 else windows
        windows = fill_window(windows, sound.window_s * sound.rate_hz, sound.filling)
        return self.patches(self.picture(windows, mixup))  # type: ignore[no-any-return]

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
    """One stage as adapters see it: whole blocks, tokens in and tokens out."""

    tokens: int
    channels: int
    blocks: tuple[Callable[[Tensor], Tensor], ...]
    merging: nn.Module | None

    def merge(self, x: Tensor) -> Tensor:
        """Tokens of this stage -> tokens entering the next; the last stage has no next."""
        if self.merging is None:
            raise ValueError("the last stage is not merged")
        return self.merging(x)  # type: ignore[no-any-return]


def open_stages(network: Htsat) -> tuple[LiveHtsatStage, ...]:
    """The stages of a network, in order; they share its weights."""
    return tuple(
        LiveHtsatStage(stage.tokens, stage.channels, tuple(stage.blocks), stage.merge)
        for stage in network.stages
        if isinstance(stage, HtsatStage)
    )


class LiveHtsat:
    """`Htsat` opened up for adapters inside it; inputs are windows `[BT, samples]` at `rate_hz`, or `[BT, samples, 1]`
    as the tap `audio.windows` holds them."""

    def __init__(self, network: Htsat) -> None:
        self.module = network
        self.rate_hz = network.config.sound.rate_hz
        self.stages = open_stages(network)

    def embed(self, windows: Tensor) -> Tensor:
        """Windows -> tokens entering the first stage."""
        return self.module.embed(windows.flatten(1))
