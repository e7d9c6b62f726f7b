"""Temporal gates of the AVS head: sound lifts frames, frames lift sound (REFERENCE section 4.3).

The encoders of the AVE head's temporal attention, one pair a scale, of which only the gates are used; the decoders
that the reference carries along without any effect are left out. `B` clips, `T` frames, `L` places, `C`/`A` channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.tasks.heads import AvsHeadConfig
from caeav.model.tasks.layers import TemporalStack


class TemporalGates(nn.Module):
    """One scalar a frame and scale for the maps, one a frame (mean over scales) for the sound."""

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
        lifted, votes = [], []
        for scale, tokens in enumerate(maps):
            visual_gate, audio_gate = self._gates(scale, tokens.mean(dim=2), audio)
            lifted.append(tokens * (1 + self.gamma * audio_gate).unsqueeze(-1))
            votes.append(visual_gate)
        return lifted, audio * (1 + self.gamma * torch.stack(votes).mean(dim=0))

    def _gates(self, scale: int, pooled: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, C]`, `[B, T, A]` -> both gates `[B, T, 1]`."""
        rnn = self.rnn[scale]
        assert isinstance(rnn, nn.ModuleDict)
        seen, _ = rnn["visual"](self.visual_dropout(F.relu(self.visual_in[scale](pooled))))
        heard, _ = rnn["audio"](audio)
        visual_gate = self.visual_gate[scale](self.visual_encoder[scale](seen))
        return visual_gate, self.audio_gate[scale](self.audio_encoder[scale](heard))
