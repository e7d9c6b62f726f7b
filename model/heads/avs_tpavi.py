"""TPAVI: every place of every frame reads the sound of all frames (AVSBench; REFERENCE section 4.3).

The published layer writes an `[N, N]` matrix over all `N = T L` places of a clip (15680 squared at the finest scale)
although nothing non-linear stands between its products. The sound is the same at all places of a frame, so keys
repeat `L` times and the matrix has rank `T` at most: here every place meets `T` keys, whose values are means over
their frames. Cost `O(N C T)`, memory `O(N C)`, same numbers. `B` clips, `T` frames, `L` places, `C`/`A` channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from caeav.model.adapters.layers import TokenBatchNorm


class Tpavi(nn.Module):
    """`LN(x + BN(out_conv(attention)))`; the BN starts at zero, so the layer starts as `LN(x)`.

    Names of the parameters as in the vectors, 1x1x1 convolutions kept as matrices. `sound=False` builds the layer's
    visual-only form (keys from `x`, an option that the reference leaves off), linear as well.
    """

    def __init__(self, channels: int, audio_channels: int, *, sound: bool = True) -> None:
        super().__init__()
        inner = channels // 2
        self.audio_align = nn.Linear(audio_channels, channels) if sound else None
        self.query = nn.Linear(channels, inner)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, inner)
        self.out_conv = nn.Linear(inner, channels)
        self.out_bn = TokenBatchNorm(channels)
        self.norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.out_bn.weight)

    def forward(self, x: Tensor, audio: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`[B, T, L, C]`, `[B, T, A]` -> `[B, T, L, C]`, and the sound in the maps' space `[B, T, C]`.

        `audio` is needed unless the layer was built with `sound=False`, where it has no effect.
        """
        places = x.flatten(1, 2)  # [B, N, C]
        if self.audio_align is None:
            aligned = None
            memory = self.key(places).transpose(1, 2) @ self.value(places) / places.shape[1]  # [B, d, d]
            read = self.out_conv(self.query(places) @ memory)
        else:
            assert audio is not None, "a layer with sound needs audio"
            aligned = self.audio_align(audio)
            read = self._hear(places, aligned, x.mean(dim=2))
        return self.norm(x + self.out_bn(read).view_as(x)), aligned

    def _hear(self, places: Tensor, aligned: Tensor, frames: Tensor) -> Tensor:
        """`out_conv(query (key value^T) / N)` by way of `T` sounds: `[B, N, C]`, `[B, T, C]` twice -> `[B, N, C]`."""
        keys = self.key(aligned) / aligned.shape[1]  # [B, T, d]
        pointers = keys @ self.query.weight  # [B, T, C]; query and key of a place are never formed
        offsets = keys @ self.query.bias  # [B, T]
        values = self.value(frames) @ self.out_conv.weight.t()  # [B, T, C]
        scores = places @ pointers.transpose(1, 2) + offsets.unsqueeze(1)  # [B, N, T]
        return torch.baddbmm(self.out_conv.bias, scores, values)
