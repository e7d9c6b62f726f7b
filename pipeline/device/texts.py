"""Text backbones on a device. Shapes: `N` texts, `W` tokens, `C` channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from caeav.pipeline.backbones.base import TextBackbone
from caeav.pipeline.extract.device.devices import choose_lanes, steady
from caeav.pipeline.extract.device.network import HasModule, arithmetic, place
from caeav.pipeline.extract.device.options import ComputeOptions


def text_encoder(
    backbone: TextBackbone, devices: Sequence[str], compute: ComputeOptions
) -> Callable[[Sequence[str]], tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """`encode` of a backbone placed on the first of `devices`: texts -> tokens `[N, W, C]`, mask `[N, W]`."""
    device = choose_lanes(devices)[0]
    place(cast(HasModule, backbone), device)

    def encode(texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        with steady(), torch.inference_mode(), arithmetic(device, compute.precision):
            return backbone.encode(texts)

    return encode
