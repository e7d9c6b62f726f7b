"""One writer a store: an exclusive lock on a file that stays, empty while nobody holds it."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from caeav.pipeline.store.errors import StoreBusy

_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


class WriterLock:
    """Holds the lock until `release`, or until the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise StoreBusy(
                f"{path.parent} is being written by the process with pid {holder}",
                hint="wait until it is done, or stop it; what it finished is kept",
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._fd = fd
        _held.add(self)

    def release(self) -> None:
        """Empty the file and let others write; a second call does nothing."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Close without unlocking; the lock goes when the last process that has it open does so."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _close_in_child() -> None:
    """A forked decoder that outlives a killed parent must not keep the store locked."""
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_close_in_child)
