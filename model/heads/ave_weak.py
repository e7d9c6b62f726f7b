"""The head for weakly supervised AVE: seconds from labels of whole clips, by multiple instance learning.

Every second has a probability of each class being heard and of its being seen; an event is where both are high, so it
is their product. A clip's probability is a pooled one of its seconds, and all that a clip label teaches. The streams
are those of the supervised head. Shapes: `B` clips, `T` segments, `d` width, `K` foreground classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.batch import TrunkOutput
from caeav.model.heads.ave import ChannelNorm
from caeav.model.heads.config import WeakAveHeadConfig
from caeav.model.heads.temporal import TemporalAttention

Pool = Callable[[Tensor], Tensor]


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
        log_p = self.seconds.gather(-1, best).squeeze(-1).float().clamp(max=-1e-6)
        return log_p - torch.log(-torch.expm1(log_p))


def _linear(p: Tensor) -> Tensor:
    """Mean weighted by the probabilities themselves."""
    return (p * p).sum(dim=1) / p.sum(dim=1).clamp_min(1e-6)


POOLS: dict[str, Pool] = {
    "mean": lambda p: p.mean(dim=1),
    "max": lambda p: p.amax(dim=1),
    "linear": _linear,
}


class WeakAveHead(nn.Module):
    """Mean tokens of both modalities -> temporal attention -> seconds -> clip."""

    def __init__(
        self, visual_channels: int, audio_channels: int, classes: int, config: WeakAveHeadConfig
    ) -> None:
        super().__init__()
        self.pool = POOLS[config.pooling]
        self.visual_norm = ChannelNorm(config.input_norm, visual_channels)
        self.audio_norm = ChannelNorm(config.input_norm, audio_channels)
        self.temporal_attention = TemporalAttention(visual_channels, audio_channels, config)
        self.seen = nn.Linear(config.width, classes)
        self.heard = nn.Linear(config.width, classes)

    def forward(self, trunk: TrunkOutput) -> WeakLocalisation:
        """Tokens `[B, T, L, C]`, `[B, T, M, D]` -> `WeakLocalisation`."""
        visual, audio = self.visual_norm(trunk.visual.mean(dim=2)), self.audio_norm(trunk.audio.mean(dim=2))
        streams = self.temporal_attention(visual, audio)
        seconds = F.logsigmoid(self.seen(streams.visual)) + F.logsigmoid(self.heard(streams.audio))
        clip = self.pool(seconds.float().exp()).clamp(1e-6, 1 - 1e-6).log()
        return WeakLocalisation(seconds, clip)
