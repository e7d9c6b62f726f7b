"""Publishing one shard: the order of steps that never leaves an index that is wrong.

The new shard is written beside the old one and synced, the old index is removed, the shard renamed, the new
index published. Stopped before the old index goes, the old shard stands; stopped after, the shard does not
exist and is made again.
"""

from __future__ import annotations

from collections.abc import Iterable

from caeav.manifests.publish import publish_bytes, staging, unpublish
from caeav.pipeline.store.index import ShardIndex
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.tarshard import EncodedRecord, write_shard


def publish_shard(
    folder: StoreFolder, number: int, fingerprint: str, records: Iterable[EncodedRecord]
) -> ShardIndex:
    """Publish the records, in the order given, as shard `number`, in place of the one there may be."""
    index_path = folder.index(number)
    with staging() as staged:
        index = write_shard(staged.file(folder.shard(number)), records, number, fingerprint)
        staged.sync()  # a full disk must show before the old index goes
        unpublish(index_path)
        staged.put()
    publish_bytes(index_path, index.encode())
    return index


def withdraw_shard(folder: StoreFolder, number: int) -> None:
    """Take a shard out of existence, index first."""
    unpublish(folder.index(number))
    unpublish(folder.shard(number))
