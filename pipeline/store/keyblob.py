"""The keys of a shard as index files hold them: one after the other, and where each ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import KEY_CHARS, MAX_KEY_CHARS
from caeav.manifests.key_index import Keys
from caeav.pipeline.store.backend import BadIndex


def join_keys(keys: Sequence[str]) -> tuple[bytes, NDArray[np.uint32]]:
    """Keys -> their bytes put together, and the place behind each."""
    table = Keys.of(keys)
    return table.blob, table.ends


def split_keys(blob: bytes, ends: NDArray[np.uint32]) -> Keys:
    """The inverse of `join_keys`; raises `BadIndex` for keys that are not distinct or not allowed."""
    # a million clips have thousands of indexes, each of few keys: plain loops are faster here than arrays
    places = ends.tolist()
    if (places[-1] if places else 0) != len(blob):
        raise BadIndex("its keys are not one list of distinct keys")
    keys = [blob[start:end] for start, end in pairwise([0, *places])]
    sizes = [end - start for start, end in pairwise([0, *places])]
    if any(size < 1 or size > MAX_KEY_CHARS for size in sizes):
        raise BadIndex(
            "holds a key that is not allowed: one without characters, too long, or outside of their bytes"
        )
    if blob.translate(None, KEY_CHARS):
        stray = next(key for key in keys if key.translate(None, KEY_CHARS))
        raise BadIndex(f"holds a key that is not allowed: {stray[:80].decode('ascii', 'replace')!r}")
    if len(set(keys)) != len(keys):
        raise BadIndex("its keys are not one list of distinct keys")
    return Keys(blob, ends.astype(np.uint32))
