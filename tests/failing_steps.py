"""Steps of a process that fail, or at which something happens to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from caeav.manifests.core import atomic

STEPS = ("write_bytes", "sync_file", "sync_folder", "rename", "remove", "make_folder")
"""The functions of `atomic` that change the disk; everything that must survive goes through them."""


def failpoint(step: int, do: Callable[[str, tuple[Any, ...]], object], steps: Sequence[str] = STEPS) -> None:
    """Call `do(name, arguments)` instead of the step-th step of this process."""
    count = 0

    def wrapped(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: Any) -> object:
            nonlocal count
            count += 1
            return do(name, args) if count == step else real(*args)

        return call

    for name in steps:
        setattr(atomic, name, wrapped(name, getattr(atomic, name)))


def signal_at(step: int, number: int) -> None:
    """The process sends itself a signal just before its step-th step."""
    real = dict(vars(atomic))

    def signalled(name: str, given: tuple[Any, ...]) -> object:
        os.kill(os.getpid(), number)
        return real[name](*given)

    failpoint(step, signalled)
