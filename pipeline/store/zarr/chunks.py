"""A file of Zarr's `sharding_indexed` codec: chunks with their crc32c, then the table of where each lies.

Chunks follow each other in the order of their slots, each beginning at a multiple of 64 so that a memory-mapped
view of it is aligned; what is between them is zero. A slot without chunk has 2^64-1 in the table. The whole file
is a function of its chunks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.atomic import Output
from caeav.pipeline.store.payload import ALIGNMENT, Bytes, crc32c

CRC_BYTES = 4
TEXT_HEAD_BYTES = 8
ABSENT = np.uint64(2**64 - 1)


def text_chunk(data: bytes) -> bytes:
    """One text in Zarr's `vlen-utf8` codec: one item, its length, its bytes."""
    return (1).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data


def offsets(sizes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], int]:
    """Sizes of the chunks (without crc) -> where each begins, and where the table does."""
    room = sizes + np.uint64(CRC_BYTES)
    room += (np.uint64(0) - room) % np.uint64(ALIGNMENT)
    ends = np.cumsum(room, dtype=np.uint64)
    return ends - room, int(ends[-1]) if len(ends) else 0


def table(slots: NDArray[np.uint32], sizes: NDArray[np.uint64], count: int) -> bytes:
    """The table of `count` slots, with its crc32c."""
    rows = np.full((count, 2), ABSENT, dtype="<u8")
    rows[slots, 0], _ = offsets(sizes)
    rows[slots, 1] = sizes + np.uint64(CRC_BYTES)
    data = rows.tobytes()
    return data + _crc_bytes(crc32c([data]))


def file_bytes(sizes: NDArray[np.uint64], count: int) -> int:
    """Size of the file of chunks of these sizes in `count` slots."""
    return offsets(sizes)[1] + 16 * count + CRC_BYTES


class ChunkWriter:
    """Writes one such file; `sums` are the chunks' crc32c so far."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._sha256 = hashlib.sha256()
        self._sizes: list[int] = []
        self.sums: list[int] = []

    def add(self, chunk: Bytes | bytes) -> None:
        """Write the next chunk."""
        self.sums.append(crc32c([chunk]))
        self._sizes.append(len(chunk))
        self._write(chunk if isinstance(chunk, bytes) else chunk.data)
        self._write(_crc_bytes(self.sums[-1]) + bytes(-(len(chunk) + CRC_BYTES) % ALIGNMENT))

    def finish(self, slots: Sequence[int], count: int) -> str:
        """Write the table: the chunks written lie in `slots` of `count`. Gives the file's sha256 (hex)."""
        self._write(table(np.array(slots, np.uint32), np.array(self._sizes, np.uint64), count))
        return self._sha256.hexdigest()

    def _write(self, data: Any) -> None:
        self._out.write(data)
        self._sha256.update(data)


def structure_differences(
    data: Bytes, slots: NDArray[np.uint32], sizes: NDArray[np.uint64], sums: NDArray[np.uint32], count: int
) -> Iterator[tuple[int, str]]:
    """Row and fact of each place around the chunks that is not as written; row -1 is the table."""
    begins, end = offsets(sizes)
    ends = [*begins[1:].tolist(), end]
    for row, (begin, size, after) in enumerate(zip(begins.tolist(), sizes.tolist(), ends, strict=True)):
        tail = data[begin + size : after].tobytes()
        if tail[:CRC_BYTES] != _crc_bytes(int(sums[row])):
            yield row, "the crc32c behind the chunk is not the one written"
        if any(tail[CRC_BYTES:]):
            yield row, "the padding behind the chunk is not zero"
    if data[end:].tobytes() != table(slots, sizes, count):
        yield -1, "the table of chunks at the file's end is not the one written"


def _crc_bytes(value: int) -> bytes:
    return value.to_bytes(CRC_BYTES, "little")
