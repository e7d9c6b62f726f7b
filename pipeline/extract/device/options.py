"""Options of computing on devices: those that decide a store's bytes, and the names of devices.

Which devices compute, and how many, changes no byte and is not in the recipe. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from caeav.manifests.core.errors import CaeavError, choices, did_you_mean

PRECISIONS = ("fp32", "bf16", "fp16")
MAX_BATCH = 4096
DEFAULT_BATCH = 8
AUTO, CPU = "auto", "cpu"
DEVICES_HINT = "give auto, cpu (cpu,cpu for two at a time), or GPUs by number, as 0 or 0,1"


@dataclass(frozen=True)
class ComputeOptions:
    """Part of the recipe. `batch`: clips computed together; `precision`: of the arithmetic (weights stay float32 except
    under autocast); `compile`: let torch compile the networks first."""

    batch: int = DEFAULT_BATCH
    precision: str = "fp32"
    compile: bool = False

    def fields(self) -> dict[str, Any]:
        """JSON values for the recipe; raises `CaeavError` for impossible values."""
        if self.precision not in PRECISIONS:
            raise CaeavError(
                f"unknown precision {self.precision!r}", hint=choices(self.precision, PRECISIONS)
            )
        if not 1 <= self.batch <= MAX_BATCH:
            raise CaeavError(f"a batch of {self.batch} clips", hint=f"give 1 to {MAX_BATCH}")
        return asdict(self)


_GPU = re.compile(r"(?:cuda:)?(\d+)|cuda")


def gpu_number(name: str) -> int | None:
    """Which GPU a name means: 1 for `1` and `cuda:1`, 0 for `cuda`; None for no GPU."""
    found = _GPU.fullmatch(name)
    return int(found[1] or 0) if found else None


def check_devices(names: Sequence[str]) -> None:
    """Raise `CaeavError` for impossible names, and for kinds mixed, which would not give the same bytes.

    Whether a GPU is there is only checked when something computes on it, see `devices.py`.
    """
    for name in names:
        if name not in (AUTO, CPU) and gpu_number(name) is None:
            meant = (
                "did you mean 0, the first GPU?" if "gpu" in name.lower() else did_you_mean(name, (AUTO, CPU))
            )
            raise CaeavError(f"unknown device {name!r}", hint=f"{meant} {DEVICES_HINT}".strip())
    kinds = {"GPU" if gpu_number(name) is not None else name for name in names}
    if len(kinds) != 1:
        raise CaeavError(
            f"devices {', '.join(names) or '(none)'}: GPUs and CPUs do not give the same bytes",
            hint=f"name devices of one kind: {DEVICES_HINT}",
        )
