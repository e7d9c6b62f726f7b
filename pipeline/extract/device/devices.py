"""Which devices compute: from names to torch devices, one device worker (a thread) each, and torch's own settings.

A device worker on the CPU computes on one thread, however many there are, so results depend neither on the number of
workers nor on that of the machine's cores. The same device may be named several times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import usable_cores
from caeav.pipeline.extract.device.options import CPU, check_devices, gpu_number

AUTO_CPU_WORKERS = 4
"""Most CPU workers that `auto` takes: each holds the activations of a batch."""


def choose_devices(names: Sequence[str]) -> list[torch.device]:
    """`("0", "1")`, `("cpu", "cpu")`, `("auto",)` -> one device per worker; `auto`: every GPU, else the CPU.

    Raises `CaeavError` for a device that is not there, and for kinds mixed, which would not give the same bytes.
    """
    check_devices(names)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found: list[torch.device] = []
    for name in names:
        number = gpu_number(name)
        if number is not None and number >= gpus:
            raise CaeavError(
                f"device {name!r} is not there: torch {torch.__version__} sees {gpus} GPU{'s' * (gpus != 1)}",
                hint="caeav doctor shows the devices; --devices cpu computes without one",
            )
        if number is not None:
            found.append(torch.device("cuda", number))
        elif name == CPU:
            found.append(torch.device("cpu"))
        else:
            cores = min(usable_cores(), AUTO_CPU_WORKERS)
            found += [torch.device("cuda", i) for i in range(gpus)] if gpus else [torch.device("cpu")] * cores
    return found


def device_name(device: torch.device) -> str:
    """How a record names the device that computed it: `cpu`, or a GPU's model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def steady() -> Iterator[None]:
    """Make the same input give the same output: one thread per operation, no algorithm chosen by timing, no TF32."""
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
