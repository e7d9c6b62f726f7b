"""A decode pool without processes that decodes each clip once, for tests of what follows decoding."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from caeav.pipeline.extract import decode_job, local
from caeav.pipeline.media.workers.pool import Outcome

REPLIES: dict[str, Any] = {}
"""Replies computed in this process, or in the one it was forked from, by settings and request."""


class InlinePool:
    """Stands in for `WorkerPool`: does the same job in this process, each clip once, so that many runs are cheap."""

    def __init__(self, setup: str, settings: Mapping[str, Any], **_: Any) -> None:
        assert setup == local.SETUP
        self._settings = dict(settings)
        self._job: Callable[[Mapping[str, Any]], Any] | None = None
        self._nudged = threading.Event()
        self._errors: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def map(self, requests: Iterable[Mapping[str, Any] | None]) -> Iterator[Outcome]:
        for request in requests:
            if not self._errors.empty():
                raise self._errors.get()
            if request is None:
                self._nudged.wait(1.0)
                self._nudged.clear()
            else:
                yield Outcome(request["id"], *self._reply(request))
        if not self._errors.empty():
            raise self._errors.get()

    def _reply(self, request: Mapping[str, Any]) -> Any:
        name = json.dumps([self._settings, dict(request)], sort_keys=True)
        if name not in REPLIES:
            self._job = self._job or decode_job.setup(self._settings)
            REPLIES[name] = self._job(request)
        return REPLIES[name]

    def nudge(self) -> None:
        self._nudged.set()

    def interrupt(self, error: BaseException) -> None:
        self._errors.put(error)
        self._nudged.set()
