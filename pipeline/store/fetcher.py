"""A thread that has records read from the disk, in the order in which they are about to be used.

It only touches memory maps, so that nothing depends on it but time: what it has not fetched, or could not, is read by
whoever uses the record, who meets the error too.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

from caeav.pipeline.store.backend import Shard
from caeav.pipeline.store.errors import StoreError

AT_ONCE = 8
"""Records that the disk is asked for at the same time where they do not follow each other."""


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
        asked: deque[tuple[Shard, int]] = deque()
        last: tuple[Shard, int] | None = None
        while True:
            while not asked or (len(asked) < AT_ONCE and not self._wanted.empty()):
                wanted = self._wanted.get()
                if wanted is None or self._closed:
                    return
                shard, row = wanted
                # in order the system reads ahead by itself, in larger pages
                if row and last != (shard, row - 1):
                    with suppress(StoreError, OSError):
                        shard.ahead(row)
                last = wanted
                asked.append(wanted)
            shard, row = asked.popleft()
            with suppress(StoreError, OSError):
                shard.fetch(row)
