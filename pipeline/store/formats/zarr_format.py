"""The files of a Zarr store: chunks and where they lie, metadata for any Zarr v3 reader, and the index of a shard.

`shards.zarr` is a group with one sharded array per tap, `[N, ...]` for the `N` clips of the manifest in its order. An
inner chunk is one clip and a shard `shard_clips` of them, checked by the crc32c codec. `key` holds the key of each
stored clip and `info` its facts as JSON; for a clip that is not stored both are empty and floats are NaN, so that no
other reader takes it for silence. The metadata are a function of layout and number of clips; caeav writes and compares
them but reads nothing out of them.

A file of the `sharding_indexed` codec holds its chunks in the order of their slots, each with its crc32c and beginning
at a multiple of 64, so that a memory-mapped view of it is aligned; what lies between is zero. The table of places
follows, with 2^64-1 for a slot without chunk. The whole file is a function of its chunks.

The index of a shard says which clips it holds in which slots. It is little-endian, version 1: a header (magic, version,
shard number, clips, slots, bytes of the layout, bytes of the keys, recipe fingerprint), the layout in JSON, the sha256
of each file, a row of 16 bytes per clip, the crc32c of each clip's arrays, the keys, and a sha256 of all that. Where
chunks lie follows from their sizes.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.atomic import Output
from caeav.manifests.key_index import Keys
from caeav.pipeline.store.backend import BadIndex, FileFacts
from caeav.pipeline.store.formats.common import DIGEST_BYTES, join_keys, open_index, seal_index, split_keys
from caeav.pipeline.store.layout import MAX_SHARD_CLIPS
from caeav.pipeline.store.payload import (
    ALIGNMENT,
    DTYPES,
    MAX_DIMENSIONS,
    MAX_INFO_BYTES,
    NAMES,
    Bytes,
    crc32c,
    little_endian,
)

CRC_BYTES = 4
TEXT_HEAD_BYTES = 8
ABSENT = np.uint64(2**64 - 1)
MAGIC = b"CAEAVZIX"
VERSION = 1
MAX_CLIP_BYTES = 1 << 40
ROW = np.dtype([("slot", "<u4"), ("info_bytes", "<u4"), ("info_crc32c", "<u4"), ("key_end", "<u4")])
_HEADER = struct.Struct("<8sIIIIII32s")
GROUP = "shards.zarr"
DOCUMENT = "zarr.json"
KEY, INFO = "key", "info"
MAX_ARRAYS = 1024
NAME_PATTERN = re.compile(r"(?!__)[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
RESERVED = frozenset({KEY, INFO, DOCUMENT})

ZARR_DTYPES: Mapping[str, tuple[str, Any]] = {
    "F64": ("float64", "NaN"),
    "F32": ("float32", "NaN"),
    "F16": ("float16", "NaN"),
    "BF16": ("uint16", 0x7FC0),  # Zarr has no such type: its bits, and its NaN
    **{f"I{bits}": (f"int{bits}", 0) for bits in (64, 32, 16, 8)},
    **{f"U{bits}": (f"uint{bits}", 0) for bits in (64, 32, 16, 8)},
    "BOOL": ("bool", False),
}
"""Name of a dtype in safetensors -> its name in Zarr, and the value of a clip that is not stored."""


def text_chunk(data: bytes) -> bytes:
    """One text in Zarr's `vlen-utf8` codec: one item, its length, its bytes."""
    return (1).to_bytes(4, "little") + len(data).to_bytes(4, "little") + data


def offsets(sizes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], int]:
    """Sizes of the chunks (without crc32c) -> where each one begins, and where the table begins."""
    room = sizes + np.uint64(CRC_BYTES)
    room += (np.uint64(0) - room) % np.uint64(ALIGNMENT)
    ends = np.cumsum(room, dtype=np.uint64)
    return ends - room, int(ends[-1]) if len(ends) else 0


def table(slots: NDArray[np.uint32], sizes: NDArray[np.uint64], count: int) -> bytes:
    """The table of places for `count` slots, with its crc32c."""
    rows = np.full((count, 2), ABSENT, dtype="<u8")
    rows[slots, 0], _ = offsets(sizes)
    rows[slots, 1] = sizes + np.uint64(CRC_BYTES)
    data = rows.tobytes()
    return data + _crc_bytes(crc32c([data]))


def file_bytes(sizes: NDArray[np.uint64], count: int) -> int:
    """Size of a file with chunks of these sizes in `count` slots."""
    return offsets(sizes)[1] + 16 * count + CRC_BYTES


class ChunkWriter:
    """Writes one file of chunks; `sums` has the crc32c of each chunk so far."""

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
        """Write the table, which places the chunks in `slots` of `count`; returns the file's sha256 (hex)."""
        self._write(table(np.array(slots, np.uint32), np.array(self._sizes, np.uint64), count))
        return self._sha256.hexdigest()

    def _write(self, data: Any) -> None:
        self._out.write(data)
        self._sha256.update(data)


def structure_differences(
    data: Bytes, slots: NDArray[np.uint32], sizes: NDArray[np.uint64], sums: NDArray[np.uint32], count: int
) -> Iterator[tuple[int, str]]:
    """Row and fact for each place around the chunks that is not as written; row -1 is the table."""
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


