"""A thread that has records read from the disk, in the order in which they are about to be used.

It only touches memory maps, so that nothing depends on it but time: what it has not fetched, or could not, is read by
whoever uses the record, who meets the error too.
"""

from __future__ import annotations

from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

from caeav.pipeline.store.backend import Shard
from caeav.pipeline.store.errors import StoreError


class Fetcher:
    """Fetches what it is asked for until it is closed. Give it shards nobody else takes records out of meanwhile."""

    def __init__(self) -> None:
        self._wanted: SimpleQueue[tuple[Shard, int] | None] = SimpleQueue()
        self._closed = False
        self._thread = Thread(target=self._work, name="caeav-fetcher", daemon=True)
        self._thread.start()

    def ask(self, shard: Shard, row: int) -> None:
        """Fetch that record when those asked for before are there."""
        self._wanted.put((shard, row))

    def close(self) -> None:
        """End the thread, whatever it was still asked for."""
        self._closed = True
        self._wanted.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            if self._closed:
                break
            shard, row = wanted
            with suppress(StoreError, OSError):
                shard.fetch(row)
