"""The AVVP head: which events of `K` classes are heard, which are seen, and in which seconds (REFERENCE section 4.2).

One group per class and modality, and one per class across both, so clip labels suffice to train it. Batch-first for any
`B`; the reference mixes the seconds of different clips and works with one clip only. Its class tokens start at zero, so
at first only the token loss tells classes apart. Frame probabilities are the clip's times an attention; see
`AvvpHeadConfig.bounded_attention` for what is odd about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import TokenBatch, TrunkOutput
from caeav.model.tasks.avvp.config import AvvpHeadConfig
from caeav.model.tasks.avvp.grouping import GroupOutput, GroupTransformer
from caeav.model.tasks.layers import ChannelNorm, TemporalStack, linear_pool
from caeav.model.tasks.probe import Probe

INIT_STD = 0.02
GATE_HEADS, GATE_LAYERS, GATE_FFN, GATE_DROPOUT = 4, 2, 8, 0.1
"""Of DG-SCT's gates: heads and layers of its encoders, their feed-forward width as a multiple of the model's."""


@dataclass(frozen=True)
class _Stack:
    width: int
    heads: int
    hidden: int
    dropout: float


class SegmentGates(nn.Module):
    """DG-SCT's gates in front of the grouping: `visual * (1 + gamma * audio_gate)` and the reverse.

    A gate in 0..1 per second comes from an LSTM and an encoder, which is half as wide as the seconds; `layers`,
    `heads`, `hidden`, `dropout` are the encoders'.
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


class MotionError(CaeavError):
    """Motion features are missing, or given to a head that has no input for them."""


class AvvpOutput(NamedTuple):
    """Probabilities: `clip_prob`, `audio_prob`, `visual_prob` `[B, K]`; `*_frame_prob` `[B, T, K]`.

    `*_token_logits` `[K, K]`: class scores of the class tokens themselves, None without such tokens. With the
    reference's attention, frame probabilities reach 1.24.
    """

    clip_prob: Tensor
    audio_prob: Tensor
    visual_prob: Tensor
    audio_frame_prob: Tensor
    visual_frame_prob: Tensor
    audio_token_logits: Tensor | None
    visual_token_logits: Tensor | None


def frame_attention(logits: Tensor, *, bounded: bool) -> Tensor:
    """How much each second carries each class: assignment logits `[B, K, T]` -> `[B, K, T]`.

    `1 + softmax over time` of the assignment (the reference; close to 1 everywhere), or, if `bounded`, the assignment
    relative to the best second.
    """
    assignment = logits.softmax(dim=1)
    return assignment / assignment.amax(dim=-1, keepdim=True) if bounded else 1 + assignment.softmax(dim=-1)


def any_of(*probabilities: Tensor) -> Tensor:
    """The probability that at least one of independent events is true; exact for small ones too."""
    whole = probabilities[0]
    for p in probabilities[1:]:
        whole = whole + p * (1 - whole)
    return whole


