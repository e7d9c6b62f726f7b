"""Learned visual backbones: the frozen network of some family, its weights, and how frames are prepared for it.

A family says which taps a network offers and how to compute them (`Network`); settings, weights, preprocessing and the
choice of taps are the same for all families and done by `LearnedVisual`. The network is first built on the meta device
to learn its shapes, and really built when its module is first used.

Features differ from published ones most often by their preprocessing, so all of it is settings of the recipe. Presets:

- `whole` (default): the whole frame stretched to the network's size, filtered when it shrinks; no border is lost.
- `reference`: the same without the filter, as the reference resized tensors (REFERENCE section 6).
- `published`: as the publisher of the weights evaluates them, on 8-bit pixels: shorter edge scaled, centre cropped.

Shapes: `N` clips, `T` segments of one frame each, `H`x`W` pixels, `h`x`w` for the network, `L` tokens, `C` channels.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError, choices
from caeav.pipeline.backbones.base import TorchBackbone, choose_taps
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights import find_weights
from caeav.pipeline.backbones.weights.load import read_weights, seeded
from caeav.pipeline.store.record import Tap

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "whole": {"fit": "stretch", "antialias": True, "pixels": "float"},
    "reference": {"fit": "stretch", "antialias": False, "pixels": "float", "interpolation": "bicubic"},
    "published": {"fit": "crop", "antialias": True, "pixels": "uint8"},
}
DEFAULT_PRESET = "whole"


class Network(ABC):
    """One architecture of a family: its taps, and how to build and fill it. It holds no module itself.

    weights: the default source, `hub:...` or empty. files: names of the weight file, the best first. licence: of the
    default weights, where the library knows it. origin: who publishes weights, where there are no default ones.
    package: a folder in a Python package that holds them, too.
    """

    weights: str
    files: tuple[str, ...]
    licence: str = ""
    origin: str = ""
    package: str = ""

    @property
    @abstractmethod
    def own_frames(self) -> FrameSettings:
        """How its publisher prepares frames: size, crop, interpolation, mean, std."""

    def more_settings(self) -> Mapping[str, Any]:
        """Settings of the family besides those of the frames and `taps`, with their defaults."""
        return {}

    @abstractmethod
    def build(self, settings: Mapping[str, Any]) -> nn.Module:
        """The network with random weights, for `settings["size"]`; raises `CaeavError` where it cannot be built."""

    @abstractmethod
    def load(self, module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
        """Fill the network from a checkpoint's tensors; raises `WeightsError` for any key that does not fit."""

    @abstractmethod
    def offered(self, module: nn.Module, frames: Tensor) -> Mapping[str, Tensor]:
        """All taps of frames `[B, 3, h, w]`: name -> `[B, L, C]`, from shallow to deep. Must run on the meta device."""

    @abstractmethod
    def default_taps(self, offered: Sequence[str]) -> list[str]:
        """The names of those that are cached by default."""

    def run(self, module: nn.Module, frames: Tensor, taps: Sequence[str]) -> Mapping[str, Tensor]:
        """At least the taps asked for; a family that can leave some out overrides this."""
        return self.offered(module, frames)

    def open(self, module: nn.Module) -> Any:
        """The network opened up for adapters inside it; raises `CaeavError` where the family does not support that."""
        raise CaeavError(
            f"the blocks of {type(module).__name__} cannot be opened for adapters inside them",
            hint="extract with a Swin-V2 (--visual swinv2-large), or use the ladder placement",
        )


