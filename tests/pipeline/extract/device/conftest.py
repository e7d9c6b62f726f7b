"""Tiny components with torch modules, registered as `tiny` during each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caeav.pipeline.backbones import audio_backbones, text_backbones, visual_backbones
from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.media.clip import DecodedClip
from caeav.pipeline.store.record import Tap

SIDE = 16


class Tiny(TorchBackbone):
    """The common part of both backbones; `hook(batch)` runs before each forward pass."""

    hook: ClassVar[Callable[[Tensor], None] | None] = None
    built: ClassVar[int] = 0

    def __init__(self, choice: ModelChoice) -> None:
        self.name = choice.name
        self._settings = choice.resolve({"seed": 0})
        torch.manual_seed(self._settings["seed"])
        self._module = self.build().requires_grad_(False).eval()
        type(self).built += 1

    def build(self) -> nn.Module:
        raise NotImplementedError

    def describe(self) -> Mapping[str, Any]:
        return {"settings": self._settings}

    def module(self) -> nn.Module:
        return self._module

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        if Tiny.hook is not None:
            Tiny.hook(batch)
        return self.taps_of(batch)

    def taps_of(self, batch: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


class TinyVisual(Tiny):
    modality = "visual"

    def taps(self) -> tuple[Tap, ...]:
        return (Tap("visual.stage1", 16, 8), Tap("visual.stage2", 1, 12))

    def build(self) -> nn.Module:
        return nn.ModuleDict({"conv": nn.Conv2d(3, 8, 4, 4), "out": nn.Linear(8, 12)})

    def prepare(self, clip: np.ndarray) -> Tensor:
        x = torch.from_numpy(clip.copy()).permute(0, 3, 1, 2).float() / 255
        return nn.functional.interpolate(x, (SIDE, SIDE), mode="area")

    def taps_of(self, batch: Tensor) -> dict[str, Tensor]:
        x = self._module["conv"](batch.flatten(0, 1)).flatten(2).transpose(1, 2)  # [N*T, 16, 8]
        y = self._module["out"](x.mean(1, keepdim=True))
        shape = batch.shape[:2]
        return {"visual.stage1": x.unflatten(0, shape), "visual.stage2": y.unflatten(0, shape)}


class TinyAudio(Tiny):
    modality = "audio"
    rate_hz = 8000

    def taps(self) -> tuple[Tap, ...]:
        return (Tap("audio.stage1", 4, 10),)

    def build(self) -> nn.Module:
        return nn.Linear(2000, 10)

    def prepare(self, clip: np.ndarray) -> Tensor:
        return torch.from_numpy(clip.copy())

    def taps_of(self, batch: Tensor) -> dict[str, Tensor]:
        return {"audio.stage1": self._module(batch.unflatten(-1, (4, 2000)))}


class TinyCaptioner:
    """Captions how bright or loud a clip is; `sizes` are the batches it saw."""

    runs_in = "device"
    rate_hz = None
    sizes: ClassVar[list[int]] = []
    modality = "visual"

    def __init__(self, choice: ModelChoice) -> None:
        self.name = choice.name
        self._module = nn.Linear(1, 1)

    def describe(self) -> Mapping[str, Any]:
        return {"settings": {}}

    def module(self) -> nn.Module:
        return self._module

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        TinyCaptioner.sizes.append(len(clips))
        seen = [clip.frames if self.modality == "visual" else clip.wave for clip in clips]
        return ["" if x is None else f"About {np.abs(x).mean():.3f}." for x in seen]


class TinyListener(TinyCaptioner):
    modality = "audio"
    rate_hz = 8000


class TinyText:
    """A text backbone of a torch module; `sizes` are the batches it saw."""

    name = "tiny"
    max_tokens = 4
    channels = 6
    sizes: ClassVar[list[int]] = []

    def __init__(self, choice: ModelChoice) -> None:
        torch.manual_seed(1)
        self._module = nn.Linear(1, 6)

    def describe(self) -> Mapping[str, Any]:
        return {"settings": {}}

    def module(self) -> nn.Module:
        return self._module

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        TinyText.sizes.append(len(texts))
        codes = torch.tensor([[len(t), *(t.encode() + b"\0\0\0")[:3]] for t in texts]).float().unsqueeze(-1)
        mask = np.array([[bool(t)] * 4 for t in texts])
        return self._module(codes / 100).detach().numpy() * mask[..., None], mask


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Tiny]]:
    """Register all components of this module."""
    for registry, entry in (
        (visual_backbones, TinyVisual),
        (audio_backbones, TinyAudio),
        (visual_captioners, TinyCaptioner),
        (audio_captioners, TinyListener),
        (text_backbones, TinyText),
    ):
        monkeypatch.setitem(registry._entries, "tiny", entry)
    TinyCaptioner.sizes, TinyText.sizes, Tiny.built = [], [], 0
    yield Tiny
    Tiny.hook = None


@pytest.fixture
def tiny_captioner() -> type[TinyCaptioner]:
    return TinyCaptioner


@pytest.fixture
def tiny_text() -> type[TinyText]:
    return TinyText
