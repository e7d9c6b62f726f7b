"""Stores for tests: unfinished ones, forged indexes, and the clips that a writer still has to make."""

from __future__ import annotations

import hashlib
from pathlib import Path

from caeav.pipeline.store import StoreWriter, open_for_writing
from caeav.pipeline.store.testing_data import Toy


def unfinished_store(toy: Toy, clips: int = 10, shards: int = 1) -> Path:
    """Write the first `shards` shards of a store of `clips` clips, and do not finish it."""
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(clips)) as writer:
        for plan in writer.plan()[:shards]:
            writer.publish(plan, {key: toy.record(key) for key in plan.missing})
    return toy.folder


def forged_index(data: bytes) -> bytes:
    """An index with a matching checksum, as an attacker would make it."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def due_clips(writer: StoreWriter) -> set[str]:
    """The clips that are neither in a shard nor in a journal."""
    return {key for plan in writer.plan() for key in plan.missing if key not in plan.kept}
