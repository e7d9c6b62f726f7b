"""What goes into a pool of child processes and what comes out: requests, outcomes, and one run's bookkeeping."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

Request = Mapping[str, Any]
"""One piece of work: JSON values for the job, with a unique `id` among them."""


@dataclass(frozen=True)
class Failure:
    """Why a request has no result, at which stage, after how many attempts."""

    stage: str
    reason: str
    attempts: int


@dataclass(frozen=True)
class Outcome:
    """The result of one request: `arrays` and `info`, or `failure` (and neither)."""

    id: str
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None


@dataclass(frozen=True)
class Attempt:
    """A request and which try at it this is."""

    request: Request
    number: int = 1

    @property
    def id(self) -> str:
        """The request's id."""
        return str(self.request["id"])


class Run:
    """One `map` call: what waits, what runs, and what has come out of it."""

    def __init__(self, requests: Iterator[Request | None]) -> None:
        self._requests: Iterator[Request | None] | None = requests
        self.waiting: deque[Attempt] = deque()
        self.running: dict[str, Attempt] = {}
        self.outcomes: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
        self.abandoned = threading.Event()
        self.lock = threading.Lock()
        self.held = 0  # requests taken whose outcome the caller has not yet taken

    @property
    def finished(self) -> bool:
        """Every request has its outcome."""
        return self._requests is None and not self.waiting and not self.running

    def refill(self, most: int) -> bool:
        """Take requests while fewer than `most` are under way; whether any waits to be handed out."""
        while self._requests is not None and not self.abandoned.is_set():
            with self.lock:
                if self.held >= most:
                    break
            try:
                request = next(self._requests)
            except StopIteration:
                self._requests = None
                break
            if request is None:  # nothing at the moment
                break
            attempt = Attempt(request)
            if attempt.id in self.running or any(attempt.id == other.id for other in self.waiting):
                raise ValueError(f"request id {attempt.id!r} is given twice")
            with self.lock:
                self.held += 1
            self.waiting.append(attempt)
        return bool(self.waiting)
