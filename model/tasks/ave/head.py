"""The AVE head: in which seconds an event is both seen and heard, and which event it is (REFERENCE section 4.1).

Batch-first: streams `[B, T, d]`, `K` foreground classes; background is the absence of relevance, not a class.

The head for weakly supervised AVE: seconds from labels of whole clips, by multiple instance learning.

Every second has a probability of each class being heard and of its being seen; an event is where both are high, so it
is their product. A clip's probability is a pooled one of its seconds, and all that a clip label teaches. A second
speaks for itself unless the streams of the supervised head are asked for.
Shapes: `B` clips, `T` segments, `d` width, `K` foreground classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.batch import TrunkOutput
from caeav.model.adapters.layers import PackedAttention
from caeav.model.tasks.heads import AveHeadConfig, WeakAveHeadConfig
from caeav.model.tasks.layers import POOLS, ChannelNorm, TemporalAttention

LOG_ONE = -1e-6
"""Log probabilities are kept below this, so that their complement has a logarithm."""


class WeakLocalisation(NamedTuple):
    """Log probabilities: `seconds` `[B, T, K]`, `clip` `[B, K]`."""

    seconds: Tensor
    clip: Tensor

    @property
    def event_scores(self) -> Tensor:
        """`[B, K]`: the clip's event is the class with the highest one."""
        return self.clip

    @property
    def event_relevance(self) -> Tensor:
        """Logits `[B, T]` of the clip's event being there now: above 0 where its probability exceeds one half."""
        best = self.clip.argmax(dim=-1)[:, None, None].expand(-1, self.seconds.shape[1], 1)
        log_p = self.seconds.gather(-1, best).squeeze(-1).float().clamp(max=LOG_ONE)
        return log_p - torch.log(-torch.expm1(log_p))


class OwnSeconds(nn.Module):
    """Both modalities' means `[B, T, C]`, `[B, T, D]` -> `[B, T, d]` each, every second by itself."""

    def __init__(self, visual_channels: int, audio_channels: int, config: WeakAveHeadConfig) -> None:
        super().__init__()
        self.visual_in = nn.Linear(visual_channels, config.width)
        self.audio_in = nn.Linear(audio_channels, config.width)
        self.dropout = nn.Dropout(config.visual_dropout)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return self.dropout(F.relu(self.visual_in(visual))), self.dropout(F.relu(self.audio_in(audio)))


class WeakAveHead(nn.Module):
    """Mean tokens of both modalities -> streams -> seconds -> clip."""

    def __init__(
        self, visual_channels: int, audio_channels: int, classes: int, config: WeakAveHeadConfig
    ) -> None:
        super().__init__()
        self.pool = POOLS[config.pooling]
        self.visual_norm = ChannelNorm(config.input_norm, visual_channels)
        self.audio_norm = ChannelNorm(config.input_norm, audio_channels)
        streams = TemporalAttention if config.context else OwnSeconds
        self.streams = streams(visual_channels, audio_channels, config)
        self.seen = nn.Linear(config.width, classes)
        self.heard = nn.Linear(config.width, classes)

    def forward(self, trunk: TrunkOutput) -> WeakLocalisation:
        """Tokens `[B, T, L, C]`, `[B, T, M, D]` -> `WeakLocalisation`."""
        visual, audio = self.visual_norm(trunk.visual.mean(dim=2)), self.audio_norm(trunk.audio.mean(dim=2))
        visual, audio = self.streams(visual, audio)[:2]
        seconds = F.logsigmoid(self.seen(visual)) + F.logsigmoid(self.heard(audio))
        clip = self.pool(seconds.float().exp()).clamp(1e-6, 1 - 1e-6).log()
        return WeakLocalisation(seconds, clip)


INTER_WEIGHT_DROPOUT = 0.2
INTER_DROPOUT = 0.1


class Localisation(NamedTuple):
    """Logits: `event_relevance` `[B, T]`, `event_scores` `[B, K]`, `av_score` `[B, K]`; streams `[B, T, d]`."""

    event_relevance: Tensor
    event_scores: Tensor
    av_score: Tensor
    visual: Tensor
    audio: Tensor


class Interaction(nn.Module):
    """`LN(p + dropout(attention(p, both streams over time)))` with `p` the product of both streams."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = PackedAttention(width, heads, INTER_WEIGHT_DROPOUT)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(INTER_DROPOUT)

    def forward(self, product: Tensor, both: Tensor) -> Tensor:
        """`[B, T, d]`, `[B, 2T, d]` -> `[B, T, d]`."""
        return self.norm(product + self.dropout(self.attn(product, both)))  # type: ignore[no-any-return]


class LocalisationHead(nn.Module):
    """Relevance of every second, and event scores of the clip.

    Class scores of each stream average the `topk_frames` best seconds of each class; the clip's event scores come
    from the maximum over time of the mean stream, plus a share of those.
    """

    def __init__(self, classes: int, config: AveHeadConfig) -> None:
        super().__init__()
        width = config.width
        self.topk_frames = config.topk_frames
        self.score_weight = config.score_weight
        self.visual_frame_class = nn.Linear(width, classes)
        self.audio_frame_class = nn.Linear(width, classes)
        self.inter_visual = Interaction(width, config.heads) if config.interaction else None
        self.inter_audio = Interaction(width, config.heads) if config.interaction else None
        self.event_relevance = nn.Linear(width, 1)
        self.event_class = nn.Linear(width, classes)

    def forward(self, visual: Tensor, audio: Tensor) -> Localisation:
        """`[B, T, d]` each -> `Localisation`."""
        av_score = (
            self._score(self.visual_frame_class(visual)) + self._score(self.audio_frame_class(audio))
        ) / 2
        if self.inter_visual is not None and self.inter_audio is not None:
            product = visual * audio
            visual, audio = (
                self.inter_visual(product, torch.cat([audio, visual], dim=1)),
                self.inter_audio(product, torch.cat([visual, audio], dim=1)),
            )
        fused = (visual + audio) / 2
        event_scores = self.event_class(fused.amax(dim=1)) + self.score_weight * av_score
        return Localisation(self.event_relevance(fused)[..., 0], event_scores, av_score, visual, audio)

    def _score(self, frames: Tensor) -> Tensor:
        best = frames.topk(min(self.topk_frames, frames.shape[1]), dim=1).values
        return best.mean(dim=1)


class AveHead(nn.Module):
    """Mean tokens of both modalities -> temporal attention -> localisation."""

    def __init__(
        self, visual_channels: int, audio_channels: int, classes: int, config: AveHeadConfig
    ) -> None:
        super().__init__()
        self.visual_norm = ChannelNorm(config.input_norm, visual_channels)
        self.audio_norm = ChannelNorm(config.input_norm, audio_channels)
        self.temporal_attention = TemporalAttention(visual_channels, audio_channels, config)
        self.localisation = LocalisationHead(classes, config)

    def forward(self, trunk: TrunkOutput) -> Localisation:
        """Tokens `[B, T, L, C]`, `[B, T, M, D]` -> `Localisation`."""
        visual, audio = self.visual_norm(trunk.visual.mean(dim=2)), self.audio_norm(trunk.audio.mean(dim=2))
        streams = self.temporal_attention(visual, audio)
        return self.localisation(streams.visual, streams.audio)  # type: ignore[no-any-return]
