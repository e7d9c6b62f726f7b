"""The sidecar index of a Zarr shard: which clips it holds in which slots, each chunk's checksum, its files' digests.

Binary, little-endian, version 1: a header (magic, version, shard number, clips, slots, bytes of the layout, bytes
of the keys, recipe fingerprint), the layout in JSON, the sha256 of each file, a row of 16 bytes a clip, the crc32c
of each clip's arrays, the keys, and a sha256 of all that. Where chunks lie follows from their sizes. Published after
its files; a shard without index does not exist.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.key_index import Keys
from caeav.pipeline.store.backend import BadIndex, FileFacts
from caeav.pipeline.store.keyblob import join_keys, split_keys
from caeav.pipeline.store.layout import MAX_SHARD_CLIPS
from caeav.pipeline.store.payload import MAX_INFO_BYTES
from caeav.pipeline.store.zarr.chunks import TEXT_HEAD_BYTES, file_bytes
from caeav.pipeline.store.formats.zarr_format import INFO, KEY, MAX_ARRAYS, ArrayLayout, Layout, file_name

MAGIC = b"CAEAVZIX"
VERSION = 1
MAX_CLIP_BYTES = 1 << 40
ROW = np.dtype([("slot", "<u4"), ("info_bytes", "<u4"), ("info_crc32c", "<u4"), ("key_end", "<u4")])
_HEADER = struct.Struct("<8sIIIIII32s")
_DIGEST_BYTES = 32


@dataclass(frozen=True, eq=False)
class ZarrIndex:
    """`rows` has one row of dtype `ROW` a stored clip, `sums` `[clips, arrays]` the crc32c of its chunks.

    `slots` is how many clips the shard has room for; `digests` (hex) are those of the arrays' files in the order
    of the layout, then of `info` and of `key`.
    """

    number: int
    fingerprint: str
    slots: int
    layout: Layout
    keys: Keys
    rows: NDArray[np.void]
    sums: NDArray[np.uint32]
    digests: tuple[str, ...]

    def sizes(self, place: int) -> NDArray[np.uint64]:
        """Bytes of each clip's chunk in the file number `place`, its crc32c not counted."""
        if place < len(self.layout):
            return np.full(len(self.keys), self.layout[place].bytes, np.uint64)
        texts = self.rows["info_bytes"] if place == len(self.layout) else self.keys.sizes
        return np.asarray(texts, np.uint64) + np.uint64(TEXT_HEAD_BYTES)

    @cached_property
    def files(self) -> tuple[FileFacts, ...]:
        """The shard's file of each array, of `info` and of `key`."""
        names = [(array.name, len(array.shape)) for array in self.layout] + [(INFO, 0), (KEY, 0)]
        return tuple(
            FileFacts(
                file_name(name, self.number, dimensions), file_bytes(self.sizes(place), self.slots), digest
            )
            for place, ((name, dimensions), digest) in enumerate(zip(names, self.digests, strict=True))
        )

    def encode(self) -> bytes:
        """The file's bytes."""
        rows = self.rows.copy()
        blob, rows["key_end"] = join_keys(self.keys)
        layout = json.dumps(
            [[a.name, a.dtype, list(a.shape)] for a in self.layout], ensure_ascii=True
        ).encode()
        head = _HEADER.pack(
            MAGIC,
            VERSION,
            self.number,
            len(self.keys),
            self.slots,
            len(layout),
            len(blob),
            bytes.fromhex(self.fingerprint),
        )
        digests = bytes.fromhex("".join(self.digests))
        body = head + layout + digests + rows.tobytes() + self.sums.astype("<u4").tobytes() + blob
        return body + hashlib.sha256(body).digest()


def decode_index(data: bytes) -> ZarrIndex:
    """A file's bytes -> index, every length checked before it is used; raises `BadIndex`."""
    if len(data) < _HEADER.size + _DIGEST_BYTES:
        raise BadIndex(f"{len(data)} bytes are too few for an index")
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    magic, version, number, clips, slots, layout_bytes, keys_bytes, fingerprint = _HEADER.unpack_from(body)
    if magic != MAGIC:
        raise BadIndex(f"begins with {magic!r}, not {MAGIC!r}")
    if hashlib.sha256(body).digest() != digest:
        raise BadIndex("its checksum does not fit its content")
    if version != VERSION:
        raise BadIndex(f"has version {version}; this program reads version {VERSION}")
    if not 1 <= clips <= slots <= MAX_SHARD_CLIPS:
        raise BadIndex(f"{clips} clips in {slots} slots; at most {MAX_SHARD_CLIPS}")
    layout = _layout(body[_HEADER.size : _HEADER.size + layout_bytes])
    at = _HEADER.size + layout_bytes
    files = len(layout) + 2
    if len(body) != at + _DIGEST_BYTES * files + clips * (ROW.itemsize + 4 * len(layout)) + keys_bytes:
        raise BadIndex(f"{clips} clips of {len(layout)} arrays do not fit {len(data)} bytes")
    digests = tuple(body[at + 32 * i : at + 32 * (i + 1)].hex() for i in range(files))
    at += _DIGEST_BYTES * files
    rows = np.frombuffer(body, ROW, clips, at)
    at += rows.nbytes
    sums = np.frombuffer(body, "<u4", clips * len(layout), at).reshape(clips, len(layout))
    keys = split_keys(body[at + sums.nbytes :], rows["key_end"])
    places = rows["slot"].astype(np.int64)
    if places[-1] >= slots or bool(np.any(np.diff(places) < 1)):
        raise BadIndex(f"its clips do not lie in ascending slots below {slots}")
    if int(rows["info_bytes"].max()) > MAX_INFO_BYTES:
        raise BadIndex(f"facts of {int(rows['info_bytes'].max())} bytes; at most {MAX_INFO_BYTES}")
    return ZarrIndex(number, fingerprint.hex(), slots, layout, keys, rows, sums, digests)


def _layout(data: bytes) -> Layout:
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadIndex(f"its layout is not JSON ({type(error).__name__})") from error
    if not isinstance(value, list) or len(value) > MAX_ARRAYS or not all(map(_is_array, value)):
        raise BadIndex("its layout is not a list of arrays")
    layout = tuple(ArrayLayout(name, dtype, tuple(shape)) for name, dtype, shape in value)
    problem = next((problem for array in layout if (problem := array.problem())), "")
    if problem or list(layout) != sorted(layout, key=lambda array: array.name):
        raise BadIndex(problem or "its arrays are not in order")
    if any(array.bytes > MAX_CLIP_BYTES for array in layout):
        raise BadIndex(f"an array of a clip has more than {MAX_CLIP_BYTES} bytes")
    if len({array.name for array in layout}) != len(layout):
        raise BadIndex("it has an array twice")
    return layout


def _is_array(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(text, str) for text in value[:2])
        and isinstance(value[2], list)
        and all(type(n) is int and 0 < n < 1 << 40 for n in value[2])
    )
