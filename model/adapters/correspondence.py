"""How well audio and frames of a second belong together: one agreement, shared by every CASTE adapter.

It reads the deepest taps of the frozen backbones, as cached, so nothing that adapters do changes it. Each modality's
mean token is standardised by channel and mapped, linearly, into one space; the cosine there, scaled and shifted, is the
logit of the probability that both belong together. `loss.correspondence` teaches it (model/train/correspondence.py); in
the published method the gate of each CASTE adapter is free to learn whatever helps the task (docs/OBJECTIVES.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.layers import clip_view
from caeav.pipeline.store.record import Tap

FIRST_SCALE = 10.0


class Match(NamedTuple):
    """`visual`, `audio`: unit vectors `[B, T, P]`. A pair of them has the logit `scale * cosine + bias`."""

    visual: Tensor
    audio: Tensor
    scale: Tensor
    bias: Tensor

    def logits(self) -> Tensor:
        """Of each second's own pair, `[B, T]`."""
        return self.scale * (self.visual * self.audio).sum(dim=-1) + self.bias

    def all_logits(self) -> Tensor:
        """Of every picture with every sound of the batch, `[B * T, B * T]`, both clip by clip."""
        return self.scale * (self.visual.flatten(0, 1) @ self.audio.flatten(0, 1).t()) + self.bias


class Correspondence(nn.Module):
    """Maps both modalities' mean tokens into a space of `width` channels, where they are compared."""

    def __init__(self, visual: Tap, audio: Tap, width: int, dropout: float) -> None:
        super().__init__()
        self.visual_norm = nn.BatchNorm1d(visual.channels, affine=False)
        self.audio_norm = nn.BatchNorm1d(audio.channels, affine=False)
        self.visual_map = nn.Linear(visual.channels, width)
        self.audio_map = nn.Linear(audio.channels, width)
        self.dropout = nn.Dropout(dropout)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, visual: Tensor, audio: Tensor) -> Match:
        """Tokens `[B, T, L, C]` and `[B, T, M, D]` -> `Match`, in float32."""
        with torch.autocast(visual.device.type, enabled=False):
            return Match(
                self._project(visual, self.visual_norm, self.visual_map),
                self._project(audio, self.audio_norm, self.audio_map),
                self.log_scale.exp(),
                self.bias,
            )

    def _project(self, tokens: Tensor, norm: nn.Module, into: nn.Module) -> Tensor:
        means = tokens.float().mean(dim=2)  # [B, T, C]
        rows = into(self.dropout(norm(means.flatten(0, 1))))
        return clip_view(F.normalize(rows, dim=-1), means.shape[1])
