"""One file of a shard, memory-mapped: refused when it is missing or has another size than was written.

A thread that has records read from the disk, in the order in which they are about to be used.

It only touches memory maps, so that nothing depends on it but time: what it has not fetched, or could not, is read by
whoever uses the record, who meets the error too.

The keys of a shard as index files hold them: one after the other, and where each ends.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.key_index import Keys
from caeav.manifests.keys import KEY_CHARS, MAX_KEY_CHARS
from caeav.pipeline.store.backend import BadIndex, FileFacts, Shard
from caeav.pipeline.store.errors import Problem, StoreError
from caeav.pipeline.store.payload import Bytes

AT_ONCE = 8
"""Records that the disk is asked for at the same time where they do not follow each other."""


class Fetcher:
    """Fetches what it is asked for until it is closed. Give it shards nobody else takes records out of meanwhile."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[tuple[Shard, int] | None] = SimpleQueue()
        self._closed = False
        self._thread = Thread(target=self._work, name="caeav-fetcher", daemon=True)
        self._thread.start()

    def ask(self, shard: Shard, row: int) -> None:
        """Fetch that record when those asked for before are there."""
        self._wanted.put((shard, row))

    def close(self) -> None:
        """End the thread, whatever it was still asked for."""
        self._closed = True
        self._wanted.put(None)
        self._thread.join()

    def _work(self) -> None:
        asked: deque[tuple[Shard, int]] = deque()
        last: tuple[Shard, int] | None = None
        while True:
            while not asked or (len(asked) < AT_ONCE and not self._wanted.empty()):
                wanted = self._wanted.get()
                if wanted is None or self._closed:
                    return
                shard, row = wanted
                # in order the system reads ahead by itself, in larger pages
                if row and last != (shard, row - 1):
                    with suppress(StoreError, OSError):
                        shard.ahead(row)
                last = wanted
                asked.append(wanted)
            shard, row = asked.popleft()
            with suppress(StoreError, OSError):
                shard.fetch(row)


def join_keys(keys: Sequence[str]) -> tuple[bytes, NDArray[np.uint32]]:
    """Keys -> their bytes put together, and the place behind each."""
    table = Keys.of(keys)
    return table.blob, table.ends


def split_keys(blob: bytes, ends: NDArray[np.uint32]) -> Keys:
    """The inverse of `join_keys`; raises `BadIndex` for keys that are not distinct or not allowed."""
    # a million clips have thousands of indexes, each of few keys: plain loops are faster here than arrays
    places = ends.tolist()
    if (places[-1] if places else 0) != len(blob):
        raise BadIndex("its keys are not one list of distinct keys")
    keys = [blob[start:end] for start, end in pairwise([0, *places])]
    sizes = [end - start for start, end in pairwise([0, *places])]
    if any(size < 1 or size > MAX_KEY_CHARS for size in sizes):
        raise BadIndex(
            "holds a key that is not allowed: one without characters, too long, or outside of their bytes"
        )
    if blob.translate(None, KEY_CHARS):
        stray = next(key for key in keys if key.translate(None, KEY_CHARS))
        raise BadIndex(f"holds a key that is not allowed: {stray[:80].decode('ascii', 'replace')!r}")
    if len(set(keys)) != len(keys):
        raise BadIndex("its keys are not one list of distinct keys")
    return Keys(blob, ends.astype(np.uint32))


POPULATE_READ = 22
"""Linux' MADV_POPULATE_READ (5.14), which `mmap` has no name for; what does not know it refuses it."""
# the one in `mmap` keeps the interpreter locked while it waits for the disk
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class MappedFile:
    """`bytes` is the whole file, read-only; views into it keep the map alive. Raises `DamagedShard`."""

    def __init__(self, store: Path, facts: FileFacts, shard: int) -> None:
        self.store = store
        self.facts = facts
        self.shard = shard
        path = store / facts.name
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size != facts.bytes:
                    self.damaged(f"{size} bytes, its index says {facts.bytes}")
                if size == 0:
                    self.damaged("the file is empty")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, IsADirectoryError):
            self.damaged("the file is missing")
        self.bytes: Bytes = np.frombuffer(self._map, np.uint8)

    def ahead(self, start: int, end: int) -> None:
        """Ask for a part of the file to be read from the disk in one go, as it is about to be used."""
        first = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, first, end - first)

    def fetch(self, start: int, end: int) -> None:
        """Have a part of the file in memory, waiting for the disk: for a thread of its own. A hint all the same."""
        first = start - start % mmap.PAGESIZE
        _madvise(self.bytes.ctypes.data + first, end - first, POPULATE_READ)

    def damaged(self, what: str, key: str = "") -> NoReturn:
        """Raise `DamagedShard` naming file and key."""
        raise Problem(self.facts.name, what, key, self.shard).error(self.store)
