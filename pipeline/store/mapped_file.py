"""One file of a shard, memory-mapped: refused when it is missing or has another size than was written."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import NoReturn

import numpy as np

from caeav.pipeline.store.backend import FileFacts
from caeav.pipeline.store.errors import Problem
from caeav.pipeline.store.payload import Bytes

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
