"""Files of shards from object stores on this machine's disk: named by their digest, bounded by bytes, shared.

A file is there whole and verified, or not at all. Where a new one needs room, those used longest ago go, whoever
brought them. Processes agree by locks of the file system: one brings a file while others wait for it, nothing goes
while a file is being mapped, and what a killed process left is removed by the next that needs room. A file that is
still mapped when it goes frees its bytes when its reader moves on.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from caeav.manifests.core.atomic import TEMP_PREFIX, make_folder, rename
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import file_sha256, size_text
from caeav.pipeline.store.backend import FileFacts

LIMIT_VARIABLE = "CAEAV_CACHE_BYTES"
DEFAULT_LIMIT = 32_000_000_000
POLL_S = 0.02
WAIT_S = 1800.0
"""So long a process waits for room that others take before it gives up."""
TOUCH_S = 1.0
"""A use is noted at most so often."""
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}

Fetch = Callable[[FileFacts, BinaryIO], None]
"""Writes the verified bytes of a file into an open one."""


def cache_limit() -> int:
    """The bytes that `CAEAV_CACHE_BYTES` allows, by default 32 GB; raises `CaeavError` for another value."""
    return parse_bytes(os.environ.get(LIMIT_VARIABLE) or str(DEFAULT_LIMIT))


def parse_bytes(text: str) -> int:
    """`50GB`, `1.5T`, `2000000` -> bytes; raises `CaeavError`."""
    plain = text.strip().lower().removesuffix("b")
    unit = plain[-1:] if plain[-1:] in tuple("kmgt") else ""
    try:
        count = int(float(plain.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise CaeavError(f"{text!r} is no number of bytes", hint="write it as 50GB, 500M or 2000000")
    return count


def cache_folder(home: Home) -> Path:
    """Where a home keeps what came from object stores. It may be removed while nobody reads."""
    return home.root / "cache"


class ShardCache:
    """The files in one folder, at most `limit` bytes of them. Safe to use from several threads and processes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def path(self, facts: FileFacts) -> Path:
        """Where a file lies, if it is there."""
        return self.folder / facts.sha256

    def has(self, facts: FileFacts) -> bool:
        """Whether a file is there; it may be gone in the next moment."""
        try:
            return self.path(facts).stat().st_size == facts.bytes
        except FileNotFoundError:
            return False

    @contextmanager
    def holding(self, files: Sequence[FileFacts], fetch: Fetch) -> Iterator[None]:
        """Bring these files, and let none of them go before this ends: to be short, as other processes wait."""
        self.check(sum(facts.bytes for facts in files))
        deadline = time.monotonic() + WAIT_S
        while True:
            self.bring(files, fetch)
            with self._lock(fcntl.LOCK_SH):
                if all(map(self.has, files)):
                    self.touch(files)
                    yield
                    return
            if time.monotonic() > deadline:
                raise self._too_small("what is read at the same time")

    def check(self, needed: int) -> None:
        """Raises `CaeavError` where so many bytes cannot be held together."""
        if needed > self.limit:
            raise self._too_small(f"{size_text(needed)} that are needed at once")

    def bring(self, files: Sequence[FileFacts], fetch: Fetch) -> None:
        """Have these files there; each that is not is fetched by one process."""
        for facts in files:
            deadline = time.monotonic() + WAIT_S
            while not self.has(facts):
                out = self._admit(facts, keep=files)
                if out is None:
                    if time.monotonic() > deadline:
                        raise self._too_small("what is fetched at the same time")
                    time.sleep(POLL_S)
                    continue
                with out:
                    self._fill(facts, out, fetch)

    def touch(self, files: Sequence[FileFacts]) -> None:
        """Note that these files are in use."""
        for facts in files:
            try:
                os.utime(self.path(facts))
            except FileNotFoundError:
                continue

    def drop_damaged(self, files: Sequence[FileFacts]) -> bool:
        """Remove those of these files that are no longer what their name says; whether there was one."""
        found = False
        for facts in files:
            path = self.path(facts)
            if path.is_file() and file_sha256(path) != facts.sha256:
                path.unlink(missing_ok=True)
                found = True
        return found

    def used(self) -> int:
        """Bytes taken, those of files that are being fetched included."""
        return sum(size for _, size, _ in self._entries())

    def _fill(self, facts: FileFacts, out: BinaryIO, fetch: Fetch) -> None:
        temp = self._temp(facts)
        try:
            fetch(facts, out)
            out.flush()  # not synced: what a power cut damages is found when it is read, and fetched again
            rename(temp, self.path(facts))
        except BaseException:
            temp.unlink(missing_ok=True)
            raise

    def _admit(self, facts: FileFacts, keep: Sequence[FileFacts]) -> BinaryIO | None:
        """A file to write into, of the full size and locked; None while another process fetches it, or has the room."""
        kept = {other.sha256 for other in keep}
        make_folder(self.folder)
        with self._lock(fcntl.LOCK_EX):
            entries = [entry for entry in self._entries() if not self._is_left_over(entry[0])]
            if self.has(facts) or self._temp(facts).exists():
                return None
            total = sum(size for _, size, _ in entries)
            for path, size, _ in sorted(entries, key=lambda entry: entry[2]):
                if total + facts.bytes <= self.limit:
                    break
                if path.name not in kept and not path.name.startswith(TEMP_PREFIX):
                    path.unlink(missing_ok=True)
                    total -= size
            if total + facts.bytes > self.limit:
                return None
            out = self._temp(facts).open("xb+")
            fcntl.flock(out, fcntl.LOCK_EX)  # as long as it is written: who finds it unlocked may remove it
            out.truncate(facts.bytes)
            return out

    def _temp(self, facts: FileFacts) -> Path:
        return self.folder / f"{TEMP_PREFIX}{facts.sha256}"

    def _entries(self) -> list[tuple[Path, int, int]]:
        """Path, bytes and time of last use (ns) of each file."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name == ".lock":
                continue
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            found.append((path, facts.st_size, facts.st_mtime_ns))
        return found

    def _is_left_over(self, path: Path) -> bool:
        """Remove a file whose fetching process is gone; the lock on the folder is held."""
        if not path.name.startswith(TEMP_PREFIX):
            return False
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        path.unlink(missing_ok=True)
        return True

    @contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        make_folder(self.folder)
        with (self.folder / ".lock").open("ab") as file:
            fcntl.flock(file, how)
            yield

    def _too_small(self, what: str) -> CaeavError:
        return CaeavError(
            f"the cache {self.folder} may hold {size_text(self.limit)}, too few for {what}",
            hint=f"give more: caeav train --cache-bytes, or {LIMIT_VARIABLE}=50GB in the environment",
        )
