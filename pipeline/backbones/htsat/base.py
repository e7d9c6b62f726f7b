"""What the learned audio backbones of the store have in common: windows in, chosen taps of an HTS-AT out.

A segment's sound is one window, repeated to the length the network sees (`htsat_sound.py`); the whole front end runs on
the device with the network. Shapes: `N` clips, `T` segments, `L` tokens, `C` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError, choices
from caeav.pipeline.backbones.base import Modality, TorchBackbone
from caeav.pipeline.backbones.htsat.frontend import SoundConfig
from caeav.pipeline.backbones.htsat.network import Htsat, LiveHtsat
from caeav.pipeline.backbones.weights.find import Weights
from caeav.pipeline.store.record import Tap

FRONT_END = ("rate_hz", "fft", "hop", "bands", "low_hz", "high_hz", "window_s", "mel", "filling", "int16")
"""The settings of `SoundConfig` that a recipe names; the picture's side belongs to the weights."""
WINDOWS = "audio.windows"
SETTINGS: dict[str, Any] = {"segment_s": 1.0, "taps": []}
"""What every one of them has besides its front end."""
_ALLOWED = {"mel": ("slaney", "htk"), "filling": ("repeat", "repeatpad")}


class SoundBackbone(TorchBackbone):
    """Subclasses give the network, the settings, and taps it has besides its stages.

    The setting `taps` names those that are stored, empty: the stages. `offered_taps`: all there are; `parameters`: how
    many. The tap `audio.windows` is the network's input (`segment_s` of sound), for adapters in its first stage.
    """

    modality: Modality = "audio"

    def __init__(
        self, name: str, trunk: Htsat, weights: Weights, settings: Mapping[str, Any], more: Sequence[Tap] = ()
    ) -> None:
        self.name = name
        self.rate_hz = trunk.config.sound.rate_hz
        self._trunk = trunk
        self._weights = weights
        stages = [
            Tap(f"audio.stage{i + 1}", s.tokens, s.channels) for i, s in enumerate(LiveHtsat(trunk).stages)
        ]
        self._samples = round(settings["segment_s"] * trunk.config.sound.rate_hz)
        self.offered_taps = (Tap(WINDOWS, self._samples, 1), *stages, *more)
        chosen = settings["taps"] or [tap.name for tap in stages]
        unknown = [str(place) for place in chosen if place not in {tap.name for tap in self.offered_taps}]
        if unknown:
            raise CaeavError(
                f"{name} has no tap {', '.join(unknown)}",
                hint=f"it has {', '.join(tap.name for tap in self.offered_taps)}",
            )
        self._taps = tuple(tap for tap in self.offered_taps if tap.name in chosen)
        self._settings = {**settings, "taps": [tap.name for tap in self._taps]}
        module = self.module().requires_grad_(False).eval()
        self.parameters = sum(p.numel() for p in module.parameters())

    def taps(self) -> tuple[Tap, ...]:
        """The stored taps, from shallow to deep."""
        return self._taps

    def module(self) -> nn.Module:
        """The network, frozen."""
        return self._trunk

    def describe(self) -> Mapping[str, Any]:
        """All settings of the front end, the taps, and where the weights come from."""
        return {"settings": dict(self._settings), "weights": self._weights.describe()}

    def live(self) -> LiveHtsat:
        """The same network opened up for adapters inside it; it shares the weights."""
        return LiveHtsat(self._trunk)

    def prepare(self, clip: NDArray[Any]) -> Tensor:
        """Windows `[T, samples]` float32 as they are; raises `CaeavError` when the network cannot see a whole one."""
        sound = self._trunk.config.sound
        if clip.ndim != 2 or clip.shape[1] > sound.window_s * sound.rate_hz:
            raise CaeavError(
                f"{self.name} was given sound of shape {list(clip.shape)}; it sees windows [T, samples] of at most "
                f"{sound.window_s * sound.rate_hz} samples ({sound.window_s} s)",
                hint="use shorter segments",
            )
        if WINDOWS in self._settings["taps"] and clip.shape[1] != self._samples:
            raise CaeavError(
                f"segments have {clip.shape[1]} samples, the tap {WINDOWS} was declared with {self._samples}",
                hint=f"set segment_s of {self.name} to {clip.shape[1] / sound.rate_hz:g}",
            )
        return torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Windows `[N, T, samples]` -> `{tap: [N, T, L, C]}`; the network runs when one of its own is wanted."""
        windows = batch.flatten(0, 1)
        found = {} if self._settings["taps"] == [WINDOWS] else self.everything(windows)
        found[WINDOWS] = windows.unsqueeze(2)
        return {
            tap.name: found[tap.name].view(*batch.shape[:2], tap.tokens, tap.channels) for tap in self._taps
        }

    def everything(self, windows: Tensor) -> dict[str, Tensor]:
        """Windows `[N, samples]` -> every tap of the network, `[N, L, C]`."""
        return {f"audio.stage{i + 1}": x for i, x in enumerate(self._trunk(windows))}


def front_end(config: SoundConfig) -> dict[str, Any]:
    """The settings that describe a front end."""
    values = asdict(config)
    return {key: values[key] for key in FRONT_END}


def sound_config(name: str, settings: Mapping[str, Any], picture: int) -> SoundConfig:
    """The front end of resolved settings; raises `CaeavError` for values that make none."""
    values = {key: settings[key] for key in FRONT_END}
    for key, allowed in _ALLOWED.items():
        if values[key] not in allowed:
            raise CaeavError(
                f"setting {key!r} of {name} is {values[key]!r}", hint=choices(values[key], allowed)
            )
    numbers = [key for key in FRONT_END if key not in {*_ALLOWED, "int16"}]
    if (
        any(isinstance(values[key], bool) or not isinstance(values[key], int | float) for key in numbers)
        or any(values[key] <= 0 for key in numbers if key != "low_hz")
        or not 0 <= values["low_hz"] < values["high_hz"] <= values["rate_hz"] / 2
        or picture % values["bands"]
    ):
        raise CaeavError(
            f"settings of {name} make no mel spectrogram: {', '.join(f'{key} {values[key]!r}' for key in numbers)}",
            hint=f"numbers above 0, low_hz below high_hz, high_hz at most rate_hz / 2, bands a divisor of {picture}",
        )
    return SoundConfig(**values, picture=picture)
