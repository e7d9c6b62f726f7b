"""The AVS head: which pixels sound (AVSBench S4 and MS3; REFERENCE section 4.3).

Tokens of several taps become maps of one width, are gated in time, read the audio (TPAVI) and are decoded to a mask per
frame. The reference takes the maps *before* CASE, so that CASE reaches the mask only through the audio; with CASE's
visual tokens as the last tap it reaches the mask directly. Any number of taps works; the finest map is always a quarter
of the mask. Maps keep the memory format they come in.

The reference's in-place ReLU adds the *rectified* input back in every unit of the decoder and rectifies the maps it was
given, which the masked audio-visual losses then see. `rectified` keeps that; False computes what the code appears to
say. `B` clips, `T` frames, `L`/`M` tokens (`L` also places of a map), `C`/`D`/`A` channels, `S` mask size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import token_mean
from caeav.model.adapters.layers import TokenBatchNorm
from caeav.model.tasks.avs.config import AvsHeadConfig
from caeav.model.tasks.layers import ChannelNorm, TemporalStack


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


class TemporalGates(nn.Module):
    """Audio lifts frames and frames lift audio: a scalar per frame and scale for the maps, one per frame for the audio.

    The encoders are those of the AVE head's temporal attention, a pair per scale, of which only the gates are used. The
    decoders that the reference builds without using them are left out.
    """

    def __init__(self, scales: int, config: AvsHeadConfig) -> None:
        super().__init__()
        width, audio_in, layers = config.width, config.audio_in, config.encoder_layers

        def stacks(in_width: int) -> nn.ModuleList:
            return nn.ModuleList(TemporalStack(in_width, layers, config) for _ in range(scales))

        def gates() -> nn.ModuleList:
            return nn.ModuleList(nn.Sequential(nn.Linear(width, 1), nn.Sigmoid()) for _ in range(scales))

        self.gamma = config.gamma
        self.visual_in = nn.ModuleList(nn.Linear(config.channels, width) for _ in range(scales))
        self.visual_dropout = nn.Dropout(config.visual_dropout)
        self.rnn = nn.ModuleList(
            nn.ModuleDict(
                {
                    "visual": nn.LSTM(width, width, batch_first=True, bidirectional=True),
                    "audio": nn.LSTM(audio_in, width // 2, batch_first=True, bidirectional=True),
                }
            )
            for _ in range(scales)
        )
        self.visual_encoder = stacks(2 * width)
        self.audio_encoder = stacks(width)
        self.visual_gate = gates()
        self.audio_gate = gates()

    def forward(self, maps: Sequence[Tensor], audio: Tensor) -> tuple[list[Tensor], Tensor]:
        """Maps `[B, T, L, C]` of every scale, audio `[B, T, A]` -> the same, lifted."""
        lifted, visual_gates = [], []
        for scale, tokens in enumerate(maps):
            visual_gate, audio_gate = self._gates(scale, tokens.mean(dim=2), audio)
            lifted.append(tokens * (1 + self.gamma * audio_gate).unsqueeze(-1))
            visual_gates.append(visual_gate)
        return lifted, audio * (1 + self.gamma * torch.stack(visual_gates).mean(dim=0))

    def _gates(self, scale: int, pooled: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, C]`, `[B, T, A]` -> both gates `[B, T, 1]`."""
        rnn = self.rnn[scale]
        assert isinstance(rnn, nn.ModuleDict)
        visual_states, _ = rnn["visual"](self.visual_dropout(F.relu(self.visual_in[scale](pooled))))
        audio_states, _ = rnn["audio"](audio)
        visual_gate = self.visual_gate[scale](self.visual_encoder[scale](visual_states))
        return visual_gate, self.audio_gate[scale](self.audio_encoder[scale](audio_states))


