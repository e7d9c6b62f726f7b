"""What a frozen backbone is to the rest of the program: declared taps, a digest, and one pure function.

A backbone declares its taps and their shapes before anything runs, so that a store can be planned, and is a
pure function of its input: the tokens of a clip do not depend on which clips share its batch.
Shapes: `N` clips, `T` segments, `L` tokens a segment, `C` channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.store.record import Tap

if TYPE_CHECKING:  # the embedded backbones, which are described here too, need no torch
    from torch import Tensor, nn

Modality = Literal["visual", "audio", "text"]


class MediaBackbone(Protocol):
    """A visual or audio backbone.

    `runs_in` says where it computes: `"worker"` (cheap, numpy only, beside the decoder, in its process) or
    `"device"` (torch, in the main process, batched across clips: a `TorchBackbone`).
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


class TorchBackbone(ABC):
    """A `MediaBackbone` of torch modules. The engine calls `prepare` in threads and `forward` on a device.

    The engine decides device, number format, memory layout, batch and gradient mode (none); a backbone only says
    how a clip becomes a tensor and a batch of tensors becomes tokens. Building one loads its weights; `taps` and
    `describe` cost nothing more.
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

        The same shape and dtype for every clip, whatever the size of its pictures. Called from several threads.
        """

    @abstractmethod
    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        """Prepared clips `[N, T, ...]` on the module's device -> `{tap: [N, T, L, C]}` there.

        A clip's tokens depend on its own row alone; rows of zeros are empty places of a batch. May be called from
        several threads, so it keeps no state.
        """

    def tokens(self, clips: Sequence[NDArray[Any]]) -> list[dict[str, NDArray[np.float32]]]:
        """The simple path, without an engine: clip by clip where the module lies, in float32."""
        import torch

        self.module().eval()
        found: list[dict[str, NDArray[np.float32]]] = []
        with torch.inference_mode():
            for clip in clips:
                device = next((p.device for p in self.module().parameters()), torch.device("cpu"))
                taps = self.forward(self.prepare(clip).unsqueeze(0).to(device))
                found.append({name: x[0].float().cpu().numpy() for name, x in taps.items()})  # [T, L, C]
        return found


class TextBackbone(Protocol):
    """A text encoder for captions.

    One made of torch modules also has `module() -> nn.Module`, as `TorchBackbone`: the engine moves it to a device
    and calls `encode` with batches of one size, in which empty places are empty texts.
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
