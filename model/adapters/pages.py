"""Memory that was freed, given back to the system: what keeps a training step's peak near what is alive.

During a backward pass activations die and gradients, of other sizes, are born. The C library's allocator takes the
gradients from new pages and keeps the freed ones for later, so that a process holds the sum of both where the
largest of either would do. On glibc one call returns the freed pages; elsewhere nothing happens here, and neither is
anything needed on a GPU, whose allocator reuses its blocks.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from torch import Tensor

WORTH_BYTES = 2**22


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """The C library's `malloc_trim`, where it has one."""
    try:
        found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # a platform whose C library cannot be opened like this
        return None
    return found


def return_free_memory(before: Tensor) -> None:
    """Give freed pages back, before a gradient of the size of `before` is made; nothing for small ones."""
    trim = _trim()
    if trim is not None and before.nbytes >= WORTH_BYTES:
        trim(0)
