"""The AVE heads: in which seconds an event is both seen and heard, and which event it is (REFERENCE section 4.1).

`AveHead` learns from labels of seconds, `WeakAveHead` from labels of whole clips. Both turn the mean tokens of each
modality into streams `[B, T, d]`. `K` foreground classes; background is the absence of relevance, not a class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from caeav.model.adapters.batch import TokenBatch, TrunkOutput
from caeav.model.adapters.layers import PackedAttention
from caeav.model.tasks.ave.config import AveHeadConfig, WeakAveHeadConfig
from caeav.model.tasks.layers import POOLS, ChannelNorm, TemporalStack
from caeav.model.tasks.probe import Probe

INTER_WEIGHT_DROPOUT = 0.2
INTER_DROPOUT = 0.1
GATE_EPS = 1e-6
LOG_ONE = -1e-6
"""Upper bound of log probabilities, so that their complement has a logarithm."""


class TemporalOutput(NamedTuple):
    """`visual`, `audio` `[B, T, d]`; `gate` `[B, T, 1]`, the product of both gates."""

    visual: Tensor
    audio: Tensor
    gate: Tensor


class TemporalAttention(nn.Module):
    """Each modality attends the other over time.

    Each passes a bidirectional LSTM and an encoder and decodes over the other's encoding; each decoded stream is lifted
    a little where the other modality's gate says so.
    """

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
        visual_states, _ = self.rnn["visual"](
            self.visual_dropout(F.relu(self.visual_in(visual)))
        )  # [B, T, 2d]
        audio_states, _ = self.rnn["audio"](self.audio_in(audio))  # [B, T, d]
        visual_memory, audio_memory = self.visual_encoder(visual_states), self.audio_encoder(audio_states)
        visual_gate, audio_gate = self.visual_gate(visual_memory), self.audio_gate(audio_memory)
        visual_out = self.visual_decoder(visual_states, audio_memory)
        audio_out = self.audio_decoder(audio_states, visual_memory)
        return TemporalOutput(
            visual=visual_out * (1 + self.gamma * audio_gate),
            audio=audio_out * (1 + self.gamma * visual_gate),
            gate=audio_gate * visual_gate,
        )


class Localisation(NamedTuple):
    """Logits: `event_relevance` `[B, T]`, `event_scores` `[B, K]`, `av_score` `[B, K]`, of the temporal gates `gate`
    `[B, T]` (None without them); streams `[B, T, d]`."""

    event_relevance: Tensor
    event_scores: Tensor
    av_score: Tensor
    visual: Tensor
    audio: Tensor
    gate: Tensor | None = None


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

    Class scores of each stream average the `topk_frames` best seconds of each class. The clip's event scores come from
    the maximum over time of the mean stream, plus `score_weight` times those.
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


class AgreementEvidence(nn.Module):
    """`scale * logit + shift` of the trunk's shared agreement; starts as that logit itself.

    No gradient reaches the agreement, which `loss.correspondence` teaches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, trunk: TrunkOutput) -> Tensor:
        """The output of a trunk that shares an agreement -> logits `[B, T]`."""
        assert trunk.match is not None
        return self.scale * trunk.match.logits().detach() + self.shift


class AveHead(nn.Module):
    """Mean tokens of both modalities -> temporal attention -> localisation.

    `agreement`: the trunk's shared agreement is evidence for the relevance of a second, added to its logit.
    """

    def __init__(
        self,
        visual_channels: int,
        audio_channels: int,
        classes: int,
        config: AveHeadConfig,
        *,
        agreement: bool = False,
    ) -> None:
        super().__init__()
        self.visual_norm = ChannelNorm(config.input_norm, visual_channels)
        self.audio_norm = ChannelNorm(config.input_norm, audio_channels)
        self.squashed_gate = config.squashed_gate
        self.temporal_attention = TemporalAttention(visual_channels, audio_channels, config)
        self.localisation = LocalisationHead(classes, config)
        self.agreement = AgreementEvidence() if agreement else None

    def forward(self, trunk: TrunkOutput) -> Localisation:
        """Tokens `[B, T, L, C]`, `[B, T, M, D]` -> `Localisation`."""
        visual, audio = self.visual_norm(trunk.pooled_visual()), self.audio_norm(trunk.pooled_audio())
        streams = self.temporal_attention(visual, audio)
        found: Localisation = self.localisation(streams.visual, streams.audio)
        if self.agreement is not None:
            found = found._replace(event_relevance=found.event_relevance + self.agreement(trunk))
        gate = streams.gate.squeeze(-1)
        return found._replace(gate=gate if self.squashed_gate else torch.logit(gate.float(), eps=GATE_EPS))


