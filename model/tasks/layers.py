"""Temporal attention across modalities, trained in front of the AVE head (REFERENCE section 4.1).

Each modality passes a bidirectional LSTM and an encoder; each decodes over the other's encoding; each decoded stream
is lifted a little where the other modality's gate says so. Batch-first: `[B, T, C]` visual, `[B, T, D]` audio,
`d` = model width.

What a head does to its inputs first. Backbones differ in scale; `none` is the reference.

From seconds to the clip, where only the clip is labelled: multiple instance pooling of `[B, T, K]` to `[B, K]`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.layers import PackedAttention, TokenBatchNorm
from caeav.model.tasks.heads import AveHeadConfig

KINDS = {"none": nn.Identity, "batch": TokenBatchNorm, "layer": nn.LayerNorm}


class ChannelNorm(nn.Module):
    """Standardises every channel over the batch (`batch`) or every token over its channels (`layer`)."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.norm: nn.Module = KINDS[kind](channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` -> the same shape."""
        return self.norm(x)  # type: ignore[no-any-return]

    def again(self, x: Tensor) -> Tensor:
        """Other inputs, brought to the scale of those seen so far, from which nothing is learnt about that scale.

        Without this, inputs that only training has (negatives) would shift what scoring normalises by.
        """
        norm = self.norm
        return norm.by_running_statistics(x) if isinstance(norm, TokenBatchNorm) else norm(x)


EPS = 1e-6


def linear_pool(p: Tensor) -> Tensor:
    """Mean weighted by the probabilities themselves: rewards sure seconds without asking for all of them."""
    return (p * p).sum(dim=1) / p.sum(dim=1).clamp_min(EPS)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda p: p.mean(dim=1),
    "max": lambda p: p.amax(dim=1),
    "linear": linear_pool,
}


class TemporalOutput(NamedTuple):
    """`visual`, `audio` `[B, T, d]`; `gate` `[B, T, 1]`, the product of both gates (for reports)."""

    visual: Tensor
    audio: Tensor
    gate: Tensor


class StackSettings(Protocol):
    """What a `TemporalStack` reads of a head's settings."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def dropout(self) -> float: ...


class TemporalLayer(nn.Module):
    """Post-norm attention and feed-forward; with a memory the tokens attend `[memory ; tokens]` over time."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attn = PackedAttention(width, heads, dropout)
        self.ffn_in = nn.Linear(width, hidden)
        self.ffn_out = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """`[B, T, d]`, memory `[B, S, d]` -> `[B, T, d]`."""
        source = None if memory is None else torch.cat([memory, x], dim=1)
        x = self.norm1(x + self.dropout(self.attn(x, source)))
        hidden = self.dropout(F.relu(self.ffn_in(x)))
        return self.norm2(x + self.dropout(self.ffn_out(hidden)))  # type: ignore[no-any-return]


class TemporalStack(nn.Module):
    """An input map and `layers` equal layers: an encoder, or a decoder when given a memory.

    The layers start as copies of one another, as in the reference.
    """

    def __init__(self, in_width: int, layers: int, config: StackSettings) -> None:
        super().__init__()
        width = config.width
        self.in_proj = nn.Linear(in_width, width)
        first = TemporalLayer(width, config.heads, config.hidden, config.dropout)
        self.layers = nn.ModuleList(copy.deepcopy(first) for _ in range(layers))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """`[B, T, in_width]`, memory `[B, S, d]` -> `[B, T, d]`."""
        x = self.in_proj(x)
        for layer in self.layers:
            x = layer(x, memory)
        return x


class TemporalAttention(nn.Module):
    """Both streams in, both streams out; see the module text."""

    def __init__(self, visual_channels: int, audio_channels: int, config: AveHeadConfig) -> None:
        super().__init__()
        width = config.width
        self.gamma = config.gamma
        self.visual_in = nn.Linear(visual_channels, config.visual_in)
        self.audio_in = nn.Linear(audio_channels, config.audio_in)
        self.visual_dropout = nn.Dropout(config.visual_dropout)
        self.rnn = nn.ModuleDict(
            {
                "visual": nn.LSTM(config.visual_in, width, batch_first=True, bidirectional=True),
                "audio": nn.LSTM(config.audio_in, width // 2, batch_first=True, bidirectional=True),
            }
        )
        self.visual_encoder = TemporalStack(2 * width, config.encoder_layers, config)
        self.audio_encoder = TemporalStack(width, config.encoder_layers, config)
        self.visual_decoder = TemporalStack(2 * width, config.decoder_layers, config)
        self.audio_decoder = TemporalStack(width, config.decoder_layers, config)
        self.visual_gate = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())
        self.audio_gate = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())

    def forward(self, visual: Tensor, audio: Tensor) -> TemporalOutput:
        """`[B, T, C]`, `[B, T, D]` -> `[B, T, d]` each."""
        seen, _ = self.rnn["visual"](self.visual_dropout(F.relu(self.visual_in(visual))))  # [B, T, 2d]
        heard, _ = self.rnn["audio"](self.audio_in(audio))  # [B, T, d]
        visual_memory, audio_memory = self.visual_encoder(seen), self.audio_encoder(heard)
        visual_gate, audio_gate = self.visual_gate(visual_memory), self.audio_gate(audio_memory)
        visual_out = self.visual_decoder(seen, audio_memory)
        audio_out = self.audio_decoder(heard, visual_memory)
        return TemporalOutput(
            visual=visual_out * (1 + self.gamma * audio_gate),
            audio=audio_out * (1 + self.gamma * visual_gate),
            gate=audio_gate * visual_gate,
        )
