"""What keeps a training step on a CPU small: dropout that remembers bytes, and freed memory given back to the system.

During a backward pass activations are freed and gradients, of other sizes, are made. The C library's allocator takes
the gradients from new pages and keeps the freed ones for later, so that a process holds the sum of both where the
larger of them would do. On glibc one call returns the freed pages; elsewhere nothing happens here. On a GPU, whose
allocator reuses its blocks, neither is needed.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

WORTH_BYTES = 2**21
"""Freed pages are given back before gradients of at least this size are made."""


class Dropout(nn.Dropout):
    """Dropout whose mask is a byte for each number; on a CPU torch's own keeps a float. The draws are the same."""

    def forward(self, x: Tensor) -> Tensor:
        """`[...]` -> `[...]`."""
        return torch.native_dropout(x, self.p, True)[0] if self.training and self.p > 0 else x


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