class UnfitArray(ValueError):
    """An array that a Zarr store cannot hold; the text says why."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """One array of a record: `dtype` by its name in safetensors, `shape` of one clip."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, array: NDArray[np.generic]) -> ArrayLayout:
        """The layout of a clip's array; raises `UnfitArray` for names and shapes Zarr cannot hold."""
        layout = cls(name, NAMES[little_endian(name, array).dtype.str], array.shape)
        if problem := layout.problem():
            raise UnfitArray(problem)
        return layout

    def problem(self) -> str:
        """Why a Zarr store cannot hold this array; empty when it can."""
        if not NAME_PATTERN.fullmatch(self.name) or self.name in RESERVED:
            return f"{self.name[:80]!r} cannot be the name of an array"
        if self.dtype not in DTYPES:
            return f"array {self.name!r} has no dtype out of {', '.join(DTYPES)}"
        if len(self.shape) > MAX_DIMENSIONS or 0 in self.shape:
            return f"array {self.name!r} of shape {list(self.shape)} has no values or too many dimensions"
        return ""

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of the array in memory."""
        return np.dtype(DTYPES[self.dtype])

    @property
    def bytes(self) -> int:
        """Bytes of one clip."""
        return math.prod(self.shape) * self.numpy.itemsize

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


Layout = tuple[ArrayLayout, ...]


def layout_of(arrays: Mapping[str, NDArray[np.generic]]) -> Layout:
    """The layout of a record's arrays, by name; raises `UnfitArray`."""
    return tuple(ArrayLayout.of(name, arrays[name]) for name in sorted(arrays))


def file_name(array: str, number: int, dimensions: int) -> str:
    """Place of an array's shard relative to the store; `dimensions` without the first."""
    return f"{GROUP}/{array}/c.{number}" + ".0" * dimensions


def documents(layout: Layout, clips: int, shard_clips: int) -> dict[str, bytes]:
    """Every metadata document by its place relative to the store."""
    found = {f"{GROUP}/{DOCUMENT}": _render({"node_type": "group", "attributes": {"caeav": {"format": 1}}})}
    for array in layout:
        kind, fill = ZARR_DTYPES[array.dtype]
        ends = {"endian": "little"} if array.numpy.itemsize > 1 else {}
        codec = {"name": "bytes", "configuration": ends} if ends else {"name": "bytes"}
        note = {"caeav": {"dtype": "bfloat16"}} if array.dtype == "BF16" else {}
        found[f"{GROUP}/{array.name}/{DOCUMENT}"] = _render(
            _array(clips, shard_clips, array.shape, kind, fill, codec, note)
        )
    for name in (KEY, INFO):
        codec = {"name": "vlen-utf8", "configuration": {}}
        found[f"{GROUP}/{name}/{DOCUMENT}"] = _render(_array(clips, shard_clips, (), "string", "", codec, {}))
    return found


def _array(
    clips: int,
    shard_clips: int,
    shape: tuple[int, ...],
    kind: str,
    fill: Any,
    codec: Mapping[str, Any],
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    crc32c = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [1, *shape],
        "codecs": [codec, crc32c],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, crc32c],
        "index_location": "end",
    }
    return {
        "node_type": "array",
        "shape": [clips, *shape],
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_clips, *shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": dict(attributes),
    }


def _render(document: Mapping[str, Any]) -> bytes:
    return (json.dumps({"zarr_format": 3, **document}, indent=1, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, eq=False)
class ZarrIndex:
    """`rows` has one row of dtype `ROW` per stored clip, `sums` `[clips, arrays]` the crc32c of its chunks.

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
        """Bytes of each clip's chunk in file number `place`, without the crc32c."""
        if place < len(self.layout):
            return np.full(len(self.keys), self.layout[place].bytes, np.uint64)
        texts = self.rows["info_bytes"] if place == len(self.layout) else self.keys.sizes
        return np.asarray(texts, np.uint64) + np.uint64(TEXT_HEAD_BYTES)

    @cached_property
    def files(self) -> tuple[FileFacts, ...]:
        """One file for each array, then those of `info` and of `key`."""
        names = [(array.name, len(array.shape)) for array in self.layout] + [(INFO, 0), (KEY, 0)]
        return tuple(
            FileFacts(
                file_name(name, self.number, dimensions), file_bytes(self.sizes(place), self.slots), digest
            )
            for place, ((name, dimensions), digest) in enumerate(zip(names, self.digests, strict=True))
        )

    def encode(self) -> bytes:
        """See `ShardIndex.encode`."""
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
        return seal_index(head + layout + digests + rows.tobytes() + self.sums.astype("<u4").tobytes() + blob)


def decode_index(data: bytes) -> ZarrIndex:
    """The bytes of an index file -> index, every length checked before it is used; raises `BadIndex`."""
    body, head = open_index(data, _HEADER, MAGIC, VERSION)
    number, clips, slots, layout_bytes, keys_bytes, fingerprint = head
    if not 1 <= clips <= slots <= MAX_SHARD_CLIPS:
        raise BadIndex(f"{clips} clips in {slots} slots; at most {MAX_SHARD_CLIPS}")
    layout = _layout(body[_HEADER.size : _HEADER.size + layout_bytes])
    at = _HEADER.size + layout_bytes
    files = len(layout) + 2
    if len(body) != at + DIGEST_BYTES * files + clips * (ROW.itemsize + 4 * len(layout)) + keys_bytes:
        raise BadIndex(f"{clips} clips of {len(layout)} arrays do not fit {len(data)} bytes")
    files_at, at = at, at + DIGEST_BYTES * files
    digests = tuple(body[start : start + DIGEST_BYTES].hex() for start in range(files_at, at, DIGEST_BYTES))
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
