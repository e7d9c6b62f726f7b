"""Settings of the heads. Defaults are the reference's; recipes for small inputs set smaller widths.

`FIXES` of a head: setting -> its value in the reference, its value in the revision (`model.variant`); the reasons are
in docs/VARIANTS.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class HeadConfig(BaseModel):
    """Any head's settings.

    input_norm: what is done to the tokens of both modalities (for AVE and AVVP, to their means) first; `none` as the
    reference, `batch` standardises every channel, `layer` every token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    FIXES: ClassVar[Mapping[str, tuple[Any, Any]]] = {}

    input_norm: Literal["none", "batch", "layer"] = "none"


class AveHeadConfig(HeadConfig):
    """Widths and rates of the AVE head (temporal attention and localisation).

    visual_in / audio_in: widths right after the input maps (512 / 128). width: model width (256), hidden: its
    feed-forward width (1024). gamma: how much one modality's gate lifts the other. topk_frames: seconds averaged
    for the clip score of a class; score_weight: share of that score in the event scores. interaction: let the
    streams attend each other before the localisation (off in the reference's scripts).
    """

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

    @model_validator(mode="after")
    def _check_heads(self) -> AveHeadConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} must be even and a multiple of heads {self.heads}")
        return self


class WeakAveHeadConfig(AveHeadConfig):
    """The AVE head's settings for weak labels; `topk_frames`, `score_weight` and `interaction` have no part in it.

    pooling: a clip's probability is the mean of its seconds', their maximum, or `linear`: the mean weighted by the
    probabilities themselves, which rewards sure seconds without asking for all of them. context: the supervised head's
    temporal attention in front; with it a second knows the whole clip, and clip labels teach little about seconds.
    """

    pooling: Literal["mean", "max", "linear"] = "linear"
    context: bool = False


class AvvpHeadConfig(HeadConfig):
    """Widths and rates of the AVVP head (grouping transformers of both modalities and across them).

    width: model width; heads: of every attention but the assignment, which has one. audio_depth / visual_depth /
    cross_depth: blocks in front of each grouping. drop_path: rate at which a clip skips a residual branch.
    hard_segments: assign every audio second to one visual second (the reference) instead of sharing it out.
    bounded_attention: False gives the reference's frame attention `1 + softmax over time`, always near 1.1, so that
    frame probabilities exceed 1 and seconds hardly differ; True divides by the best second instead (0..1].
    own_seconds: a second's probability comes from its own token and the clip's groups, and the modality's from its
    seconds, so that clip labels teach seconds; False leaves seconds to the assignment, as the reference. motion: read
    motion features too, the one tap of the stores whose name begins with `motion.`.
    """

    FIXES: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "bounded_attention": (False, True),
        "own_seconds": (False, True),
    }

    width: Annotated[int, Field(ge=2)] = 128
    heads: Annotated[int, Field(ge=1)] = 8
    audio_depth: Annotated[int, Field(ge=1)] = 3
    visual_depth: Annotated[int, Field(ge=1)] = 3
    cross_depth: Annotated[int, Field(ge=1)] = 6
    mlp_ratio: Annotated[int, Field(ge=1)] = 4
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    hard_segments: bool = True
    bounded_attention: bool = False
    own_seconds: bool = False
    motion: bool = False

    @model_validator(mode="after")
    def _check_heads(self) -> AvvpHeadConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class AvsHeadConfig(HeadConfig):
    """Widths and rates of the AVS head (temporal gates, TPAVI, mask decoder).

    channels: of all maps in the decoder. audio_in: width of the mapped audio. width, hidden, heads, encoder_layers,
    dropout, visual_dropout: of the temporal gates' encoders, as in `AveHeadConfig`; gamma: how much a gate lifts.
    mask_size: height and width of the mask in pixels. out_channels: the last two widths before the mask.
    rectified: as the reference, whose in-place ReLU rectifies the residual path of every decoder unit and the maps
    that the masked audio-visual losses see; False leaves both as they are. guided: the coarsest map is what CASE
    made of the picture; False takes it from before CASE, as the reference, where captions reach the mask through the
    sound alone.
    """

    FIXES: ClassVar[Mapping[str, tuple[Any, Any]]] = {"rectified": (True, False), "guided": (False, True)}

    channels: Annotated[int, Field(ge=2)] = 256
    audio_in: Annotated[int, Field(ge=1)] = 128
    width: Annotated[int, Field(ge=2)] = 256
    hidden: Annotated[int, Field(ge=1)] = 1024
    heads: Annotated[int, Field(ge=1)] = 4
    encoder_layers: Annotated[int, Field(ge=1)] = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    visual_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
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


class AvqaHeadConfig(HeadConfig):
    """Widths and rates of the AVQA head; its model width is the number of visual channels.

    heads, dropout: of the question's attention over time. match_widths: of the matching network's hidden layers.
    answer_hidden: width of a hidden layer that reads question, clip and their product; 0: the answer follows from the
    `tanh` of the product alone, as in the reference, which a narrow head learns slowly from.
    skip_padding: read the question up to its last word; False runs on over the padding, as the reference.
    pad_index: the word that pads. negatives: what a sound is to be told from; `mixed`, as the reference: every second
    is a random one of a random video, now and then of the clip's own, as the frozen backbone sees it; `batch`: another
    clip of the batch, second by second, seen through the same adapters.
    """

    FIXES: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "skip_padding": (False, True),
        "negatives": ("mixed", "batch"),
    }

    heads: Annotated[int, Field(ge=1)] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    match_widths: tuple[int, int, int] = (512, 256, 128)
    answer_hidden: Annotated[int, Field(ge=0)] = 0
    skip_padding: bool = False
    negatives: Literal["mixed", "batch"] = "mixed"
    pad_index: Annotated[int, Field(ge=0)] = 0
