"""What the shard formats share: files mapped into memory, index files, and the order in which a shard is replaced.

An index file is a header that begins with magic and version, a body of the format's own, and the sha256 of all that
(32 bytes). It holds the keys of the shard end to end, and where each one ends.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.atomic import Staging, staging, unpublish
from caeav.manifests.key_index import Keys
from caeav.manifests.keys import KEY_CHARS, MAX_KEY_CHARS
from caeav.pipeline.store.backend import BadIndex, FileFacts, ShardIndex
from caeav.pipeline.store.errors import Problem
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.payload import Bytes
from caeav.pipeline.store.spare import publish_index, withdraw_index

DIGEST_BYTES = 32
Index = TypeVar("Index", bound=ShardIndex)

POPULATE_READ = 22
"""Linux' MADV_POPULATE_READ (5.14), for which `mmap` has no name; older systems refuse it."""
# mmap.madvise keeps the interpreter locked while it waits for the disk
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class MappedFile:
    """One file of a shard: `bytes` is all of it, read-only; views into it keep the map alive.

    Raises `DamagedShard` when the file is missing or does not have the size that its index says.
    """

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

    def prefetch(self, start: int, end: int) -> None:
        """Ask the system to read a part of the file soon, in one go."""
        first = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, first, end - first)

    def fetch(self, start: int, end: int) -> None:
        """Have a part of the file in memory, waiting for the disk. Only a hint; meant for a thread of its own."""
        first = start - start % mmap.PAGESIZE
        _madvise(self.bytes.ctypes.data + first, end - first, POPULATE_READ)

    def damaged(self, what: str, key: str = "") -> NoReturn:
        """Raise `DamagedShard` naming file and key."""
        raise Problem(self.facts.name, what, key, self.shard).error(self.store)


def replace_shard(
    folder: StoreFolder, number: int, old: Iterable[Path], write: Callable[[Staging], Index]
) -> Index:
    """Publish the files that `write` stages as shard `number`, in place of the `old` ones, then their index.

    Stopped before the old index goes, the old shard stands; stopped later, there is no shard.
    """
    with staging() as staged:
        index = write(staged)
        staged.sync()  # a full disk must show before the old index goes
        withdraw_index(folder, number)
        for stray in {*old} - {folder.path / facts.name for facts in index.files}:
            unpublish(stray)
        staged.put()
    publish_index(folder, index)
    return index


def seal_index(body: bytes) -> bytes:
    """The bytes of an index file with this header and body."""
    return body + hashlib.sha256(body).digest()


def open_index(
    data: bytes, header: struct.Struct, magic: bytes, version: int
) -> tuple[bytes, tuple[Any, ...]]:
    """An index file -> everything before its digest, and the fields of its header after magic and version.

    Raises `BadIndex` for another format or version and for bytes that are not those written.
    """
    if len(data) < header.size + DIGEST_BYTES:
        raise BadIndex(f"{len(data)} bytes are too few for an index")
    body, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    seen_magic, seen_version, *fields = header.unpack_from(body)
    if seen_magic != magic:
        raise BadIndex(f"begins with {seen_magic!r}, not {magic!r}")
    if hashlib.sha256(body).digest() != digest:
        raise BadIndex("its checksum does not fit its content")
    if seen_version != version:
        raise BadIndex(f"has version {seen_version}; this program reads version {version}")
    return body, tuple(fields)


def join_keys(keys: Sequence[str]) -> tuple[bytes, NDArray[np.uint32]]:
    """Keys -> their bytes end to end, and where each one ends."""
    table = Keys.of(keys)
    return table.blob, table.ends


def split_keys(blob: bytes, ends: NDArray[np.uint32]) -> Keys:
    """The inverse of `join_keys`; raises `BadIndex` for keys that are not distinct or not allowed."""
    # a million clips have thousands of indexes with few keys each: plain loops are faster here than arrays
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
