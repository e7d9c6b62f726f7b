"""The audio captioner `tags`: what YAMNet recognises in a clip's sound, of AudioSet's 521 classes.

`The sound of a dog in segments 1 to 3, then music in segments 4 to 10.` A segment is heard through patches of 0.96 s,
evenly spread, of which the highest score of a class counts; one of 1 s has one patch at its centre, as the backbone
`yamnet` hears it. The classes' names come from a table beside the weights. Shapes: `T` segments, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.weights.find import find_weights
from caeav.pipeline.backbones.yamnet.audio import FILES, ORIGIN
from caeav.pipeline.backbones.yamnet.checkpoint import open_yamnet
from caeav.pipeline.backbones.yamnet.frontend import RATE_HZ, SAMPLES, take_patch
from caeav.pipeline.backbones.yamnet.network import CLASSES
from caeav.pipeline.captioners.checkpoints import SILENCE, SILENT_BELOW
from caeav.pipeline.captioners.tags.names import (
    GENERAL,
    NEVER,
    TABLES,
    audioset_classes,
    names_digest,
    spoken,
)
from caeav.pipeline.captioners.tags.words import (
    MOST,
    VERSION,
    Claim,
    Scores,
    check_settings,
    claims,
    sentence,
    sound,
)
from caeav.pipeline.media.clip import DecodedClip

THRESHOLD = 0.7
"""Measured on 120 recordings of ten kinds: three of four names are right, and five of eight recordings get one."""
NEAR = 4
"""AudioSet's list runs through its tree depth first: classes so many places apart are kinds of one sound."""
NOTHING = "A sound."
"""Said where nothing is recognised; an empty text would say that there is no audio."""


class TagAudio:
    """Names what is heard: `threshold` is the score from which on, `names` how many sounds at most."""

    modality: Literal["audio"] = "audio"
    runs_in: Literal["device"] = "device"
    rate_hz: int | None = RATE_HZ

    def __init__(self, choice: ModelChoice) -> None:
        self.name = choice.name
        settings = choice.resolve({"threshold": THRESHOLD, "names": MOST, "mel": None})
        check_settings(self.name, settings)
        self._weights = find_weights(choice, default="", wants=FILES, also=TABLES, origin=ORIGIN)
        self._network, mel = open_yamnet(self.name, self._weights, settings["mel"])
        self._classes = (
            [f"Class {k}" for k in range(CLASSES)]
            if self._weights.folder is None
            else audioset_classes(self._weights.folder, CLASSES)
        )
        self._settings = {**settings, "mel": mel, "threshold": float(settings["threshold"])}
        self.parameters = sum(x.numel() for x in self._network.parameters())

    def describe(self) -> Mapping[str, Any]:
        """Settings, weights, a digest of the names of classes, and the amplitude below which audio is silence."""
        return {
            "version": VERSION,
            "names": names_digest(self._classes),
            "silent_below": SILENT_BELOW,
            "settings": dict(self._settings),
            "weights": self._weights.describe(),
        }

    def module(self) -> nn.Module:
        """The network, frozen."""
        return self._network

    def scores(self, windows: NDArray[np.float32]) -> Scores:
        """Segments `[T, samples]` -> scores of the classes `[T, K]`, each of them in 0..1."""
        segments, samples = windows.shape
        count = max(1, round(samples / SAMPLES))
        parts = torch.from_numpy(np.ascontiguousarray(windows[:, : samples // count * count]))
        patches = take_patch(parts.reshape(segments * count, -1), "centre")
        here = next(self._network.parameters()).device
        with torch.inference_mode():
            found = self._network.scores(self._network(patches.to(here)).embedding).float().cpu()
        return found.reshape(segments, count, -1).amax(dim=1).numpy()

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text per clip; empty without audio."""
        return [self._text(clip) for clip in clips]

    def claims_of(self, clip: DecodedClip) -> list[Claim]:
        """What is claimed of a clip's sound, in the order of time; nothing without audio."""
        if clip.wave is None:
            return []
        real, threshold = np.asarray(clip.audio_ok, dtype=np.float32), self._settings["threshold"]
        heard = self.scores(clip.wave.reshape(len(real), -1)) * real[:, None]  # [T, K]
        scores = exact_first(heard, self._classes, threshold)
        names = list(map(spoken, self._classes))
        return claims(
            scores, names, clip.audio_ok, threshold=threshold, most=self._settings["names"], near=NEAR
        )

    def _text(self, clip: DecodedClip) -> str:
        if clip.wave is None:
            return ""
        if float(np.abs(clip.wave).max()) < SILENT_BELOW:
            return SILENCE
        return sentence("The sound of", self.claims_of(clip), clip.audio_ok, NOTHING, sound)


def exact_first(scores: Scores, classes: Sequence[str], threshold: float) -> Scores:
    """Scores `[T, K]`, 0 for classes that name no sound, and for general ones if a more exact one is claimed."""
    never = np.array([name in NEVER for name in classes])
    general = np.array([name in GENERAL for name in classes])
    claimed = bool((scores[:, ~(never | general)] >= threshold).any())
    return np.where(never | (general & claimed), 0, scores).astype(np.float32)
