"""One component on one device: prepared clips in, tokens in the store's number format out; texts in, embeddings out.

Shapes: `N` places of a batch, `T` segments, `L` tokens, `W` caption tokens, `C` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.base import TextBackbone, TorchBackbone
from caeav.pipeline.captioners.base import Captioner
from caeav.pipeline.extract.device.devices import choose_devices, steady
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.media.clip import DecodedClip
from caeav.pipeline.store.dtypes import BFLOAT16, stored

PRECISION_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STORED_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SHORTAGE = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


class DeviceError(CaeavError):
    """A device cannot go on, whatever clips it is given."""


class HasModule(Protocol):
    """A component made of torch modules."""

    def module(self) -> nn.Module:
        """All its parameters and buffers."""
        ...


def place(part: HasModule, device: torch.device) -> nn.Module:
    """Move a component to a device, frozen, its weights laid out for convolutions where it has any."""
    module = part.module().eval().requires_grad_(False).to(device)
    if convolves(module):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def convolves(module: nn.Module) -> bool:
    """Whether a module has 2D convolutions, and no 3D ones, for which torch has another layout."""
    has = any(isinstance(part, nn.Conv2d) for part in module.modules())
    return has and all(tensor.dim() != 5 for tensor in module.parameters())


def arithmetic(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Automatic mixed precision for `bf16` and `fp16`."""
    return torch.autocast(device.type, PRECISION_DTYPES[precision], enabled=precision != "fp32")


def short_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may do."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SHORTAGE)


class TokenNetwork:
    """A backbone on a device; tokens are converted to the store's number format there, except int8."""

    def __init__(
        self, part: TorchBackbone, device: torch.device, compute: ComputeOptions, dtype: str
    ) -> None:
        self.device = device
        self._precision = compute.precision
        self._dtype = STORED_DTYPES.get(dtype, torch.float32)
        self._taps = {tap.name: (tap.tokens, tap.channels) for tap in part.taps()}
        place(part, device)
        self._forward: Callable[[Tensor], dict[str, Tensor]] = (
            _compiled(part.forward) if compute.compile else part.forward
        )

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        """`[N, T, ...]` on the device -> `{tap: [N, T, L, C]}` there, float32, float16 or bfloat16."""
        with torch.inference_mode(), arithmetic(self.device, self._precision):
            found = self._forward(batch)
        shapes = {name: tuple(x.shape) for name, x in found.items()}
        declared = {name: (*batch.shape[:2], *shape) for name, shape in self._taps.items()}
        if shapes != declared:
            raise DeviceError(
                f"the backbone gave {shapes}; it declares {declared}",
                hint="this is a mistake in the backbone",
            )
        return {name: x.to(self._dtype) for name, x in found.items()}


def _compiled(forward: Callable[[Tensor], dict[str, Tensor]]) -> Callable[[Tensor], dict[str, Tensor]]:
    """`forward`, compiled by torch at its first call; a failure there is not blamed on the clip."""
    from torch._dynamo.exc import TorchDynamoException

    compiled = cast(Callable[[Tensor], dict[str, Tensor]], torch.compile(forward))

    def run(batch: Tensor) -> dict[str, Tensor]:
        try:
            return compiled(batch)
        except TorchDynamoException as error:
            raise DeviceError(
                f"torch cannot compile the network: {' '.join(str(error).split())[:300]}",
                hint="leave out --compile; on a CPU it needs a C++ compiler (g++), on a GPU triton",
            ) from error

    return run


class CaptionNetwork:
    """A captioner on a device."""

    def __init__(self, part: Captioner, device: torch.device, compute: ComputeOptions) -> None:
        self.device = device
        self._precision = compute.precision
        self._part = part
        if hasattr(part, "module"):
            place(cast(HasModule, part), device)

    def __call__(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text per clip."""
        with torch.inference_mode(), arithmetic(self.device, self._precision):
            texts = self._part.caption(clips)
        if len(texts) != len(clips):
            raise DeviceError(
                f"the captioner gave {len(texts)} texts for {len(clips)} clips",
                hint="this is a mistake in the captioner",
            )
        return texts


def as_stored(taps: Mapping[str, Tensor], dtype: str) -> dict[str, NDArray[Any]]:
    """Tokens of one clip `[T, L, C]` on the CPU -> arrays as a shard holds them, in memory of their own."""
    found: dict[str, NDArray[Any]] = {}
    for name, x in taps.items():
        plain = x.view(torch.uint16) if x.dtype == torch.bfloat16 else x
        array = plain.numpy().copy()
        found[name] = array.view(BFLOAT16) if x.dtype == torch.bfloat16 else array
    return stored(found, dtype) if dtype == "int8" else found


def text_encoder(
    backbone: TextBackbone, devices: Sequence[str], compute: ComputeOptions
) -> Callable[[Sequence[str]], tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """`encode` of a backbone placed on the first of `devices`: texts -> tokens `[N, W, C]`, mask `[N, W]`."""
    device = choose_devices(devices)[0]
    place(cast(HasModule, backbone), device)

    def encode(texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        with steady(), torch.inference_mode(), arithmetic(device, compute.precision):
            return backbone.encode(texts)

    return encode
