"""The keys of a shard as index files hold them: one after the other, and where each ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import KEY_PATTERN
from caeav.manifests.keytable import Keys
from caeav.pipeline.store.backend import BadIndex


def join_keys(keys: Sequence[str]) -> tuple[bytes, NDArray[np.uint32]]:
    """Keys -> their bytes put together, and the place behind each."""
    table = Keys.of(keys)
    return table.blob, table.ends


def split_keys(blob: bytes, ends: NDArray[np.uint32]) -> Keys:
    """The inverse of `join_keys`; raises `BadIndex` for keys that are not distinct or not allowed."""
    places = ends.astype(np.int64)
    if len(places) and (bool(np.any(np.diff(places, prepend=0) < 1)) or places[-1] > len(blob)):
        raise BadIndex("holds a key that is not allowed: one without characters, or outside of their bytes")
    if (int(places[-1]) if len(places) else 0) != len(blob):
        raise BadIndex("its keys are not one list of distinct keys")
    text = blob.decode("ascii", "replace")
    keys = [text[start:end] for start, end in pairwise([0, *places.tolist()])]
    allowed = KEY_PATTERN.fullmatch
    if stray := next((key for key in keys if not allowed(key)), ""):
        raise BadIndex(f"holds a key that is not allowed: {stray[:80]!r}")
    if len(set(keys)) != len(keys):
        raise BadIndex("its keys are not one list of distinct keys")
    return Keys(blob, ends.astype(np.uint32))
