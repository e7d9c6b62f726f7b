"""Freed memory given back to the system, which keeps a training step on a CPU small.

During a backward pass activations are freed and gradients, of other sizes, are made. The C library's allocator takes
the gradients from new pages and keeps the freed ones for later, so that a process holds the sum of both where the
larger of them would do. On glibc one call returns the freed pages; elsewhere nothing happens here. On a GPU, whose
allocator reuses its blocks, neither is needed.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

from torch import Tensor

WORTH_BYTES = 2**21
"""Freed pages are given back before gradients of at least this size are made."""


def return_free_memory_before(output: Tensor, weight: Tensor) -> Tensor:
    """`output`, which will give freed pages back as soon as its gradient is there, where `weight` is large.

    Its backward pass then begins: it frees what the forward pass kept, and makes a gradient of the size of `weight`.
    """
    if output.requires_grad and output.device.type == "cpu" and weight.nbytes >= WORTH_BYTES:
        output.register_hook(_trim)  # type: ignore[no-untyped-call]
    return output


def _trim(_: Tensor) -> None:
    trim = malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def malloc_trim() -> Callable[[int], int] | None:
    """The C library's `malloc_trim`, where it has one."""
    try:
        found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # a platform whose C library cannot be opened like this
        return None
    return found
