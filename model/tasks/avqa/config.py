"""Settings of the AVQA head and losses. Defaults are the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from caeav.model.adapters.config import Count, Rate
from caeav.model.tasks.config import HeadConfig, LossConfig, NotNegative, NotNegativeInt


class AvqaHeadConfig(HeadConfig):
    """Widths and rates of the AVQA head; its model width is the number of visual channels.

    heads, dropout: of the question's attention over time. match_widths: of the matching network's hidden layers.
    answer_hidden: width of a hidden layer that reads question, clip and their product; 0: the answer follows from the
    `tanh` of the product alone, as in the reference, from which a narrow head learns slowly. skip_padding: read the
    question up to its last word; False runs on over the padding, as the reference. pad_index: the word that pads.
    negatives: which frames the audio is told apart from. `mixed`, as the reference: every second is a random one of a
    random video, occasionally of the clip's own, as the frozen backbone sees it. `batch`: another clip of the batch,
    second by second, seen through the same adapters.
    """

    FIXES: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "skip_padding": (False, True),
        "negatives": ("mixed", "batch"),
    }

    heads: Count = 4
    dropout: Rate = 0.1
    match_widths: tuple[int, int, int] = (512, 256, 128)
    answer_hidden: NotNegativeInt = 0
    skip_padding: bool = False
    negatives: Literal["mixed", "batch"] = "mixed"
    pad_index: NotNegativeInt = 0


class AvqaLossConfig(LossConfig):
    """answer: weight of the answer's loss. match: of the matching of audio and frames."""

    answer: NotNegative = 1.0
    match: NotNegative = 0.5
