"""One writer per store: an exclusive lock on a file that stays, empty while nobody holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
import weakref
from pathlib import Path

from caeav.pipeline.store.errors import DamagedStore, StoreBusy, StoreError

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)

_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


class WriterLock:
    """Holds the lock until `release` or the end of the process, however that comes.

    Raises `StoreBusy` naming the process that holds it, `FileNotFoundError` when the store was removed meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._fd = _lock_file(path)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        _held.add(self)

    def release(self) -> None:
        """Empty the file and let others write; a second call does nothing."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Close without unlocking: the lock ends when the last process that has it open closes it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock_file(path: Path) -> int:
    """The lock file, open and locked."""
    fd = _open_plain(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), path.lstat()):
            raise FileNotFoundError(errno.ENOENT, "removed while it was being locked", str(path))
    except BlockingIOError:
        holder = _holder(fd)
        os.close(fd)
        raise StoreBusy(
            f"{path.parent} is being written by the process with pid {holder}",
            hint="wait until it is done, or stop it; what it finished is kept",
        ) from None
    except OSError as error:
        os.close(fd)
        if error.errno not in NO_LOCKS:
            raise
        raise StoreError(
            f"the file system of {path.parent} has no locks: {error.strerror}",
            hint="mount it with locks (NFS: version 4, or version 3 with lockd), or put --home elsewhere",
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open_plain(path: Path) -> int:
    """The file itself, which will be emptied and written: never what a link in a stranger's store points to."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        fd = -1
    if fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
        if fd >= 0:
            os.close(fd)
        raise DamagedStore(f"{path} is no plain file", hint=f"remove {path}")
    return fd


def _holder(fd: int) -> str:
    """The pid in a lock file that another process holds and may be about to write."""
    for _ in range(20):
        if text := os.pread(fd, 32, 0).decode("ascii", "replace").strip():
            return text
        time.sleep(0.005)
    return "unknown"


def _close_in_child() -> None:
    """A forked decoder that outlives a killed parent must not keep the store locked."""
    for lock in list(_held):
        lock.forget()


os.register_at_fork(after_in_child=_close_in_child)
