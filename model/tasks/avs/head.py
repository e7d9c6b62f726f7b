"""The AVS head: which pixels sound (AVSBench S4 and MS3; REFERENCE section 4.3).

Tokens of several taps become maps of one width, are gated in time, read the sound (TPAVI) and are decoded to a mask
per frame. In the reference the maps are taken *before* CASE, so that CASE reaches the mask only through the sound;
give CASE's visual tokens as the last tap and it reaches the mask directly. Any number of taps will do; the finest map
is always a quarter of the mask. `B` clips, `T` frames, `L`/`M` tokens, `C`/`D` channels, `S` mask size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.model.heads.avs_decoder import MaskDecoder
from caeav.model.heads.avs_temporal import TemporalGates
from caeav.model.heads.avs_tpavi import Tpavi
from caeav.model.tasks.heads import AvsHeadConfig
from caeav.model.heads.norm import ChannelNorm


class MapError(CaeavError):
    """Taps or a mask size that cannot be made into the maps of the decoder."""


class AvsOutput(NamedTuple):
    """`mask_logits` `[B, T, S, S]`; for the masked losses, fine to coarse, `maps` `[B, T, C, h, w]` and their sound.

    `audio` is `[B, T, C]` per map, in the map's space. The maps are rectified in the reference, see
    `AvsHeadConfig.rectified`.
    """

    mask_logits: Tensor
    maps: list[Tensor]
    audio: list[Tensor]


def token_maps(tokens: Tensor, size: int) -> Tensor:
    """Tokens of a square grid `[B, T, L, C]` -> bicubically resized tokens `[B, T, size * size, C]`."""
    clips, frames, places, channels = tokens.shape
    side = math.isqrt(places)
    if side * side != places:
        raise MapError(
            f"{places} tokens a frame are no square grid",
            hint="use taps of a visual backbone with square frames, without a class token",
        )
    if side == size:
        return tokens
    grid = tokens.reshape(clips * frames, side, side, channels).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(clips, frames, size * size, channels)


class AvsHead(MaskDecoder):
    """A mask decoder with its front: `stage_proj<i>`, `audio_in`, `temporal`, `tpavi<i>`; scale 1 is the finest."""

    def __init__(self, visual_channels: Sequence[int], audio_channels: int, config: AvsHeadConfig) -> None:
        scales = len(visual_channels)
        super().__init__(scales, config)
        if config.mask_size % (4 * 2 ** (scales - 1)):
            raise MapError(
                f"a mask of {config.mask_size} pixels does not halve evenly over {scales} maps",
                hint=f"choose a multiple of {4 * 2 ** (scales - 1)}",
            )
        self.sizes = [config.mask_size // (4 * 2**scale) for scale in range(scales)]
        self.audio_norm = ChannelNorm(config.input_norm, audio_channels)
        self.audio_in = nn.Linear(audio_channels, config.audio_in)
        self.temporal = TemporalGates(scales, config)
        for scale, channels in enumerate(visual_channels, start=1):
            self.add_module(f"stage_norm{scale}", ChannelNorm(config.input_norm, channels))
            self.add_module(f"stage_proj{scale}", nn.Linear(channels, config.channels))
            self.add_module(f"tpavi{scale}", Tpavi(config.channels, config.audio_in))

    def forward(self, taps: Sequence[Tensor], audio: Tensor) -> AvsOutput:
        """Visual taps fine to coarse `[B, T, L_i, C_i]`, audio `[B, T, M, D]` -> `AvsOutput`."""
        maps = []
        for scale, (tokens, size) in enumerate(zip(taps, self.sizes, strict=True), start=1):
            tokens = self.get_submodule(f"stage_norm{scale}")(tokens)
            maps.append(token_maps(self.get_submodule(f"stage_proj{scale}")(tokens), size))
        maps, heard = self.temporal(maps, self.audio_in(self.audio_norm(audio).mean(dim=2)))
        clips, frames = heard.shape[:2]
        grids, aligned = [], []
        for scale, (tokens, size) in enumerate(zip(maps, self.sizes, strict=True), start=1):
            tokens, sound = self.get_submodule(f"tpavi{scale}")(tokens, heard)
            grids.append(tokens.reshape(clips * frames, size, size, -1).permute(0, 3, 1, 2))
            aligned.append(sound)
        logits, seen = self.decode(grids)
        return AvsOutput(
            logits.view(clips, frames, *logits.shape[-2:]),
            [grid.view(clips, frames, *grid.shape[1:]) for grid in seen],
            aligned,
        )
