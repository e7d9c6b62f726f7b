"""What the learned audio backbones share: audio windows in, chosen taps of an HTS-AT out.

A segment is one window, repeated to the length the network was trained on; the front end (`frontend.py`) runs on the
device with the network. Shapes: `N` clips, `T` segments, `L` tokens, `C` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError, choices
from caeav.pipeline.backbones.base import Modality, TorchBackbone, choose_taps
from caeav.pipeline.backbones.htsat.frontend import FrontEnd
from caeav.pipeline.backbones.htsat.network import Htsat, LiveHtsat
from caeav.pipeline.backbones.weights.find import Weights
from caeav.pipeline.store.record import Tap

FRONT_END_SETTINGS = tuple(field.name for field in fields(FrontEnd) if field.name != "image_size")
"""The settings of a front end that a recipe names; the size of the image is decided by the weights."""
WINDOWS = "audio.windows"
SETTINGS: dict[str, Any] = {"segment_s": 1.0, "taps": []}
"""The settings of every such backbone besides its front end."""
_ALLOWED = {"mel": ("slaney", "htk"), "filling": ("repeat", "repeatpad")}


class HtsatBackbone(TorchBackbone):
    """An HTS-AT as a frozen backbone; subclasses give the network, its settings, and its taps besides the stages.

    The setting `taps` names the taps to store; empty means the stages. `offered_taps` are all there are, `parameters`
    their network's number of them. The tap `audio.windows` is the network's input (`segment_s` long), for adapters in
    its first stage.
    """

    modality: Modality = "audio"

    def __init__(
        self, name: str, trunk: Htsat, weights: Weights, settings: Mapping[str, Any], more: Sequence[Tap] = ()
    ) -> None:
        self.name = name
        self.rate_hz = trunk.config.front_end.rate_hz
        self._trunk = trunk
        self._weights = weights
        stages = [
            Tap(f"audio.stage{i + 1}", s.tokens, s.channels) for i, s in enumerate(LiveHtsat(trunk).stages)
        ]
        self._samples = round(settings["segment_s"] * trunk.config.front_end.rate_hz)
        self.offered_taps = (Tap(WINDOWS, self._samples, 1), *stages, *more)
        chosen = settings["taps"] or [tap.name for tap in stages]
        self._taps = choose_taps(name, self.offered_taps, chosen)
        self._settings = {**settings, "taps": [tap.name for tap in self._taps]}
        module = self.module().requires_grad_(False).eval()
        self.parameters = sum(p.numel() for p in module.parameters())

    def taps(self) -> tuple[Tap, ...]:
        """The taps to store, from shallow to deep."""
        return self._taps

    def module(self) -> nn.Module:
        """The network, frozen."""
        return self._trunk

    def describe(self) -> Mapping[str, Any]:
        """All settings (front end, segment length, taps), and where the weights come from."""
        return {"settings": dict(self._settings), "weights": self._weights.describe()}

    def live(self) -> LiveHtsat:
        """The network opened up for adapters inside it, sharing its weights."""
        return LiveHtsat(self._trunk)

    def check_segment(self, segment_s: float) -> None:
        """Raise `CaeavError` for segments longer than the network's window, or than the tap of windows declares."""
        front_end = self._trunk.config.front_end
        samples = round(segment_s * front_end.rate_hz)
        if samples > front_end.window_s * front_end.rate_hz:
            raise CaeavError(
                f"segments of {segment_s:g} s are too long for {self.name}, whose window is {front_end.window_s} s",
                hint=f"use shorter segments: --segment-seconds {front_end.window_s}",
            )
        if WINDOWS in self._settings["taps"] and samples != self._samples:
            raise CaeavError(
                f"segments have {samples} samples, the tap {WINDOWS} was declared with {self._samples}",
                hint=f"set segment_s of {self.name} to {segment_s:g}",
            )

    def prepare(self, clip: NDArray[Any]) -> Tensor:
        """Windows `[T, samples]` float32 as they are; raises `CaeavError` for a length that does not fit."""
        if clip.ndim != 2:
            raise ValueError(f"audio of shape {list(clip.shape)}, expected [T, samples]")
        self.check_segment(clip.shape[1] / self._trunk.config.front_end.rate_hz)
        return torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Windows `[N, T, samples]` -> `{tap: [N, T, L, C]}`; without the network where its input alone is wanted."""
        windows = batch.flatten(0, 1)
        found = {} if self._settings["taps"] == [WINDOWS] else self.all_taps(windows)
        found[WINDOWS] = windows.unsqueeze(2)
        return {
            tap.name: found[tap.name].view(*batch.shape[:2], tap.tokens, tap.channels) for tap in self._taps
        }

    def all_taps(self, windows: Tensor) -> dict[str, Tensor]:
        """Windows `[N, samples]` -> every tap of the network, `[N, L, C]`."""
        return {f"audio.stage{i + 1}": x for i, x in enumerate(self._trunk(windows))}


def front_end_settings(config: FrontEnd) -> dict[str, Any]:
    """A front end as settings of a recipe."""
    values = asdict(config)
    return {key: values[key] for key in FRONT_END_SETTINGS}


def parse_front_end(name: str, settings: Mapping[str, Any], image_size: int) -> FrontEnd:
    """The front end that resolved settings describe; raises `CaeavError` for values it cannot have."""
    values = {key: settings[key] for key in FRONT_END_SETTINGS}
    for key, allowed in _ALLOWED.items():
        if values[key] not in allowed:
            raise CaeavError(
                f"setting {key!r} of {name} is {values[key]!r}", hint=choices(values[key], allowed)
            )
    numbers = [key for key in FRONT_END_SETTINGS if key not in {*_ALLOWED, "int16"}]
    if (
        any(isinstance(values[key], bool) or not isinstance(values[key], int | float) for key in numbers)
        or any(values[key] <= 0 for key in numbers if key != "low_hz")
        or not 0 <= values["low_hz"] < values["high_hz"] <= values["rate_hz"] / 2
        or image_size % values["bands"]
    ):
        raise CaeavError(
            f"settings of {name} make no mel spectrogram: {', '.join(f'{key} {values[key]!r}' for key in numbers)}",
            hint="give numbers above 0, low_hz below high_hz, high_hz at most rate_hz / 2, and for bands a divisor of "
            f"{image_size}",
        )
    return FrontEnd(**values, image_size=image_size)
