"""A pool of killable child processes: one request at a time each, a deadline, a fresh process after any accident.

Media is hostile input: decoders hang, crash, leak and hold the interpreter's lock, and only another process can be
stopped whatever it does. An accident costs its own request, and only after one more try in a fresh child. Outcomes come
in order of completion; requests are taken from the caller's iterator only as fast as outcomes are consumed. A thread of
the pool watches the children, so work goes on while the caller is busy; the caller's iterator runs in that thread.
"""

from __future__ import annotations

import logging
import queue
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media.clip import PROCESS_BYTES
from caeav.pipeline.media.workers.process import Work, Worker
from caeav.pipeline.media.workers.wire import Message, WireError

__all__ = ["Failure", "Outcome", "Request", "WorkerPool"]

_log = logging.getLogger("caeav.pool")

START_S = 120.0  # a child may take this long to import and set up on a loaded machine

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
    """The result of one request: `arrays` and `info`, or only a `failure`."""

    id: str
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None


@dataclass(frozen=True)
class Attempt:
    """A request and the number of this try at it."""

    request: Request
    number: int = 1

    @property
    def id(self) -> str:
        """The request's id."""
        return str(self.request["id"])


class Run:
    """One `map` call: what waits, what runs, and its outcomes."""

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
        """Take requests while fewer than `most` are under way; True if any waits to be handed out."""
        while self._requests is not None and not self.abandoned.is_set():
            with self.lock:
                if self.held >= most:
                    break
            try:
                request = next(self._requests)
            except StopIteration:
                self._requests = None
                break
            if request is None:  # none at the moment
                break
            attempt = Attempt(request)
            if attempt.id in self.running or any(attempt.id == other.id for other in self.waiting):
                raise ValueError(f"request id {attempt.id!r} is given twice")
            with self.lock:
                self.held += 1
            self.waiting.append(attempt)
        return bool(self.waiting)


