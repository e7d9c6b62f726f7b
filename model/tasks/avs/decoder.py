"""The mask decoder of the AVS head: maps from coarse to fine, then the mask (REFERENCE section 4.3).

Maps are `[N, C, H, W]` and keep the memory format they come in. The reference's in-place ReLU adds the *rectified*
input back in every unit and rectifies the maps it was given, which the masked audio-visual losses then see. `rectified`
keeps that; False computes what the code appears to say.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.tasks.avs.config import AvsHeadConfig


class ResidualUnit(nn.Module):
    """`conv2(relu(conv1(relu(x)))) + x`, or `+ relu(x)` when `rectified`."""

    def __init__(self, channels: int, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> the same shape."""
        active = F.relu(x)
        changed = self.conv2(F.relu(self.conv1(active)))
        return changed + (active if self.rectified else x)  # type: ignore[no-any-return]


class FusionBlock(nn.Module):
    """Adds a finer map to a coarse one and doubles its size; the coarsest block has no finer map (`skip=False`)."""

    def __init__(self, channels: int, *, skip: bool = True, rectified: bool = True) -> None:
        super().__init__()
        self.skip_unit = ResidualUnit(channels, rectified) if skip else None
        self.out_unit = ResidualUnit(channels, rectified)

    def forward(self, coarse: Tensor, finer: Tensor | None = None) -> Tensor:
        """`[N, C, H, W]` both -> `[N, C, 2H, 2W]`."""
        if self.skip_unit is not None and finer is not None:
            coarse = coarse + self.skip_unit(finer)
        fused = self.out_unit(coarse)
        return F.interpolate(fused, scale_factor=2, mode="bilinear", align_corners=True)


class MaskOutput(nn.Module):
    """Three convolutions and a doubling from the finest map to mask logits."""

    def __init__(self, channels: int, first: int, second: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv3 = nn.Conv2d(second, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> `[N, 1, 2H, 2W]`."""
        x = F.interpolate(self.conv1(x), scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv3(F.relu(self.conv2(x)))  # type: ignore[no-any-return]


class MaskDecoder(nn.Module):
    """`fuse<n>` (coarsest) to `fuse1`, then `out`. The mask has four times the size of map 1."""

    def __init__(self, scales: int, config: AvsHeadConfig) -> None:
        super().__init__()
        self.scales = scales
        self.rectified = config.rectified
        for scale in range(1, scales + 1):
            block = FusionBlock(config.channels, skip=scale < scales, rectified=config.rectified)
            self.add_module(f"fuse{scale}", block)
        self.out = MaskOutput(config.channels, *config.out_channels)

    def decode(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Maps fine to coarse, each half the size of the one before -> mask logits `[N, 1, 4H, 4W]`.

        Also the maps for the masked audio-visual losses: rectified in the reference.
        """
        x = maps[-1]
        for scale in range(self.scales, 0, -1):
            finer = maps[scale - 1] if scale < self.scales else None
            x = self.get_submodule(f"fuse{scale}")(x, finer)
        return self.out(x), [F.relu(m) for m in maps] if self.rectified else list(maps)
