"""Settings of the AVE heads, losses and metric, supervised and weak. Defaults are the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from caeav.model.adapters.config import Count, Rate
from caeav.model.tasks.config import HeadConfig, LossConfig, MetricConfig, NotNegative


class AveHeadConfig(HeadConfig):
    """Widths and rates of the AVE head (temporal attention and localisation).

    visual_in, audio_in: widths right after the input maps. width: model width; hidden: its feed-forward width. gamma:
    how much one modality's gate lifts the other. topk_frames: seconds averaged for the clip score of a class;
    score_weight: weight of that score in the event scores. interaction: let the streams attend each other before the
    localisation (off in the reference's scripts). squashed_gate: DG-SCT's fourth loss (`loss.gate`) takes the gates'
    product, a probability already, as a logit, as its code does; False: the product's log odds. reads_agreement: the
    agreement that CASTE adapters share is evidence for an event in its second; without a shared one it has no effect.
    """

    FIXES: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "squashed_gate": (True, False),
        "reads_agreement": (False, True),
    }

    visual_in: Count = 512
    audio_in: Count = 128
    width: Annotated[int, Field(ge=2)] = 256
    hidden: Count = 1024
    heads: Count = 4
    encoder_layers: Count = 2
    decoder_layers: Count = 1
    dropout: Rate = 0.1
    visual_dropout: Rate = 0.2
    gamma: float = 0.1
    topk_frames: Count = 4
    score_weight: float = 0.3
    interaction: bool = False
    squashed_gate: bool = True
    reads_agreement: bool = False

    @model_validator(mode="after")
    def _check_heads(self) -> AveHeadConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")
        return self


class WeakAveHeadConfig(AveHeadConfig):
    """The same for weak labels, where `topk_frames`, `score_weight`, `interaction` and `squashed_gate` have no effect.

    pooling: a clip's probability is the mean of its seconds', their maximum, or `linear`: the mean weighted by the
    probabilities themselves, which rewards sure seconds without asking for all of them. context: put the supervised
    head's temporal attention in front; a second then knows the whole clip, and clip labels teach little about seconds.
    """

    pooling: Literal["mean", "max", "linear"] = "linear"
    context: bool = False


class AveLossConfig(LossConfig):
    """Weights of the official three losses, and of DG-SCT's fourth, on the product of the temporal gates."""

    relevance: NotNegative = 1.0
    event: NotNegative = 1.0
    score: NotNegative = 1.0
    gate: NotNegative = 0.0


class WeakAveLossConfig(LossConfig):
    """Weight of the one loss, on whole clips."""

    clip: NotNegative = 1.0


class AveMetricConfig(MetricConfig):
    """average: over all seconds, or, as the official code, over the accuracies of batches of `training.batch_size`
    clips, where a smaller last batch weighs more than its share."""

    average: Literal["seconds", "batches"] = "seconds"
