"""The keys of a shard as index files hold them: one after the other, and where each ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import KEY_PATTERN
from caeav.pipeline.store.backend import BadIndex


def join_keys(keys: Sequence[str]) -> tuple[bytes, NDArray[np.uint32]]:
    """Keys -> their bytes put together, and the place behind each."""
    coded = [key.encode("ascii") for key in keys]
    return b"".join(coded), np.cumsum([len(key) for key in coded], dtype=np.uint32)


def split_keys(blob: bytes, ends: NDArray[np.uint32]) -> tuple[str, ...]:
    """The inverse of `join_keys`; raises `BadIndex` for keys that are not distinct or not allowed."""
    keys: list[str] = []
    start = 0
    for end in ends.tolist():
        key = blob[start:end].decode("ascii", "replace")
        if end > len(blob) or not KEY_PATTERN.fullmatch(key):
            raise BadIndex(f"holds a key that is not allowed: {key[:80]!r}")
        keys.append(key)
        start = end
    if start != len(blob) or len(set(keys)) != len(keys):
        raise BadIndex("its keys are not one list of distinct keys")
    return tuple(keys)
