"""DG-SCT's temporal gates in front of the AVVP grouping: each modality lifts the other's seconds a little."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from caeav.model.tasks.layers import TemporalStack


@dataclass(frozen=True)
class _Stack:
    width: int
    heads: int
    hidden: int
    dropout: float


class SegmentGates(nn.Module):
    """`visual * (1 + gamma * audio_gate)` and the reverse; a gate in 0..1 per second, from an LSTM and an encoder.

    The encoders are half as wide as the seconds; `layers`, `heads`, `hidden`, `dropout` are theirs.
    """

    def __init__(
        self, width: int, *, heads: int, hidden: int, layers: int, dropout: float, gamma: float
    ) -> None:
        super().__init__()
        self.gamma = gamma
        half = width // 2
        stack = _Stack(half, heads, hidden, dropout)
        self.rnn = nn.ModuleDict(
            {name: nn.LSTM(width, half, batch_first=True, bidirectional=True) for name in ("visual", "audio")}
        )
        self.visual_encoder = TemporalStack(width, layers, stack)
        self.audio_encoder = TemporalStack(width, layers, stack)
        self.visual_gate = nn.Sequential(nn.Linear(half, 1), nn.Sigmoid())
        self.audio_gate = nn.Sequential(nn.Linear(half, 1), nn.Sigmoid())

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, d]` each -> the same, lifted."""
        visual_gate = self.visual_gate(self.visual_encoder(self.rnn["visual"](visual)[0]))
        audio_gate = self.audio_gate(self.audio_encoder(self.rnn["audio"](audio)[0]))
        return visual * (1 + self.gamma * audio_gate), audio * (1 + self.gamma * visual_gate)
