"""The head for weakly supervised AVE: seconds from labels of whole clips, by multiple instance learning.

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
from caeav.model.tasks.heads import WeakAveHeadConfig
from caeav.model.heads.norm import ChannelNorm
from caeav.model.heads.pooling import POOLS
from caeav.model.tasks.layers import TemporalAttention

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
