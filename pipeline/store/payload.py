"""One record as bytes, and the checksums of bytes: arrays in the safetensors format, facts in canonical JSON.

The bytes are a function of the content: arrays are ordered by item size, then name, and the header is padded with
blanks so that the data begin at a multiple of 64, where a memory-mapped view is aligned. Reading trusts nothing: every
length is compared with the bytes at hand before it is used. This is not a general safetensors library: of the dtypes
that numpy lacks it knows only bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import google_crc32c
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Span = tuple[int, int]
"""The first byte of a part of a file, and the byte after its last."""

ALIGNMENT = 64
BLOCK_BYTES = 1 << 18
READ_BYTES = 1 << 20
LINE_BYTES = 64
MAX_HEADER_BYTES = 1 << 20
MAX_INFO_BYTES = 16 << 20
MAX_DIMENSIONS = 16
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "|V2",  # see dtypes.py
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
NAMES = {np.dtype(code).str: name for name, code in DTYPES.items()}


class BadPayload(ValueError):
    """Bytes that are not a record; the text says what was seen and what is allowed."""


def crc32c(chunks: Sequence[Bytes | bytes]) -> int:
    """CRC-32C of the chunks, end to end."""
    value = 0
    for chunk in chunks:
        value = google_crc32c.extend(value, chunk) if isinstance(chunk, bytes) else _extend(value, chunk)
    return value


def _extend(value: int, chunk: Bytes) -> int:
    """The CRC-32C extended by a chunk.

    A byte of each cache line of a block is touched first: the sum, which reads in three places at once, then runs at
    the speed of the cache and not of the memory, a third faster.
    """
    for start in range(0, chunk.size, BLOCK_BYTES):
        block = chunk[start : start + BLOCK_BYTES]
        block[::LINE_BYTES].max()
        value = google_crc32c.extend(value, block)
    return value


def encode_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> list[Bytes]:
    """Arrays as safetensors: the header, then the bytes of each array, not copied if it is contiguous."""
    ready = {name: little_endian(name, array) for name, array in arrays.items()}
    order = sorted(ready, key=lambda name: (-ready[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    start = 0
    for name in order:
        end = start + ready[name].nbytes
        header[name] = {
            "dtype": NAMES[ready[name].dtype.str],
            "shape": list(arrays[name].shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(
            f"{len(arrays)} arrays need a header of {len(text)} bytes; at most {MAX_HEADER_BYTES}"
        )
    head = np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)
    return [head, *(ready[name].reshape(-1).view(np.uint8) for name in order)]


def little_endian(name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
    """An array contiguous and little-endian, not copied if it is already; raises `TypeError` for other dtypes."""
    kept = np.ascontiguousarray(array)
    kept = kept.astype(kept.dtype.newbyteorder("<"), copy=False)
    if kept.dtype.str not in NAMES or name == "__metadata__":
        raise TypeError(
            f"array {name!r} of dtype {array.dtype} cannot be stored; allowed: {', '.join(DTYPES)}"
        )
    return kept


def decode_arrays(payload: Bytes) -> dict[str, NDArray[np.generic]]:
    """Safetensors bytes -> arrays by name, views into `payload`; raises `BadPayload`."""
    if payload.size < 8:
        raise BadPayload(f"{payload.size} bytes, at least 8 are needed")
    size = int.from_bytes(payload[:8].tobytes(), "little")
    if size > min(MAX_HEADER_BYTES, payload.size - 8):
        raise BadPayload(f"header of {size} bytes in a payload of {payload.size}")
    header = _json_object(payload[8 : 8 + size].tobytes(), "header")
    header.pop("__metadata__", None)
    data = payload[8 + size :]
    arrays: dict[str, NDArray[np.generic]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        dtype, shape, start, end = _entry(name, entry, data.size)
        arrays[name] = data[start:end].view(dtype).reshape(shape)
        spans.append((start, end))
    reached = 0
    for start, end in sorted(spans):
        if start != reached:
            raise BadPayload(f"arrays leave a hole or overlap at byte {reached}")
        reached = end
    if reached != data.size:
        raise BadPayload(f"arrays end at byte {reached} of {data.size}")
    return arrays


def _entry(name: str, entry: Any, room: int) -> tuple[np.dtype[Any], list[int], int, int]:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
        raise BadPayload(f"array {name!r} has no dtype out of {', '.join(DTYPES)}")
    dtype = np.dtype(DTYPES[entry["dtype"]])
    shape, span = entry.get("shape"), entry.get("data_offsets")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise BadPayload(f"array {name!r} has no proper shape")
    if not _sizes(span) or len(span) != 2 or not span[0] <= span[1] <= room:
        raise BadPayload(f"array {name!r} lies outside the {room} bytes of data")
    if math.prod(shape) * dtype.itemsize != span[1] - span[0]:
        raise BadPayload(f"array {name!r} of shape {shape} does not fill {span[1] - span[0]} bytes")
    return dtype, shape, span[0], span[1]


def _sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(x) is int and x >= 0 for x in value)


def encode_info(info: Mapping[str, Any]) -> bytes:
    """Facts as canonical JSON: sorted keys, ASCII, no NaN; raises for what is not JSON or too long."""
    data = json.dumps(dict(info), sort_keys=True, ensure_ascii=True, allow_nan=False).encode()
    if len(data) > MAX_INFO_BYTES:
        raise ValueError(f"facts of {len(data)} bytes; at most {MAX_INFO_BYTES}")
    return data


def decode_info(data: bytes) -> dict[str, Any]:
    """Canonical JSON -> facts; raises `BadPayload`."""
    return _json_object(data, "facts")


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadPayload(f"{what} is not JSON ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise BadPayload(f"{what} is a JSON {type(value).__name__}, not an object")
    return value


def digest(data: Bytes, spans: Sequence[Span], progress: Callable[[int], object]) -> tuple[str, list[int]]:
    """sha256 (hex) of `data` and the crc32c of each span, in one pass; spans ascend and do not overlap.

    A block is digested and summed while it lies in the processor's cache. Both release the interpreter lock, so that
    shards can be checked in parallel.
    """
    sha256 = hashlib.sha256()
    sums: list[int] = []
    position = 0
    for start, end in (*spans, (data.size, data.size)):
        sha256.update(data[position:start].data)
        value = 0
        for begin in range(start, end, READ_BYTES):
            block = data[begin : min(begin + READ_BYTES, end)]
            sha256.update(block.data)
            value = google_crc32c.extend(value, block)
        sums.append(value)
        progress(end - position)
        position = end
    return sha256.hexdigest(), sums[:-1]
