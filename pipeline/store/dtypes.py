"""Number formats of stored tokens: what a float array becomes in a shard, and the floats that a reader gives back.

`float16` and `float32` are stored as they are. `bfloat16`, which numpy lacks, is stored as safetensors' BF16 and read
back exactly, as float32. `int8` keeps a scale for each of the `C` channels (the last axis) of an array: `<name>` is
int8, `<name>.scale` float32 `[C]`, with the channel's largest magnitude at 127; it is read back as float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BFLOAT16 = np.dtype("V2")
"""bfloat16 as numpy holds it: two bytes per value, without arithmetic."""
DTYPES = ("float16", "bfloat16", "float32", "int8")
SCALE = ".scale"
STEPS = 127
_EXPONENTS = {BFLOAT16: np.uint16(0x7F80), np.dtype("<f2"): np.uint16(0x7C00)}
MOST = float(np.finfo(np.float16).max)
"""The largest value of float16, hence of int8 too, which is read back as float16."""

Arrays = Mapping[str, NDArray[Any]]


def stored(arrays: Arrays, dtype: str) -> dict[str, NDArray[Any]]:
    """Float arrays in the format `dtype` (one of `DTYPES`), by the names they have in a shard.

    A value that does not fit becomes infinite; in `int8` the scale of its channel does. See `not_finite`.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if dtype == "int8":
            found[name], found[name + SCALE] = _quantised(np.asarray(array, dtype=np.float32))
        elif dtype == "bfloat16":
            found[name] = _to_bfloat16(np.asarray(array, dtype=np.float32))
        else:
            with np.errstate(over="ignore"):
                found[name] = array.astype(np.dtype(dtype), copy=False)
    return found


def floats(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """What `stored` made -> the floats by their own names; arrays of other formats are passed through."""
    found: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in arrays:
            continue
        if array.dtype == BFLOAT16:
            bits = array.view(np.dtype("<u2")).astype(np.uint32) << np.uint32(16)
            found[name] = bits.view(np.float32)
        elif name + SCALE in arrays:
            found[name] = np.multiply(array, arrays[name + SCALE], dtype=np.float32).astype(np.float16)
        else:
            found[name] = array
    return found


def dtype_name(array: NDArray[Any]) -> str:
    """The name of an array's format as stored."""
    return "bfloat16" if array.dtype == BFLOAT16 else str(array.dtype)


def not_finite(array: NDArray[Any]) -> int:
    """How many values of a stored array are not finite numbers."""
    # numpy tests two-byte floats ten times slower than integers
    for dtype, exponent in _EXPONENTS.items():
        if array.dtype == dtype:
            bits = np.ascontiguousarray(array).view(np.dtype("<u2"))
            return int(np.count_nonzero((bits & exponent) == exponent))
    return int(array.size - np.count_nonzero(np.isfinite(array))) if array.dtype.kind == "f" else 0


def too_large(name: str, array: NDArray[Any]) -> bool:
    """Whether the values that are not finite were only too large for this format; `bfloat16` and `float32` hold
    them."""
    return (array.dtype == np.float16 or name.endswith(SCALE)) and not np.isnan(array).any()


def _to_bfloat16(array: NDArray[np.float32]) -> NDArray[Any]:
    """The upper half of each float32, rounded to the nearest (ties to even)."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = np.where(
        np.isnan(array), np.uint32(0x7FC00000), rounded
    )  # rounding could turn NaN into infinity
    return (rounded >> np.uint32(16)).astype("<u2").view(BFLOAT16)


def _quantised(array: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 `[..., C]` and the scale `[C]` that multiplies it; a scale that is not finite marks its channel."""
    largest = (
        np.abs(array).reshape(-1, array.shape[-1]).max(axis=0, initial=0.0)
    )  # [C]; NaN where a channel has one
    largest = np.where(largest > MOST, np.float32(np.inf), largest)
    scale = np.asarray(largest / np.float32(STEPS), dtype=np.float32)
    usable = np.isfinite(scale) & (scale > 0)
    steps = np.rint(array / np.where(usable, scale, np.float32(1.0)))
    steps[..., ~usable] = 0
    return np.clip(steps, -STEPS, STEPS).astype(np.int8), scale
