"""Digesting and checking a file's bytes in one pass: what `verify` does with every shard, at about memory speed.

A block is digested and then compared with its record's checksum while it still lies in the processor's cache.
Both release the interpreter lock, so shards are checked in parallel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import google_crc32c

from caeav.pipeline.store.payload import Bytes

BLOCK_BYTES = 1 << 20

Span = tuple[int, int]
"""First byte of a record's part in its file, and the byte after its last."""


def digest(data: Bytes, spans: Sequence[Span], progress: Callable[[int], object]) -> tuple[str, list[int]]:
    """sha256 (hex) of `data` and the crc32c of each span; spans ascend and do not overlap."""
    sha256 = hashlib.sha256()
    sums: list[int] = []
    position = 0
    for start, end in (*spans, (data.size, data.size)):
        sha256.update(data[position:start].data)
        value = 0
        for begin in range(start, end, BLOCK_BYTES):
            block = data[begin : min(begin + BLOCK_BYTES, end)]
            sha256.update(block.data)
            value = google_crc32c.extend(value, block)
        sums.append(value)
        progress(end - position)
        position = end
    return sha256.hexdigest(), sums[:-1]
