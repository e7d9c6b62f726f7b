"""The AVE model: a trunk of adapters and the localisation head. Its objective is `heads/ave_loss.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from caeav.model.adapters.config import AdapterConfig
from caeav.model.batch import InputSpec, TokenBatch, TrunkOutput
from caeav.model.heads.ave import AveHead
from caeav.model.heads.config import AveHeadConfig
from caeav.model.placements.build import build_trunk
from caeav.model.placements.live import Live

Modalities = Literal["both", "audio", "visual"]


class AveModelConfig(BaseModel):
    """Everything that decides the model's form.

    modalities: `audio` and `visual` are baselines: the other modality's tokens are zeroed in front of the same
    head, and all adapters are off (each of them reads the other modality or a caption of the clip).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modalities: Modalities = "both"
    adapters: AdapterConfig = AdapterConfig()
    head: AveHeadConfig = AveHeadConfig()


@dataclass
class AveOutput:
    """Logits: `event_relevance` `[B, T]`, `event_scores` and `av_score` `[B, K]`; `trunk` holds the rest."""

    event_relevance: Tensor
    event_scores: Tensor
    av_score: Tensor
    trunk: TrunkOutput


class AveModel(nn.Module):
    """Tokens of a batch in, relevance of every second and the clip's event out."""

    def __init__(
        self, spec: InputSpec, classes: Sequence[str], config: AveModelConfig, live: Live | None = None
    ) -> None:
        super().__init__()
        self.config = config
        adapters = config.adapters if config.modalities == "both" else config.adapters.off()
        self.trunk = build_trunk(spec, adapters, live)
        widths = self.trunk.visual_channels, self.trunk.audio_channels
        self.head = AveHead(*widths, len(classes), config.head)

    def forward(self, batch: TokenBatch) -> AveOutput:
        """A batch -> `AveOutput`."""
        trunk = self.trunk(batch)
        if self.config.modalities == "audio":
            trunk = replace(trunk, visual=torch.zeros_like(trunk.visual))
        elif self.config.modalities == "visual":
            trunk = replace(trunk, audio=torch.zeros_like(trunk.audio))
        found = self.head(trunk)
        return AveOutput(found.event_relevance, found.event_scores, found.av_score, trunk)


def build_ave_model(
    spec: InputSpec,
    classes: Sequence[str],
    config: AveModelConfig | None = None,
    live: Live | None = None,
) -> AveModel:
    """The model for inputs of `spec` and the foreground `classes`; raises `CaeavError` when they do not fit.

    `live`: the frozen backbones, for the inject placement only.
    """
    return AveModel(spec, classes, AveModelConfig() if config is None else config, live)