class Tpavi(nn.Module):
    """Every place of every frame reads the audio of all frames: `LN(x + BN(out_conv(attention)))`.

    The published layer forms an `[N, N]` matrix over all `N = T L` places of a clip (15680 squared at the finest
    scale), although nothing between its products is nonlinear. The audio is the same at all places of a frame, so keys
    repeat `L` times and the matrix has rank `T` at most: here every place meets `T` keys, whose values are means over
    their frames. Same numbers at cost `O(N C T)` and memory `O(N C)`.

    The BN starts at zero, so the layer starts as `LN(x)`. 1x1x1 convolutions are kept as matrices. `with_audio=False`
    builds the visual-only form (keys from `x`, an option that the reference leaves off), which is linear as well.
    """

    def __init__(self, channels: int, audio_channels: int, *, with_audio: bool = True) -> None:
        super().__init__()
        inner = channels // 2
        self.audio_align = nn.Linear(audio_channels, channels) if with_audio else None
        self.query = nn.Linear(channels, inner)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, inner)
        self.out_conv = nn.Linear(inner, channels)
        self.out_bn = TokenBatchNorm(channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.out_bn.weight)

    def forward(self, x: Tensor, audio: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`[B, T, L, C]`, `[B, T, A]` -> `[B, T, L, C]`, and the audio in the maps' space `[B, T, C]`.

        A layer built with `with_audio=False` ignores `audio`; any other needs it.
        """
        places = x.flatten(1, 2)  # [B, N, C]
        if self.audio_align is None:
            aligned = None
            memory = self.key(places).transpose(1, 2) @ self.value(places) / places.shape[1]  # [B, d, d]
            read = self.out_conv(self.query(places) @ memory)
        else:
            assert audio is not None, "a layer built with audio needs it"
            aligned = self.audio_align(audio)
            read = self._read_audio(places, aligned, x.mean(dim=2))
        return self.norm(x + self.out_bn(read).view_as(x)), aligned

    def _read_audio(self, places: Tensor, aligned: Tensor, frames: Tensor) -> Tensor:
        """`out_conv(query (key value^T) / N)` through `T` keys: `[B, N, C]`, `[B, T, C]` twice -> `[B, N, C]`."""
        keys = self.key(aligned) / aligned.shape[1]  # [B, T, d]
        pointers = keys @ self.query.weight  # [B, T, C]; avoids query and key of every place
        offsets = keys @ self.query.bias  # [B, T]
        values = self.value(frames) @ self.out_conv.weight.t()  # [B, T, C]
        scores = places @ pointers.transpose(1, 2) + offsets.unsqueeze(1)  # [B, N, T]
        return torch.baddbmm(self.out_conv.bias, scores, values)


class MapError(CaeavError):
    """Taps or a mask size that the decoder's maps cannot be made from."""


class AvsOutput(NamedTuple):
    """`mask_logits` `[B, T, S, S]`; for the masked losses, fine to coarse, `maps` `[B, T, C, h, w]` and their `audio`.

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
            f"{places} tokens per frame are no square grid",
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

    def forward(
        self, taps: Sequence[Tensor], audio: Tensor, audio_weights: Tensor | None = None
    ) -> AvsOutput:
        """Visual taps fine to coarse `[B, T, L_i, C_i]`, audio `[B, T, M, D]` with weights of its mean `[B, T, M]` ->
        `AvsOutput`."""
        maps = []
        for scale, (tokens, size) in enumerate(zip(taps, self.sizes, strict=True), start=1):
            tokens = self.get_submodule(f"stage_norm{scale}")(tokens)
            maps.append(token_maps(self.get_submodule(f"stage_proj{scale}")(tokens), size))
        maps, audio = self.temporal(maps, self.audio_in(token_mean(self.audio_norm(audio), audio_weights)))
        clips, frames = audio.shape[:2]
        grids, aligned = [], []
        for scale, (tokens, size) in enumerate(zip(maps, self.sizes, strict=True), start=1):
            tokens, aligned_audio = self.get_submodule(f"tpavi{scale}")(tokens, audio)
            grids.append(tokens.reshape(clips * frames, size, size, -1).permute(0, 3, 1, 2))
            aligned.append(aligned_audio)
        logits, maps = self.decode(grids)
        return AvsOutput(
            logits.view(clips, frames, *logits.shape[-2:]),
            [grid.view(clips, frames, *grid.shape[1:]) for grid in maps],
            aligned,
        )
