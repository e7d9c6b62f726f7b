"""The visual captioner `tags`: what EfficientNet-Lite0 recognises in a clip's frames, of ImageNet's 1000 classes.

`A picture of a beagle in segments 1 to 4 and a tennis ball.` Frames are prepared as for the backbone
`efficientnet-lite0`. Where no class of a kind of animals is certain, but the kind is, that is said (`a dog`).
Shapes: `T` segments of one frame, `K` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.efficientnet import EfficientNetLite0
from caeav.pipeline.backbones.image import DEFAULT_PRESET, PRESETS, FrameSettings, prepare_frames
from caeav.pipeline.backbones.weights import find_weights
from caeav.pipeline.backbones.weights.load import read_weights, seeded
from caeav.pipeline.captioners.tags.names import KINDS, imagenet_names, names_digest
from caeav.pipeline.captioners.tags.words import (
    MOST,
    VERSION,
    Scores,
    check_settings,
    claims,
    sentence,
    thing,
)
from caeav.pipeline.media.clip import DecodedClip

THRESHOLD = 0.5
"""Measured on 19 videos: 7 of 13 names are right. Of drawings most names are wrong at any threshold."""
CLASSES = 1000
NOTHING = "A picture."
"""Said where nothing is recognised; an empty text would say that there is no picture."""


class TagFrames:
    """Names what is seen: `threshold` is the probability from which on, `names` how many things at most."""

    modality: Literal["visual"] = "visual"
    runs_in: Literal["device"] = "device"
    rate_hz: int | None = None

    def __init__(self, choice: ModelChoice) -> None:
        self.name = choice.name
        self._network = Classifier()
        own = self._network.own_frames.as_json()
        defaults = {**own, **PRESETS[DEFAULT_PRESET], "threshold": THRESHOLD, "names": MOST}
        settings = choice.resolve(defaults, PRESETS)
        check_settings(self.name, settings)
        self._frames = FrameSettings.parse({name: settings[name] for name in own})
        self._settings = {**settings, **self._frames.as_json(), "threshold": float(settings["threshold"])}
        self._names = imagenet_names()
        self.default_weights = self._network.weights
        self._weights = find_weights(
            choice,
            default=self._network.weights,
            wants=self._network.files,
            package=self._network.package,
        )
        with torch.device("meta"):
            self.parameters = sum(x.numel() for x in self._network.build(self._settings).parameters())

    def describe(self) -> Mapping[str, Any]:
        """Settings, weights, and a digest of the names of classes."""
        return {
            "version": VERSION,
            "names": names_digest(self._names),
            "settings": dict(self._settings),
            "weights": self._weights.describe(),
        }

    @cached_property
    def _module(self) -> nn.Module:
        with seeded(self._weights):
            module = self._network.build(self._settings)
        if self._weights.seed is None:
            self._network.load(module, read_weights(self._weights), self._weights.source)
        return module.eval().requires_grad_(False)

    def module(self) -> nn.Module:
        """The network with its classifier, frozen; built and loaded on first use."""
        return self._module

    def scores(self, frames: NDArray[np.uint8]) -> Scores:
        """Frames `[T, H, W, 3]` -> probabilities of the classes `[T, K]`."""
        here = next(self._module.parameters())
        x = prepare_frames(frames, self._frames).to(here.device, here.dtype)  # [T, 3, h, w]
        with torch.inference_mode():
            return self._module(x).float().softmax(dim=-1).cpu().numpy()  # type: ignore[no-any-return]

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text per clip; empty without video."""
        return ["" if clip.frames is None else self._text(clip.frames, clip.frames_ok) for clip in clips]

    def _text(self, frames: NDArray[np.uint8], real: Sequence[bool]) -> str:
        names = [*self._names, *KINDS]
        threshold, most = self._settings["threshold"], self._settings["names"]
        found = claims(
            with_kinds(self.scores(frames), threshold), names, real, threshold=threshold, most=most
        )
        return sentence("A picture of", found, real, NOTHING, thing)


class Classifier(EfficientNetLite0):
    """The backbone's network with its classifier."""

    def build(self, settings: Mapping[str, Any]) -> nn.Module:
        """With all 1000 classes; any size of frames will do."""
        made = self._timm.create_model(self._architecture, pretrained=False, num_classes=CLASSES)
        return cast(nn.Module, made)


def with_kinds(scores: Scores, threshold: float) -> Scores:
    """Probabilities `[T, K]` -> `[T, K + kinds]`: behind the classes the sum of each kind's, 0 where one is claimed."""
    sums = []
    for ranges in KINDS.values():
        own = scores[:, [k for part in ranges for k in part]]
        sums.append(np.where((own >= threshold).any(axis=1), 0, own.sum(axis=1)))
    return np.concatenate([scores, np.stack(sums, axis=1)], axis=1).astype(np.float32)
