"""Steps that change the disk: make one of them fail, or let something happen at it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from caeav.manifests.core import atomic
from caeav.pipeline.store import StoreWriter

STEPS = ("write_bytes", "sync_file", "sync_folder", "rename", "remove", "make_folder")
"""The functions of `atomic` that change the disk; everything that must survive a crash goes through them."""


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


def publish_in_step(counter: str) -> None:
    """After each published shard, wait until a reader has written into the file `counter` how many shards it saw."""
    publish, published = StoreWriter.publish, 0

    def paced(writer: StoreWriter, plan: Any, records: Any) -> None:
        nonlocal published
        publish(writer, plan, records)
        published += 1
        end = time.monotonic() + 60
        while int(Path(counter).read_text() or 0) < published and time.monotonic() < end:
            time.sleep(0.002)

    StoreWriter.publish = paced  # type: ignore[method-assign]


def signal_at(step: int, number: int) -> None:
    """Send this process a signal just before its step-th step."""
    real = dict(vars(atomic))

    def signalled(name: str, arguments: tuple[Any, ...]) -> object:
        os.kill(os.getpid(), number)
        return real[name](*arguments)

    failpoint(step, signalled)
