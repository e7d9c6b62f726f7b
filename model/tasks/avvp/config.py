"""Settings of the AVVP head, losses and metric. Defaults are the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from caeav.model.adapters.config import Count, Rate
from caeav.model.tasks.config import HeadConfig, LossConfig, MetricConfig, NotNegative, Share

VISUAL_KEEP = 0.9
THRESHOLD = 0.5


class AvvpHeadConfig(HeadConfig):
    """Widths and rates of the AVVP head (grouping transformers of both modalities and across them).

    width: model width; heads: of every attention except the assignment, which has one. audio_depth, visual_depth,
    cross_depth: blocks before each grouping. drop_path: rate at which a clip skips a residual branch.
    hard_segments: assign every audio second to one visual second (the reference) instead of sharing it out.
    bounded_attention: False gives the reference's frame attention `1 + softmax over time`, always near 1.1, so that
    frame probabilities exceed 1 and seconds hardly differ; True divides by the best second instead (0..1].
    own_seconds: a second's probability comes from its own token and the clip's groups, and the modality's from its
    seconds, so that clip labels teach seconds; False leaves seconds to the assignment, as the reference.
    either_modality: an event is in the clip if it is heard, or seen, or found across both, so that a clip's label
    need not hold in each modality; False asks the groups across both alone, as the reference. scaled_init: linear
    maps start at the scale of their inputs' number, as torch's own; False starts them at a deviation of 0.02, as
    the reference, two fifths of that scale at its width of 128. mlp_ratio: hidden width over `width`. motion: also
    read motion features, from the one tap of the stores whose name begins with `motion.`. gates: in front of the
    grouping, each modality's seconds lift the other's by up to this much (DG-SCT: 0.05; 0: none). gated_audio: the
    audio goes on as lifted; False drops that, as DG-SCT.
    """

    FIXES: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "bounded_attention": (False, True),
        "own_seconds": (False, True),
        "either_modality": (False, True),
        "scaled_init": (False, True),
        "gated_audio": (False, True),
    }

    width: Annotated[int, Field(ge=2)] = 128
    heads: Count = 8
    audio_depth: Count = 3
    visual_depth: Count = 3
    cross_depth: Count = 6
    mlp_ratio: Count = 4
    drop_path: Rate = 0.1
    hard_segments: bool = True
    bounded_attention: bool = False
    own_seconds: bool = False
    either_modality: bool = False
    scaled_init: bool = False
    motion: bool = False
    gates: Annotated[float, Field(ge=0)] = 0.0
    gated_audio: bool = False

    @model_validator(mode="after")
    def _check_heads(self) -> AvvpHeadConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class AvvpLossConfig(LossConfig):
    """Weights of the official five losses, and label smoothing.

    clip: of the clip's labels. audio, visual: of each modality's. audio_token, visual_token: of the class tokens
    telling their classes apart. audio_keep, visual_keep: how much of a clip label is kept for that modality. A keep of
    `s` turns a clip label `y` into `s y + (1 - s) / 2` for that modality, because an event that is heard need not be
    seen.
    """

    clip: NotNegative = 1.0
    audio: NotNegative = 1.0
    visual: NotNegative = 1.0
    audio_token: NotNegative = 1.0
    visual_token: NotNegative = 1.0
    audio_keep: Share = 1.0
    visual_keep: Share = VISUAL_KEEP


class AvvpMetricConfig(MetricConfig):
    """threshold: the probability from which an event counts as present, for clips and for seconds."""

    threshold: Annotated[float, Field(gt=0, lt=1)] = THRESHOLD
