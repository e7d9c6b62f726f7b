"""Settings of the AVS head, losses and metric. Defaults are the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from caeav.model.adapters.config import Count, Rate
from caeav.model.tasks.config import HeadConfig, LossConfig, MetricConfig, NotNegative


class AvsHeadConfig(HeadConfig):
    """Widths and rates of the AVS head (temporal gates, TPAVI, mask decoder).

    channels: of all maps in the decoder. audio_in: width of the mapped audio. width, hidden, heads, encoder_layers,
    dropout, visual_dropout: of the temporal gates' encoders, as in `AveHeadConfig`; gamma: how much a gate lifts.
    mask_size: height and width of the mask in pixels. out_channels: the last two widths before the mask. rectified: as
    the reference, whose in-place ReLU rectifies the residual path of every decoder unit and the maps that the masked
    audio-visual losses see; False leaves both as they are. guided: the coarsest map is the visual tokens after CASE;
    False takes them from before CASE, as the reference, where captions reach the mask only through the audio.
    """

    FIXES: ClassVar[Mapping[str, tuple[Any, Any]]] = {"rectified": (True, False), "guided": (False, True)}

    channels: Annotated[int, Field(ge=2)] = 256
    audio_in: Count = 128
    width: Annotated[int, Field(ge=2)] = 256
    hidden: Count = 1024
    heads: Count = 4
    encoder_layers: Count = 2
    dropout: Rate = 0.1
    visual_dropout: Rate = 0.2
    gamma: float = 0.05
    mask_size: Annotated[int, Field(ge=4)] = 224
    out_channels: tuple[int, int] = (128, 32)
    rectified: bool = True
    guided: bool = False

    @model_validator(mode="after")
    def _check_widths(self) -> AvsHeadConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")
        if self.channels % 2:
            raise ValueError(f"channels {self.channels} must be even")
        return self


class AvsLossConfig(LossConfig):
    """mask: weight of the loss on the pixels of annotated frames. masked: of audio against what the mask covers.
    masked_kind: by which formula (`loss.py`); a sum over frames in all but `similarity`, as in the reference."""

    mask: NotNegative = 1.0
    masked: NotNegative = 0.0
    masked_kind: Literal["similarity", "divergence", "nearest"] = "similarity"


class AvsMetricConfig(MetricConfig):
    """clips_per_call: clips that the official functions see at once. It is part of the protocol, because M_F takes the
    best threshold of a call; 1 as in the official test scripts."""

    clips_per_call: Count = 1
