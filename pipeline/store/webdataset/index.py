"""The sidecar index of a shard: where each record lies, its checksums, and which shard and recipe it belongs to.

Binary, little-endian, version 1: a header of 96 bytes (magic, version, shard number, records, bytes of keys,
bytes and sha256 of the shard, recipe fingerprint), `records` entries of 40 bytes, the keys one after the
other, and a sha256 of all that. Published after its shard; a shard without index does not exist.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.key_index import Keys
from caeav.pipeline.store.backend import BadIndex, FileFacts
from caeav.pipeline.store.keyblob import join_keys, split_keys

MAGIC = b"CAEAVIDX"
VERSION = 1
ENTRY = np.dtype(
    [
        ("array_offset", "<u8"),
        ("array_bytes", "<u8"),
        ("info_offset", "<u8"),
        ("info_bytes", "<u4"),
        ("array_crc32c", "<u4"),
        ("info_crc32c", "<u4"),
        ("key_end", "<u4"),
    ]
)
_HEADER = struct.Struct("<8sIIIIQ32s32s")
_DIGEST_BYTES = 32


def tar_name(number: int) -> str:
    """Place of a shard relative to the store."""
    return f"shards/{number:06d}.tar"


@dataclass(frozen=True, eq=False)
class TarIndex:
    """`entries` has one row of dtype `ENTRY` a key, in the shard's order; digests are hex."""

    number: int
    fingerprint: str
    shard_bytes: int
    shard_sha256: str
    keys: Keys
    entries: NDArray[np.void]

    @property
    def files(self) -> tuple[FileFacts, ...]:
        """The one tar."""
        return (FileFacts(tar_name(self.number), self.shard_bytes, self.shard_sha256),)

    @property
    def layout(self) -> tuple[Any, ...]:
        """Nothing: records of a tar may differ in their arrays."""
        return ()

    def encode(self) -> bytes:
        """The file's bytes."""
        entries = self.entries.copy()
        blob, entries["key_end"] = join_keys(self.keys)
        head = _HEADER.pack(
            MAGIC,
            VERSION,
            self.number,
            len(self.keys),
            len(blob),
            self.shard_bytes,
            bytes.fromhex(self.shard_sha256),
            bytes.fromhex(self.fingerprint),
        )
        body = head + entries.tobytes() + blob
        return body + hashlib.sha256(body).digest()


def decode_index(data: bytes) -> TarIndex:
    """A file's bytes -> index, every length checked before it is used; raises `BadIndex`."""
    if len(data) < _HEADER.size + _DIGEST_BYTES:
        raise BadIndex(f"{len(data)} bytes are too few for an index")
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    magic, version, number, count, keys_bytes, shard_bytes, shard_sha256, fingerprint = _HEADER.unpack_from(
        body
    )
    if magic != MAGIC:
        raise BadIndex(f"begins with {magic!r}, not {MAGIC!r}")
    if hashlib.sha256(body).digest() != digest:
        raise BadIndex("its checksum does not fit its content")
    if version != VERSION:
        raise BadIndex(f"has version {version}; this program reads version {VERSION}")
    if len(body) != _HEADER.size + count * ENTRY.itemsize + keys_bytes:
        raise BadIndex(f"{count} records with {keys_bytes} bytes of keys do not fit {len(data)} bytes")
    entries = np.frombuffer(body, ENTRY, count, _HEADER.size)
    keys = split_keys(body[_HEADER.size + count * ENTRY.itemsize :], entries["key_end"])
    for part in ("array", "info") if count else ():
        size, offset = entries[f"{part}_bytes"], entries[f"{part}_offset"]
        if int(size.max()) > shard_bytes or (offset > np.uint64(shard_bytes) - size).any():
            raise BadIndex(f"a record lies outside the shard's {shard_bytes} bytes")
    return TarIndex(number, fingerprint.hex(), shard_bytes, shard_sha256.hex(), keys, entries)