class AvvpHead(nn.Module):
    """Mean tokens of both modalities (and motion features) -> groups per class -> probabilities.

    `motion_channels` is 512 in the reference (R(2+1)D features per second); None builds the head without motion.
    """

    def __init__(
        self,
        visual_channels: int,
        audio_channels: int,
        classes: int,
        segments: int,
        config: AvvpHeadConfig,
        motion_channels: int | None = None,
    ) -> None:
        super().__init__()
        width = config.width
        self.bounded_attention = config.bounded_attention
        self.either_modality = config.either_modality
        self.audio_class_tokens = nn.Parameter(torch.zeros(classes, width))
        self.visual_class_tokens = nn.Parameter(torch.zeros(classes, width))
        self.audio_norm = ChannelNorm(config.input_norm, audio_channels)
        self.visual_norm = ChannelNorm(config.input_norm, visual_channels)
        self.audio_in = nn.Linear(audio_channels, width)
        self.visual_in = nn.Linear(visual_channels, width)
        self.motion_in = None if motion_channels is None else nn.Linear(motion_channels, width)
        self.visual_fuse = None if motion_channels is None else nn.Linear(2 * width, width)
        self.gates = None
        self.gated_audio = config.gated_audio
        if config.gates:
            self.gates = SegmentGates(
                width,
                heads=GATE_HEADS,
                hidden=GATE_FFN * width,
                layers=GATE_LAYERS,
                dropout=GATE_DROPOUT,
                gamma=config.gates,
            )

        def group(depth: int, other_segments: int | None = None) -> GroupTransformer:
            return GroupTransformer(
                width,
                classes,
                depth,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                drop_path=config.drop_path,
                other_segments=other_segments,
                hard_segments=config.hard_segments,
            )

        self.audio_group = group(config.audio_depth, segments)
        self.visual_group = group(config.visual_depth)
        self.cross_group = group(config.cross_depth)
        self.clip_prob = nn.Linear(width, 1)
        self.audio_prob = nn.Linear(width, 1)
        self.visual_prob = nn.Linear(width, 1)
        self.token_class = nn.Linear(width, classes)
        self.second_class = nn.Linear(width, classes) if config.own_seconds else None
        for module in self.modules():
            if isinstance(module, nn.Linear) and not config.scaled_init:
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, trunk: TrunkOutput, motion: Tensor | None = None) -> AvvpOutput:
        """Tokens `[B, T, L, C]`, `[B, T, M, D]`, motion `[B, T, F]` -> `AvvpOutput`.

        Raises `MotionError` if motion features are given to a head built without them, or missing from one with them.
        """
        audio_segments = self.audio_in(self.audio_norm(trunk.pooled_audio()))  # [B, T, d]
        visual_segments = self._fuse(self.visual_in(self.visual_norm(trunk.pooled_visual())), motion)
        if self.gates is not None:
            visual_segments, gated = self.gates(visual_segments, audio_segments)
            audio_segments = gated if self.gated_audio else audio_segments
        visual = self.visual_group(visual_segments, self.visual_class_tokens)
        audio = self.audio_group(audio_segments, self.audio_class_tokens, visual_segments)
        across = self.cross_group(audio.groups, visual.groups)
        audio_prob, audio_frames = self._seconds(self.audio_prob(audio.groups), audio)
        visual_prob, visual_frames = self._seconds(self.visual_prob(visual.groups), visual)
        clip_prob = self.clip_prob(across.groups).sigmoid().squeeze(-1)  # [B, K]
        return AvvpOutput(
            clip_prob=any_of(clip_prob, audio_prob, visual_prob) if self.either_modality else clip_prob,
            audio_prob=audio_prob,
            visual_prob=visual_prob,
            audio_frame_prob=audio_frames,
            visual_frame_prob=visual_frames,
            audio_token_logits=self.token_class(self.audio_class_tokens),
            visual_token_logits=self.token_class(self.visual_class_tokens),
        )

    def _seconds(self, clip: Tensor, grouped: GroupOutput) -> tuple[Tensor, Tensor]:
        """Logits of the groups `[B, K, 1]` -> probabilities of the clip `[B, K]` and of its seconds `[B, T, K]`."""
        if self.second_class is not None:
            seconds = (self.second_class(grouped.own) + clip.transpose(1, 2)).sigmoid()
            return linear_pool(seconds), seconds
        attention = frame_attention(grouped.logits, bounded=self.bounded_attention)
        clip = clip.sigmoid()
        return clip.squeeze(-1), (clip * attention).transpose(1, 2)

    def _fuse(self, visual: Tensor, motion: Tensor | None) -> Tensor:
        if (motion is None) != (self.motion_in is None):
            raise MotionError(
                f"the head was built {'without' if self.motion_in is None else 'with'} motion features, "
                f"the batch has {'none' if motion is None else list(motion.shape)}",
                hint="set motion_channels to the width of the features, or to None for no features",
            )
        if self.motion_in is None or self.visual_fuse is None:
            return visual
        return self.visual_fuse(torch.cat([visual, self.motion_in(motion)], dim=-1))  # type: ignore[no-any-return]


class AvvpProbe(nn.Module):
    """A probe of each modality: logits of every class in a second; clips by pooling, across modalities by either."""

    def __init__(self, visual: Probe, audio: Probe) -> None:
        super().__init__()
        self.visual, self.audio = visual, audio

    def forward(self, batch: TokenBatch) -> AvvpOutput:
        """A batch -> `AvvpOutput`."""
        seen, heard = self.visual(batch).sigmoid(), self.audio(batch).sigmoid()  # [B, T, K]
        visual, audio = linear_pool(seen), linear_pool(heard)
        return AvvpOutput(any_of(visual, audio), audio, visual, heard, seen, None, None)
