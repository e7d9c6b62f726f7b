"""What a frozen backbone is to the rest of the program: declared taps, a digest, and one pure function.

A backbone declares its taps and their shapes before anything runs, so that a store can be planned, and is a
pure function of its input: the tokens of a clip do not depend on which clips share its batch.
Shapes: `N` clips, `T` segments, `L` tokens a segment, `C` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Modality = Literal["visual", "audio", "text"]


@dataclass(frozen=True, slots=True)
class Tap:
    """A cached place of a backbone: `visual.stage2` with `tokens` tokens of `channels` channels a segment."""

    name: str
    tokens: int
    channels: int


class MediaBackbone(Protocol):
    """A visual or audio backbone.

    `runs_in` says where it computes: `"worker"` (cheap, numpy only, beside the decoder, in its process) or
    `"device"` (torch, in the main process, batched across clips).
    """

    name: str
    modality: Modality
    runs_in: Literal["worker", "device"]
    rate_hz: int | None  # audio: sample rate it wants; visual: None

    def taps(self) -> tuple[Tap, ...]:
        """Declared outputs, from shallow to deep."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """JSON values that decide its output: settings, preprocessing, digest of its weights."""
        ...

    def tokens(self, clips: Sequence[NDArray[Any]]) -> list[dict[str, NDArray[np.float32]]]:
        """Clip by clip: frames `[T, H, W, 3]` uint8 or windows `[T, samples]` float32 -> `{tap: [T, L, C]}`."""
        ...


class TextBackbone(Protocol):
    """A text encoder for captions."""

    name: str
    max_tokens: int
    channels: int

    def describe(self) -> Mapping[str, Any]:
        """JSON values that decide its output."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Texts -> tokens `[N, W, C]` (zeros where padded) and mask `[N, W]` (True: a real token)."""
        ...
