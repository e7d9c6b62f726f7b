"""Settings of the heads. Defaults are the reference's; recipes for small inputs set smaller widths."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AveHeadConfig(BaseModel):
    """Widths and rates of the AVE head (temporal attention and localisation).

    visual_in / audio_in: widths right after the input maps (512 / 128). width: model width (256), hidden: its
    feed-forward width (1024). gamma: how much one modality's gate lifts the other. topk_frames: seconds averaged
    for the clip score of a class; score_weight: share of that score in the event scores. interaction: let the
    streams attend each other before the localisation (off in the reference's scripts). input_norm: what is done to
    the mean tokens first; `none` as the reference, `batch` standardises every channel, `layer` every segment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    visual_in: Annotated[int, Field(ge=1)] = 512
    audio_in: Annotated[int, Field(ge=1)] = 128
    width: Annotated[int, Field(ge=2)] = 256
    hidden: Annotated[int, Field(ge=1)] = 1024
    heads: Annotated[int, Field(ge=1)] = 4
    encoder_layers: Annotated[int, Field(ge=1)] = 2
    decoder_layers: Annotated[int, Field(ge=1)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    visual_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    gamma: float = 0.1
    topk_frames: Annotated[int, Field(ge=1)] = 4
    score_weight: float = 0.3
    interaction: bool = False
    input_norm: Literal["none", "batch", "layer"] = "none"

    @model_validator(mode="after")
    def _check_heads(self) -> AveHeadConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")
        return self
