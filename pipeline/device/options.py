"""What of the computation on a device decides a store's bytes, and is therefore part of its recipe.

Which device computes, and how many do, is no part of it: see `lanes.py`. Imports no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from caeav.manifests.errors import CaeavError

PRECISIONS = ("fp32", "bf16", "fp16")
MAX_BATCH = 4096
DEFAULT_BATCH = 8


@dataclass(frozen=True)
class ComputeOptions:
    """`batch`: clips computed together; `precision`: of the arithmetic (weights stay float32 but under autocast);
    `compile`: let torch compile the networks first."""

    batch: int = DEFAULT_BATCH
    precision: str = "fp32"
    compile: bool = False

    def fields(self) -> dict[str, Any]:
        """JSON values for the recipe; raises `CaeavError` for values that make no sense."""
        if self.precision not in PRECISIONS:
            raise CaeavError(
                f"unknown precision {self.precision!r}", hint=f"choose one of: {', '.join(PRECISIONS)}"
            )
        if not 1 <= self.batch <= MAX_BATCH:
            raise CaeavError(f"a batch of {self.batch} clips", hint=f"give 1 to {MAX_BATCH}")
        return asdict(self)
