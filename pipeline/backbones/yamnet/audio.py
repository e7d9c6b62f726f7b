"""The `yamnet` audio backbone: a small network trained on AudioSet, which a laptop runs in real time many times over.

Each segment is heard through one patch of 0.96 s. The weights are a file of YAMNet's authors; no hub holds them.
Taps `L x C`, by default the first four: `audio.layer4` 384 x 128, `audio.layer6` 96 x 256, `audio.layer12` 24 x 512,
`audio.layer14` 6 x 1024 (frame by frame, each frame's bands from low to high), `audio.embedding` 1 x 1024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError, choices
from caeav.pipeline.backbones.base import Modality, TorchBackbone, choose_taps
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.find import find_weights
from caeav.pipeline.backbones.yamnet.checkpoint import open_yamnet
from caeav.pipeline.backbones.yamnet.frontend import PLACES, RATE_HZ, SAMPLES, take_patch
from caeav.pipeline.backbones.yamnet.network import EMBEDDING, LAYERS, TAPPED
from caeav.pipeline.store.record import Tap

ORIGIN = (
    "its authors: https://storage.googleapis.com/audioset/yamnet.h5, "
    "linked from tensorflow/models, research/audioset/yamnet"
)
FILES = ("yamnet.h5", "yamnet.safetensors")
LONGEST = 2 * SAMPLES
"""Of a longer segment, less than half would be heard."""
DEFAULTS: dict[str, Any] = {"patch": PLACES[0], "mel": None, "taps": []}
"""None: as the file of weights says."""


class YamnetBackbone(TorchBackbone):
    """YAMNet as a frozen backbone.

    The setting `patch` says which 0.96 s of a segment are heard (`centre`, `start`), `taps` which taps are stored, and
    `mel` how exact the mel filters are (`float`, `int8`): as the file of weights says, if it is not set.
    """

    modality: Modality = "audio"
    rate_hz: int | None = RATE_HZ

    def __init__(self, choice: ModelChoice) -> None:
        self.name = choice.name
        settings = choice.resolve(DEFAULTS)
        if (patch := settings["patch"]) not in PLACES:
            raise CaeavError(f"setting 'patch' of {self.name} is {patch!r}", hint=choices(str(patch), PLACES))
        stages = [Tap(f"audio.layer{i}", places, LAYERS[i][0]) for i, places in TAPPED.items()]
        self.offered_taps = (*stages, Tap("audio.embedding", 1, EMBEDDING))
        self._taps = choose_taps(self.name, self.offered_taps, settings["taps"] or [x.name for x in stages])
        self._weights = find_weights(choice, default="", wants=FILES, origin=ORIGIN)
        self._network, mel = open_yamnet(self.name, self._weights, settings["mel"])
        self._settings = {**settings, "mel": mel, "taps": [tap.name for tap in self._taps]}
        self.parameters = sum(p.numel() for p in self._network.parameters())

    def taps(self) -> tuple[Tap, ...]:
        """The taps to store, from shallow to deep."""
        return self._taps

    def module(self) -> nn.Module:
        """The network, frozen."""
        return self._network

    def describe(self) -> Mapping[str, Any]:
        """The patch, mel filters and taps, and where the weights come from."""
        return {"settings": dict(self._settings), "weights": self._weights.describe()}

    def check_segment(self, segment_s: float) -> None:
        """Raise `CaeavError` for segments of which less than half would be heard."""
        if not 0 < segment_s <= LONGEST / RATE_HZ:
            raise CaeavError(
                f"segments of {segment_s:g} s are too long for {self.name}: it hears {SAMPLES / RATE_HZ:g} s of each, "
                f"and {LONGEST / RATE_HZ:g} s are allowed",
                hint="use shorter segments: --segment-seconds 1",
            )

    def prepare(self, clip: NDArray[Any]) -> Tensor:
        """Windows `[T, samples]` float32 -> the patch of each `[T, 15600]`; raises `CaeavError` for long segments."""
        if clip.ndim != 2:
            raise ValueError(f"audio of shape {list(clip.shape)}, expected [T, samples]")
        self.check_segment(clip.shape[1] / RATE_HZ)
        windows = torch.from_numpy(np.ascontiguousarray(clip, dtype=np.float32))
        return take_patch(windows, self._settings["patch"])

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Patches `[N, T, 15600]` -> `{tap: [N, T, L, C]}`."""
        maps, embedding = self._network(batch.flatten(0, 1))
        found = {f"audio.layer{i}": x.flatten(2).transpose(1, 2) for i, x in maps.items()}  # [NT, L, C]
        found["audio.embedding"] = embedding.unsqueeze(1)
        return {
            tap.name: found[tap.name].reshape(*batch.shape[:2], tap.tokens, tap.channels)
            for tap in self._taps
        }