class WorkerPool:
    """`with WorkerPool("package.module:setup", settings, workers=2, deadline_s=60) as pool: pool.map(requests)`.

    `setup(settings)` runs once in each child and returns the job: `job(request) -> (arrays, info)`. An exception of the
    job is a failure at once; a child that dies or does not answer within `deadline_s` is replaced, and its request
    retried `retries` times. A child is renewed after `max_tasks_per_child` requests, since libraries leak.
    `memory_bytes` limits what a child allocates. `stage` is the stage named in failures. `map` may be called again once
    the last call is exhausted.
    """

    def __init__(
        self,
        setup: str,
        settings: Mapping[str, Any],
        *,
        workers: int = 1,
        deadline_s: float = 60.0,
        max_tasks_per_child: int | None = 200,
        retries: int = 1,
        memory_bytes: int | None = PROCESS_BYTES,
        max_result_bytes: int = 8 * 2**30,
        stage: str = "decode",
    ) -> None:
        if workers < 1:
            raise CaeavError(f"{workers} workers", hint="give at least 1")
        if deadline_s <= 0:
            raise CaeavError(f"a deadline of {deadline_s} s", hint="give more than 0 seconds")
        self._work = Work(setup, dict(settings), memory_bytes, max_result_bytes)
        self._size, self._deadline_s, self._retries, self._stage = workers, deadline_s, retries, stage
        self._max_tasks = max_tasks_per_child
        self._workers: list[Worker] = []
        self._wake_send, self._wake_recv = socket.socketpair()
        for end in (self._wake_send, self._wake_recv):  # waking the thread must never block
            end.setblocking(False)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._jobs: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        self._run: Run | None = None

    def __enter__(self) -> WorkerPool:
        self._thread = threading.Thread(target=self._serve, name="caeav-pool", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill all children and end the watching thread, without waiting for any result."""
        self._stopping.set()
        self._jobs.put(None)
        self._wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._wake_send.close()
        self._wake_recv.close()

    def map(self, requests: Iterable[Request | None]) -> Iterator[Outcome]:
        """Yield one outcome per request as they complete. `requests` may give None for "none now, wait for `nudge`".

        Raises `CaeavError` when no child can be set up, and whatever `requests` raises.
        """
        if self._thread is None:
            raise RuntimeError("the pool is not open; use it in a with statement")
        run = self._run = Run(iter(requests))
        self._jobs.put(run)
        try:
            while True:
                outcome = run.outcomes.get()
                if outcome is None:
                    return
                if isinstance(outcome, BaseException):
                    raise outcome
                with run.lock:
                    run.held -= 1
                self._wake()
                yield outcome
        finally:
            run.abandoned.set()
            self._wake()

    def nudge(self) -> None:
        """Ask for requests again after a None; from any thread."""
        self._wake()

    def interrupt(self, error: BaseException) -> None:
        """Make the running `map` raise `error` instead of its next outcome; from any thread."""
        if self._run is not None:
            self._run.outcomes.put(error)

    def _wake(self) -> None:
        try:
            self._wake_send.send(b"!")
        except OSError:  # closed, or so many bytes unread that one more does not matter
            return

    # Everything below runs in the watching thread.

    def _serve(self) -> None:
        try:
            while (run := self._jobs.get()) is not None and not self._stopping.is_set():
                try:
                    self._drive(run)
                    run.outcomes.put(None)
                except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
                    run.outcomes.put(error)
        finally:
            while self._workers:
                self._workers.pop().kill()

    def _drive(self, run: Run) -> None:
        """Keep all children busy until every request of `run` has its outcome."""
        while not (self._stopping.is_set() or run.abandoned.is_set()):
            self._hand_out(run)
            if run.finished:
                return
            self._wait()
            for worker in list(self._workers):
                self._poll(worker, run)
        for worker in list(self._workers):
            if worker.request is not None:
                self._drop(worker)

    def _hand_out(self, run: Run) -> None:
        """Give requests to idle children and start children where there is work for them."""
        for worker in list(self._workers):
            if worker.idle and run.refill(2 * self._size):
                attempt = run.waiting.popleft()
                run.running[attempt.id] = attempt
                try:
                    worker.send_request(attempt.id, attempt.request, self._deadline_s)
                except OSError:
                    self._fail_or_retry(worker, run)
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self._size and run.refill(2 * self._size) and starting < len(run.waiting):
            self._workers.append(Worker(self._work, START_S))
            starting += 1

    def _wait(self) -> None:
        """Wait for a message of a child, for `_wake`, or for the next deadline."""
        due = [worker.due_s for worker in self._workers if not worker.idle]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_recv, selectors.EVENT_READ)
            for worker in self._workers:
                selector.register(worker.sock, selectors.EVENT_READ)
            selector.select(timeout)
        try:
            while self._wake_recv.recv(4096):
                pass
        except BlockingIOError:
            return

    def _poll(self, worker: Worker, run: Run) -> None:
        """Read a child's message; kill it when it is late, replace it when it is gone."""
        try:
            message = worker.read()
        except (EOFError, OSError, WireError) as error:
            nonsense = f"its process sent something that is no message: {error}"
            self._fail_or_retry(worker, run, nonsense if isinstance(error, WireError) else "")
            return
        if message is not None:
            self._handle(worker, message, run)
        elif not worker.idle and time.monotonic() >= worker.due_s:
            self._fail_or_retry(worker, run, f"no answer within {self._deadline_s:g} s")

    def _handle(self, worker: Worker, message: Message, run: Run) -> None:
        data = message.data
        if message.kind == "ready" and not worker.ready:
            worker.ready = True
        elif message.kind == "no_setup" and not worker.ready:
            _log.debug("worker setup failed\n%s", data.get("trace"))
            self._drop(worker)
            raise CaeavError(f"a worker process could not be set up: {data.get('reason')}")
        elif (
            message.kind in ("result", "failure")
            and worker.request is not None
            and data.get("id") == worker.request
        ):
            attempt = run.running.pop(worker.request)
            worker.request = None
            run.outcomes.put(self._outcome(attempt, message))
            if self._max_tasks is not None and worker.tasks >= self._max_tasks:
                self._drop(worker)
        else:
            self._fail_or_retry(
                worker, run, f"its process sent an unexpected message ({message.kind[:50]!r})"
            )

    def _outcome(self, attempt: Attempt, message: Message) -> Outcome:
        name, data = attempt.id, message.data
        if message.kind == "result":
            info = data.get("info")
            return Outcome(name, message.arrays, info if isinstance(info, dict) else {})
        if data.get("trace"):
            _log.debug("request %s failed\n%s", name, data["trace"])
        stage = str(data.get("stage") or self._stage)
        return Outcome(name, failure=Failure(stage, str(data.get("reason")), attempt.number))

    def _fail_or_retry(self, worker: Worker, run: Run, why: str = "") -> None:
        """End a child that is late, gone or sends nonsense, and retry its request or let it fail."""
        request, was_ready = worker.request, worker.ready
        death = self._drop(worker)
        why = why or f"{self._stage} process {death or 'closed its connection'}"
        if request is None:
            if not was_ready:
                raise CaeavError(f"a worker process could not be set up: {why}")
            return
        attempt = run.running.pop(request)
        _log.info("request %s, attempt %d: %s", request, attempt.number, why)
        if attempt.number <= self._retries:
            run.waiting.appendleft(Attempt(attempt.request, attempt.number + 1))
            return
        reason = f"{why} ({attempt.number} attempt{'s' * (attempt.number > 1)})"
        run.outcomes.put(Outcome(request, failure=Failure(self._stage, reason, attempt.number)))

    def _drop(self, worker: Worker) -> str:
        self._workers.remove(worker)
        return worker.kill()
