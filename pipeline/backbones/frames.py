"""From decoded frames to what a visual network is fed: resizing, cropping, normalising, every choice spelled out.

Features differ from published ones most often here, so all of it is settings of the recipe. Presets:

- `whole` (default): the picture stretched to the network's size, filtered when it shrinks; nothing at a border is lost.
- `reference`: the same without the filter, as the reference resized tensors (REFERENCE section 6).
- `published`: as the publisher of the weights evaluates them, on 8-bit pixels: shorter side scaled, middle cut out.

Shapes: `T` frames, `H`x`W` pixels, `h`x`w` of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError, choices

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "whole": {"fit": "stretch", "antialias": True, "pixels": "float"},
    "reference": {"fit": "stretch", "antialias": False, "pixels": "float", "interpolation": "bicubic"},
    "published": {"fit": "crop", "antialias": True, "pixels": "uint8"},
}


@dataclass(frozen=True)
class FrameSettings:
    """How frames are prepared.

    size: height and width. fit: `stretch` the whole picture, or scale the shorter side to `size / crop` and `crop` the
    middle. antialias: filter when shrinking. pixels: resize in `float`, or in `uint8` with rounding as image libraries
    do. mean, std: of values in 0..1, subtracted and divided by.
    """

    size: tuple[int, int]
    fit: str = "stretch"
    crop: float = 1.0
    interpolation: str = "bicubic"
    antialias: bool = True
    pixels: str = "float"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def as_json(self) -> dict[str, Any]:
        """All settings by name, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> FrameSettings:
        """From JSON values; raises `CaeavError` naming the first that cannot be."""
        size, mean, std = (tuple(values[name]) for name in ("size", "mean", "std"))
        allowed = {"fit": ("stretch", "crop"), "interpolation": INTERPOLATIONS, "pixels": ("float", "uint8")}
        for name, among in allowed.items():
            if values[name] not in among:
                raise CaeavError(f"setting {name!r} is {values[name]!r}", hint=choices(values[name], among))
        if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
            raise CaeavError(f"setting 'size' is {values['size']!r}", hint="give [height, width] in pixels")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise CaeavError(f"mean is {mean}, std {std}", hint="give three numbers each, std above 0")
        if not 0 < values["crop"] <= 1:
            raise CaeavError(f"setting 'crop' is {values['crop']!r}", hint="give a share in (0, 1]")
        return cls(**{**values, "size": size, "mean": mean, "std": std})


def prepare_frames(frames: NDArray[Any], settings: FrameSettings) -> Tensor:
    """Frames uint8 `[T, H, W, 3]` -> float32 `[T, 3, h, w]`, normalised."""
    import torch

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or frames.size == 0:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3]")
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # [T, 3, H, W]
    if settings.pixels == "float":
        x = x.float() / 255
    x = _resize(x, settings)
    if settings.pixels == "uint8":
        x = x.float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (settings.mean, settings.std))
    return (x - mean) / std


def _resize(x: Tensor, settings: FrameSettings) -> Tensor:
    height, width = settings.size
    if settings.fit == "stretch":
        return _scaled(x, height, width, settings)
    # The shorter side becomes size / crop, rounded down as timm does; the longer follows, cut off as torchvision does.
    scale_to = int(height / settings.crop), int(width / settings.crop)
    h, w = x.shape[-2:]
    if scale_to[0] == scale_to[1]:
        side = scale_to[0]
        scaled = (side, int(side * w / h)) if h <= w else (int(side * h / w), side)
    else:
        ratio = max(scale_to[0] / h, scale_to[1] / w)
        scaled = max(height, round(h * ratio)), max(width, round(w * ratio))
    x = _scaled(x, *scaled, settings)
    top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
    return x[..., top : top + height, left : left + width]


def _scaled(x: Tensor, height: int, width: int, settings: FrameSettings) -> Tensor:
    import torch.nn.functional as F

    if tuple(x.shape[-2:]) == (height, width):
        return x
    if settings.interpolation == "nearest":
        return F.interpolate(x, size=(height, width), mode="nearest")
    return F.interpolate(
        x,
        size=(height, width),
        mode=settings.interpolation,
        align_corners=False,
        antialias=settings.antialias,
    )
