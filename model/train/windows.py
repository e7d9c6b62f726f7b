"""The order of an epoch where shards come through a cache that is smaller than the store: shuffled within windows.

The shards of the first token store are shuffled and cut into windows of so many; the samples of a window are shuffled
among each other, then comes the next window. So a shard is needed for the length of one window only, and the next ones
can be fetched meanwhile. Which order this is depends on seed, epoch and the size of the window, never on the cache; a
run keeps the size in its configuration (`stores.window_shards`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.store import StoreReader
from caeav.pipeline.store.layout import shard_clips

IN_CACHE = 2
"""Windows that the cache holds: the one in use, and the next."""


def window_order(
    order: NDArray[np.int64], shards: NDArray[np.int64], window: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows in some `order` -> the same rows window by window, in that order within each.

    `shards`: the shard of each row; rows of one clip that follow each other still do.
    """
    numbers, places = np.unique(shards, return_inverse=True)
    window_of = rng.permutation(len(numbers)) // window
    return order[np.argsort(window_of[places][order], kind="stable")]


def fitting_window(stores: Sequence[StoreReader], cache_bytes: int) -> int:
    """How many shards of the first of these stores a window may have; 0 where all remote ones fit into the cache.

    A window takes half of the cache. Its clips lie in shards of the other stores too, which may be cut otherwise: each
    is counted with the most shards that those of one shard can lie in.
    """
    remote = [store for store in stores if store.url]
    if not remote or sum(store.shard_bytes for store in remote) <= cache_bytes:
        return 0
    clips = shard_clips(stores[0].recipe)
    needed = 0
    for store in remote:
        size = shard_clips(store.recipe)
        needed += max(store.shard_sizes()) * (1 if size == clips else -(-clips // size) + 1)
    return max(1, cache_bytes // (IN_CACHE * needed))