class WeakLocalisation(NamedTuple):
    """Log probabilities: `seconds` `[B, T, K]`, `clip` `[B, K]`; `agreement`: logits `[B, T]`, if the head reads it."""

    seconds: Tensor
    clip: Tensor
    agreement: Tensor | None = None

    @property
    def event_scores(self) -> Tensor:
        """`[B, K]`: the clip's event is the class with the highest score."""
        return self.clip

    @property
    def event_relevance(self) -> Tensor:
        """Logits `[B, T]` of the clip's event in each second: above 0 where its probability exceeds one half.

        The agreement, independent evidence for an event, is added: clip labels teach probabilities of seconds that are
        too low, whose order is right.
        """
        best = self.clip.argmax(dim=-1)[:, None, None].expand(-1, self.seconds.shape[1], 1)
        log_p = self.seconds.gather(-1, best).squeeze(-1).float().clamp(max=LOG_ONE)
        own = log_p - torch.log(-torch.expm1(log_p))
        return own if self.agreement is None else own + self.agreement


class OwnSeconds(nn.Module):
    """Maps the means of both modalities, every second by itself."""

    def __init__(self, visual_channels: int, audio_channels: int, config: WeakAveHeadConfig) -> None:
        super().__init__()
        self.visual_in = nn.Linear(visual_channels, config.width)
        self.audio_in = nn.Linear(audio_channels, config.width)
        self.dropout = nn.Dropout(config.visual_dropout)

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, T, C]`, `[B, T, D]` -> `[B, T, d]` each."""
        return self.dropout(F.relu(self.visual_in(visual))), self.dropout(F.relu(self.audio_in(audio)))


class WeakAveHead(nn.Module):
    """Seconds from labels of whole clips, by multiple instance learning.

    Every second has a probability of each class being heard and of its being seen; an event is where both are high, so
    its probability is their product. A clip's probability is pooled from its seconds, and only that is trained.
    `agreement`: the trunk's shared one is evidence when seconds are decided; training does not read it.
    """

    def __init__(
        self,
        visual_channels: int,
        audio_channels: int,
        classes: int,
        config: WeakAveHeadConfig,
        *,
        agreement: bool = False,
    ) -> None:
        super().__init__()
        self.pool = POOLS[config.pooling]
        self.visual_norm = ChannelNorm(config.input_norm, visual_channels)
        self.audio_norm = ChannelNorm(config.input_norm, audio_channels)
        streams = TemporalAttention if config.context else OwnSeconds
        self.streams = streams(visual_channels, audio_channels, config)
        self.seen = nn.Linear(config.width, classes)
        self.heard = nn.Linear(config.width, classes)
        self.reads_agreement = agreement

    def forward(self, trunk: TrunkOutput) -> WeakLocalisation:
        """Tokens `[B, T, L, C]`, `[B, T, M, D]` -> `WeakLocalisation`."""
        visual, audio = self.visual_norm(trunk.pooled_visual()), self.audio_norm(trunk.pooled_audio())
        visual, audio = self.streams(visual, audio)[:2]
        seconds = F.logsigmoid(self.seen(visual)) + F.logsigmoid(self.heard(audio))
        found = pooled_seconds(seconds, self.pool)
        if not self.reads_agreement or trunk.match is None:
            return found
        return found._replace(agreement=trunk.match.logits().detach())


def pooled_seconds(seconds: Tensor, pool: Callable[[Tensor], Tensor]) -> WeakLocalisation:
    """Log probabilities of seconds `[B, T, K]` with those of the clip."""
    return WeakLocalisation(seconds, pool(seconds.float().exp()).clamp(1e-6, 1 - 1e-6).log())


class AveProbe(nn.Module):
    """A probe's `K + 1` numbers per second: scores of the classes, then relevance; the clip's scores are means."""

    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe

    def forward(self, batch: TokenBatch) -> Localisation:
        """A batch -> `Localisation`, whose streams are the numbers themselves."""
        seconds = self.probe(batch)  # [B, T, K + 1]
        classes, relevance = seconds[..., :-1].mean(dim=1), seconds[..., -1]
        return Localisation(relevance, classes, classes, seconds, seconds)


class WeakAveProbe(nn.Module):
    """A probe's numbers as logits of every class being both seen and heard in a second."""

    def __init__(self, probe: Probe, pooling: str) -> None:
        super().__init__()
        self.probe, self.pool = probe, POOLS[pooling]

    def forward(self, batch: TokenBatch) -> WeakLocalisation:
        """A batch -> `WeakLocalisation`."""
        return pooled_seconds(F.logsigmoid(self.probe(batch)), self.pool)
