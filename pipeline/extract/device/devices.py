"""Which devices compute: names given by a user to torch devices, one lane (thread) each, and torch's own settings.

A CPU lane computes on one thread, however many lanes there are: so results depend neither on the number of lanes
nor on that of the machine's cores. The same device may be named several times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import usable_cores
from caeav.pipeline.extract.device.options import CPU, check_devices, gpu_number

AUTO_CPU_LANES = 4
"""Lanes taken without being asked for: each holds the activations of a batch."""


def choose_lanes(names: Sequence[str]) -> list[torch.device]:
    """`("0", "1")`, `("cpu", "cpu")`, `("auto",)` -> a device a lane; `auto`: every GPU, else CPU lanes.

    Raises `CaeavError` for a device that is not there, and for kinds mixed, which would not give the same bytes.
    """
    check_devices(names)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    lanes: list[torch.device] = []
    for name in names:
        number = gpu_number(name)
        if number is not None and number >= gpus:
            raise CaeavError(
                f"device {name!r} is not there: torch {torch.__version__} sees {gpus} GPU{'s' * (gpus != 1)}",
                hint="caeav doctor shows the devices; --devices cpu computes without one",
            )
        if number is not None:
            lanes.append(torch.device("cuda", number))
        elif name == CPU:
            lanes.append(torch.device("cpu"))
        else:
            cores = min(usable_cores(), AUTO_CPU_LANES)
            lanes += [torch.device("cuda", i) for i in range(gpus)] if gpus else [torch.device("cpu")] * cores
    return lanes


def device_name(device: torch.device) -> str:
    """What a record says computed it: `cpu`, or a GPU's model name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def steady() -> Iterator[None]:
    """Let the same input give the same output: one thread an operation, no algorithm chosen by timing, no TF32."""
    threads = torch.get_num_threads()
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.set_num_threads(threads)
