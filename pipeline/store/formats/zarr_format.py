"""What the arrays of a Zarr store are, and the metadata documents by which any Zarr v3 reader finds them.

`shards.zarr` is a group with one sharded array a tap, `[N, ...]` for the `N` clips of the manifest in its order;
an inner chunk is one clip, a shard `shard_clips` of them, checked by the crc32c codec. `key` holds the key of each
stored clip and `info` its facts as JSON; for a clip that is not stored both are empty, and floats are NaN, so that
no plain reader takes it for silence. The documents are a function of layout and number of clips; this program
writes them and compares them, but reads nothing out of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.store.payload import DTYPES, MAX_DIMENSIONS, NAMES, little_endian

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
    "BF16": ("uint16", 0x7FC0),  # no type of its own in Zarr: its bits, and its NaN
    **{f"I{bits}": (f"int{bits}", 0) for bits in (64, 32, 16, 8)},
    **{f"U{bits}": (f"uint{bits}", 0) for bits in (64, 32, 16, 8)},
    "BOOL": ("bool", False),
}
"""Name of a dtype in safetensors -> its name in Zarr, and the value a clip that is not stored has."""


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
        """Why no Zarr store can hold such an array; empty when it can."""
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
