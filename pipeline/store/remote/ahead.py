"""Fetching shards before they are read: the next ones of a known order, as far as there is room for them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from caeav.manifests.core.errors import CaeavError


class Ahead:
    """Some threads that bring shards, begun in the order in which they will be read.

    `bring(number)` has a shard at hand, `size_of(number)` are its bytes. Shards that were brought and are not read to
    their end take at most `room` bytes together, one shard in any case. Only time depends on this: what could not be
    brought is brought by the reader, who meets the error.
    """

    def __init__(
        self, bring: Callable[[int], object], size_of: Callable[[int], int], room: int, threads: int = 1
    ) -> None:
        self._bring, self._size_of = bring, size_of
        self.room, self._most = room, threads
        self._left: Counter[int] = Counter()
        self._next: deque[int] = deque()
        self._held: dict[int, int] = {}
        self._change = threading.Condition()
        self._threads = 0

    def expect(self, numbers: Iterable[int]) -> None:
        """Records of these shards will be read, one for each number; an order told before counts no more."""
        left = Counter(numbers)
        with self._change:
            self._left = left
            self._next = deque(left)
            self._held = {number: size for number, size in self._held.items() if number in left}
            self._start()
            self._change.notify_all()

    def soon(self, number: int) -> None:
        """A shard is wanted before all others."""
        with self._change:
            if number not in self._held and number not in self._next:
                self._next.appendleft(number)
                self._left[number] += 1
                self._start()
                self._change.notify_all()

    def read(self, number: int) -> None:
        """A record of a shard was read."""
        with self._change:
            self._left[number] -= 1
            if self._left[number] <= 0:
                del self._left[number]
                if self._held.pop(number, None) is not None:
                    self._change.notify_all()

    def _start(self) -> None:
        while self._threads < min(self._most, len(self._next)):
            self._threads += 1
            threading.Thread(target=self._work, name="caeav-ahead", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._change:
                while (
                    self._next and self._next[0] not in self._left
                ):  # read already, without waiting for this
                    self._next.popleft()
                if not self._next:
                    self._threads -= 1  # the next order begins others
                    return
                number = self._next[0]
                size = self._size_of(number)
                if self._held and sum(self._held.values()) + size > self.room:
                    self._change.wait()
                    continue
                self._next.popleft()
                self._held[number] = size
            with suppress(CaeavError, OSError):
                self._bring(number)
