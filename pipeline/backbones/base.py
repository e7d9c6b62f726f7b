"""The interfaces of frozen backbones: visual and audio backbones, and text encoders.

A backbone declares its taps and their shapes before anything runs, so that a store can be planned. It is a pure
function of its input: the tokens of a clip do not depend on the other clips of its batch.
Shapes: `N` clips, `T` segments, `L` tokens per segment, `C` channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.store.record import Tap

if TYPE_CHECKING:  # the backbones that need no torch share these interfaces
    from torch import Tensor, nn

Modality = Literal["visual", "audio", "text"]


class MediaBackbone(Protocol):
    """A visual or audio backbone.

    `runs_in` says where it computes: in a `"worker"` (cheap, numpy only, in the decoder's process) or on a
    `"device"` (torch, in the main process, batched across clips: a `TorchBackbone`). `rate_hz` is the sample rate
    of its audio, None for frames.
    """

    name: str
    modality: Modality
    runs_in: Literal["worker", "device"]
    rate_hz: int | None

    def taps(self) -> tuple[Tap, ...]:
        """Declared outputs, from shallow to deep."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """JSON values that decide its output: settings, preprocessing, digest of its weights."""
        ...

    def tokens(self, clips: Sequence[NDArray[Any]]) -> list[dict[str, NDArray[np.float32]]]:
        """Frames `[T, H, W, 3]` uint8 or windows `[T, samples]` float32 of each clip -> its `{tap: [T, L, C]}`."""
        ...


class TorchBackbone(ABC):
    """A `MediaBackbone` of torch modules: `prepare` runs in threads, `forward` on a device.

    The engine decides device, number format, memory layout, batch size and gradient mode (none); a backbone only says
    how a clip becomes a tensor and how a batch of them becomes tokens.
    """

    name: str
    modality: Modality
    runs_in: Literal["device"] = "device"
    rate_hz: int | None = None

    @abstractmethod
    def taps(self) -> tuple[Tap, ...]:
        """Declared outputs, from shallow to deep."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """JSON values that decide its output: settings, preprocessing, digest of its weights."""

    @abstractmethod
    def module(self) -> nn.Module:
        """All parameters and buffers that `forward` uses, frozen, in eval mode; the engine moves it in place."""

    @abstractmethod
    def prepare(self, clip: NDArray[Any]) -> Tensor:
        """One clip's frames `[T, H, W, 3]` uint8 or windows `[T, samples]` float32 -> `[T, ...]` on the CPU.

        The same shape and dtype for every clip, whatever the size of its frames. Called from several threads.
        """

    @abstractmethod
    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Prepared clips `[N, T, ...]` on the module's device -> `{tap: [N, T, L, C]}` there.

        A clip's tokens depend on its own row alone; rows of zeros fill up a batch. May be called from several
        threads, so it keeps no state.
        """

    def check_segment(self, segment_s: float) -> None:  # noqa: B027 - most take any length
        """Raise `CaeavError` where it cannot take segments of this length, before a clip is decoded."""

    def tokens(self, clips: Sequence[NDArray[Any]]) -> list[dict[str, NDArray[np.float32]]]:
        """The simple path, without the engine: one clip at a time on the module's device, in float32."""
        import torch

        self.module().eval()
        found: list[dict[str, NDArray[np.float32]]] = []
        with torch.inference_mode():
            for clip in clips:
                device = next((p.device for p in self.module().parameters()), torch.device("cpu"))
                taps = self.forward(self.prepare(clip).unsqueeze(0).to(device))
                found.append({name: x[0].float().cpu().numpy() for name, x in taps.items()})  # [T, L, C]
        return found


def choose_taps(name: str, offered: Sequence[Tap], chosen: Sequence[str]) -> tuple[Tap, ...]:
    """The offered taps of these names, from shallow to deep; raises `CaeavError` for a name that is not offered."""
    known = [tap.name for tap in offered]
    unknown = [str(tap) for tap in chosen if tap not in known]
    if unknown:
        raise CaeavError(f"{name} has no tap {', '.join(unknown)}", hint=f"it has {', '.join(known)}")
    return tuple(tap for tap in offered if tap.name in chosen)


class TextBackbone(Protocol):
    """A text encoder for captions.

    One made of torch modules also has `module() -> nn.Module`, like a `TorchBackbone`: the engine moves it to a
    device and calls `encode` with batches of one size, filled up with empty texts.
    """

    name: str
    max_tokens: int
    channels: int

    def describe(self) -> Mapping[str, Any]:
        """JSON values that decide its output."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Texts -> tokens `[N, W, C]` (zeros where padded) and mask `[N, W]` (True: a real token)."""
        ...
