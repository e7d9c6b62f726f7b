"""What the store's crash tests do in a child process that is killed meanwhile."""

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
    """Stands in for `atomic.link_file` on a disk without hard links."""
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(old), None, str(new))


def killed_at(
    work: str,
    stores: str,
    backend: str,
    step: int,
    steps: Sequence[str],
    log: str | None,
    links: bool = True,
) -> None:
    """Call the function named `work`; the process ends, as by SIGKILL, just before the `step`-th of `steps`.

    The file `log` gets the key of each kept record, one per line; without `links` the disk has no hard links.
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
        if log is not None:
            with Path(log).open("a") as out:
                out.write(f"{record.key}\n")

    StoreWriter.keep = noted  # type: ignore[method-assign]
    if not links:
        publish.link_file = no_links
    for name in steps:
        setattr(publish, name, failing(getattr(publish, name)))
    globals()[work](Toy(Path(stores), backend))