class LearnedVisual(TorchBackbone):
    """A visual backbone of any family.

    `parameters`: how many there are; `offered_taps`: all that it could cache; `default_weights`, `licence`: as its
    `Network` says.
    """

    modality: Literal["visual"] = "visual"
    rate_hz: int | None = None

    def __init__(self, choice: ModelChoice, network: Network) -> None:
        self.name = choice.name
        self._network = network
        defaults = {
            **network.own_frames.as_json(),
            **PRESETS[DEFAULT_PRESET],
            **network.more_settings(),
            "taps": [],
        }
        settings = choice.resolve(defaults, PRESETS)
        parsed = FrameSettings.parse({name: settings[name] for name in network.own_frames.as_json()})
        self._frames = parsed
        probe, shapes = _probe(choice, network, settings)
        self.offered_taps = tuple(Tap(name, x.shape[1], x.shape[2]) for name, x in shapes.items())
        chosen = settings["taps"] or network.default_taps(list(shapes))
        self._taps = choose_taps(choice.name, self.offered_taps, chosen)
        self._settings = {**settings, **parsed.as_json(), "taps": [tap.name for tap in self._taps]}
        self.parameters = sum(p.numel() for p in probe.parameters())
        self.default_weights, self.licence = network.weights, network.licence
        self._weights = find_weights(
            choice,
            default=network.weights,
            wants=network.files,
            origin=network.origin,
            package=network.package,
        )
        self._module: nn.Module | None = None
        self._lock = threading.Lock()

    def taps(self) -> tuple[Tap, ...]:
        """The taps to store, from shallow to deep."""
        return self._taps

    def describe(self) -> Mapping[str, Any]:
        """All settings, and the digest of the weights."""
        return {"settings": self._settings, "weights": self._weights.describe()}

    def module(self) -> nn.Module:
        """The network, frozen; built and loaded on first use."""
        with self._lock:
            if self._module is None:
                self._module = self._build()
            return self._module

    def live(self) -> Any:
        """The network opened up for adapters inside it, sharing its weights; raises `CaeavError` for most families."""
        return self._network.open(self.module())

    def prepare(self, clip: NDArray[Any]) -> Tensor:
        """Frames uint8 `[T, H, W, 3]` -> `[T, 3, h, w]`."""
        return prepare_frames(clip, self._frames)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Prepared frames `[N, T, 3, h, w]` -> `{tap: [N, T, L, C]}`."""
        found = self._network.run(self.module(), batch.flatten(0, 1), self._settings["taps"])
        return {
            tap.name: found[tap.name].reshape(*batch.shape[:2], tap.tokens, tap.channels)
            for tap in self._taps
        }

    def _build(self) -> nn.Module:
        weights = self._weights
        with seeded(weights):
            module = self._network.build(self._settings)
        if weights.seed is None:
            self._network.load(module, read_weights(weights), weights.source)
        return module.eval().requires_grad_(False)


def _probe(
    choice: ModelChoice, network: Network, settings: Mapping[str, Any]
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """The network and all its taps on the meta device; raises `CaeavError` where frames of that size do not fit."""
    height, width = settings["size"]
    try:
        with torch.device("meta"):
            module = network.build(settings).eval()
            return module, network.offered(module, torch.zeros(1, 3, height, width))
    except (RuntimeError, AssertionError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CaeavError(
            f"{choice.name} cannot take frames of {height} x {width}: {str(error).splitlines()[0]}",
            hint=f"leave the setting 'size' out: its own is {list(network.own_frames.size)}",
        ) from error


@dataclass(frozen=True)
class FrameSettings:
    """How frames are prepared.

    size: height and width. fit: `stretch` the whole frame, or scale its shorter edge to `size / crop` and `crop` the
    centre. antialias: filter when shrinking. pixels: resize in `float`, or in `uint8` with rounding as image libraries
    do. mean, std: subtracted from and divided into values in 0..1.
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
        """All settings by name, with tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> FrameSettings:
        """From JSON values; raises `CaeavError` naming the first that is not allowed."""
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
    # The shorter edge becomes size / crop, rounded down as in timm; the longer follows, truncated as in torchvision.
    scale_to = int(height / settings.crop), int(width / settings.crop)
    h, w = x.shape[-2:]
    if scale_to[0] == scale_to[1]:
        size = scale_to[0]
        scaled = (size, int(size * w / h)) if h <= w else (int(size * h / w), size)
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
