"""What the crash tests of the store do in a child, which is killed meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from caeav.manifests.core import atomic as publish
from caeav.pipeline.store import Record, StoreWriter, merge, repair
from caeav.pipeline.store.testing_data import Toy

KILLED = 77
FAILING = ("clip002", "clip013")


def fresh(toy: Toy, **how: Any) -> None:
    toy.write(failing=["clip002", "clip009"], **how)


def grown_and_retried(toy: Toy, **how: Any) -> None:
    toy.write(toy.manifest(14, label="horn"), retry_failed=True, **how)


def repaired(toy: Toy, **how: Any) -> None:
    repair(toy.folder)
    fresh(toy, **how)


def merged(toy: Toy) -> None:
    merge(sorted(toy.dataset.glob("*.slice-*")))


def no_links(old: Path, new: Path) -> None:
    """A disk without hard links."""
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(old), None, str(new))


def killed_at(
    work: str,
    stores: str,
    backend: str,
    step: int,
    steps: Sequence[str],
    told: str | None,
    links: bool = True,
) -> None:
    """Do one of the works above; the process dies, as by SIGKILL, just before the `step`-th of `steps`.

    `told` gets a line a record that was kept; without `links` the disk knows no hard links.
    """
    count = 0

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == step:
                os._exit(KILLED)
            return real(*args, **kwargs)

        return call

    keep = StoreWriter.keep

    def noted(writer: StoreWriter, record: Record) -> None:
        keep(writer, record)
        if told is not None:
            with Path(told).open("a") as out:
                out.write(f"{record.key}\n")

    StoreWriter.keep = noted  # type: ignore[method-assign]
    if not links:
        publish.link_file = no_links
    for name in steps:
        setattr(publish, name, failing(getattr(publish, name)))
    globals()[work](Toy(Path(stores), backend))
