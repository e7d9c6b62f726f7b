"""YAMNet's network: one convolution, then 13 depthwise separable ones (MobileNet v1), over log-mel patches.

Batch norms are folded into the convolutions, as they are in a frozen network. Padding is TensorFlow's `SAME`: where a
step of 2 meets an even size, one row and column of zeros at the far ends only. ReLU, not ReLU6.
Shapes: `N` patches of 96 frames by 64 bands; maps `[N, C, frames, bands]`.

| after layer | map | channels |
|---|---|---|
| 4 | 24 x 16 | 128 |
| 6 | 12 x 8 | 256 |
| 12 | 6 x 4 | 512 |
| 14 | 3 x 2 | 1024 |
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.pipeline.backbones.yamnet.frontend import MELS, LogMel

CLASSES = 521
LAYERS: dict[int, tuple[int, int]] = {
    1: (32, 2),
    2: (64, 1),
    3: (128, 2),
    4: (128, 1),
    5: (256, 2),
    6: (256, 1),
    7: (512, 2),
    **dict.fromkeys(range(8, 13), (512, 1)),
    13: (1024, 2),
    14: (1024, 1),
}
"""Layer -> its channels and its step."""
TAPPED = {4: 24 * 16, 6: 12 * 8, 12: 6 * 4, 14: 3 * 2}
"""Layer -> places of its map: the last layer of each resolution, but the first."""
EMBEDDING = LAYERS[14][0]


class Heard(NamedTuple):
    """`maps`: those of the layers in `TAPPED`, `[N, C, frames, bands]`; `embedding`: `[N, 1024]`."""

    maps: dict[int, Tensor]
    embedding: Tensor


class Yamnet(nn.Module):
    """Sound to the maps of some layers, the mean of the last of them, and scores of AudioSet's 521 classes.

    `mel`: how exact the mel filters are (`MELS`).
    """

    def __init__(self, mel: str = MELS[0]) -> None:
        super().__init__()
        self.log_mel = LogMel(mel)
        channels = 1
        for number, (wider, step) in LAYERS.items():
            made = First(wider, step) if number == 1 else Separable(channels, wider, step)
            self.add_module(f"layer{number}", made)
            channels = wider
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, windows: Tensor) -> Heard:
        """Windows `[N, 15600]` -> maps and embedding."""
        x = self.log_mel(windows).unsqueeze(1)
        maps = {}
        for number in LAYERS:
            x = self.get_submodule(f"layer{number}")(x)
            if number in TAPPED:
                maps[number] = x
        return Heard(maps, x.mean(dim=(2, 3)))

    def scores(self, embedding: Tensor) -> Tensor:
        """Embeddings `[N, 1024]` -> scores `[N, 521]` in 0..1, each class for itself."""
        return self.classifier(embedding).sigmoid()  # type: ignore[no-any-return]


class First(nn.Module):
    """Layer 1: a plain convolution of the patch."""

    def __init__(self, channels: int, step: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, step)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 1, H, W]` -> `[N, C, H / step, W / step]`."""
        return F.relu(self.conv(pad_same(x, self.conv.stride[0])))


class Separable(nn.Module):
    """Layers 2 to 14: each channel filtered for itself, then mixed with the others."""

    def __init__(self, channels: int, wider: int, step: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, step, groups=channels)
        self.pointwise = nn.Conv2d(channels, wider, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> `[N, C', H / step, W / step]`."""
        x = F.relu(self.depthwise(pad_same(x, self.depthwise.stride[0])))
        return F.relu(self.pointwise(x))


def pad_same(x: Tensor, step: int) -> Tensor:
    """Zeros around a map of even size for a filter of 3 x 3: on all sides, or with a step of 2 right and below only."""
    return F.pad(x, (0, 1, 0, 1) if step == 2 else (1, 1, 1, 1))
