"""Making clips on this machine: from requests to killable child processes and devices to settled records.

Due clips go, in order, to child processes, each decoded once for all stores that want it; cheap components compute
there, the others on devices (`device/runner.py`). What comes back is collected shard by shard (`collect.py`). The
number of clips under way is bounded, however many there are.
"""

from __future__ import annotations

import heapq
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from caeav.manifests.clip import Clip
from caeav.pipeline.extract.collect import Collector, Filling
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.decode_job import SETUP, worker_settings
from caeav.pipeline.extract.jobs import Job
from caeav.pipeline.extract.places import Address, Place
from caeav.pipeline.extract.preflight import why_no_file
from caeav.pipeline.extract.progress import Meter
from caeav.pipeline.extract.records import RecordBuilder, decoded, validate_reply
from caeav.pipeline.extract.spool import FolderFiles, Lost, MediaFiles, Spool, spool_folder
from caeav.pipeline.media.workers.pool import Failure, Outcome, Request, WorkerPool
from caeav.pipeline.store import Quarantined, Record

if TYPE_CHECKING:
    from caeav.pipeline.extract.device.batches import Unit
    from caeav.pipeline.extract.device.runner import Runner

Watch = Callable[[str, bool], object]
"""Takes a clip's key and whether it begins or is settled; called from any thread."""
Pool = Callable[[], AbstractContextManager[WorkerPool]]
CLIPS_PER_WORKER = 4
"""Clips under way for each decoding process."""


@dataclass(frozen=True)
class ClipPlan:
    """The clips to make: `due`, in order, with the numbers of the stores that want each; `lost`: why there is no file.

    Clips are in the order of their places in the stores, so that shards become whole one after the other.
    """

    due: Mapping[str, Sequence[int]]
    lost: Mapping[str, str]


def plan_clips(stores: Sequence[Filling], root: Path) -> ClipPlan:
    """Which clips are due in `stores`, whose media lie below `root`."""
    due: dict[str, list[int]] = {}
    lost: dict[str, str] = {}
    shared: dict[tuple[int, ...], list[int]] = {}  # one list for all clips that the same stores want
    placed = [((store.writer.place(key), key) for key in store.shard_of) for store in stores]
    for key in dict.fromkeys(key for _, key in heapq.merge(*placed)):
        why = why_no_file(root / clip_of(stores, key).media)
        if why:
            lost[key] = why
        else:
            wanting = [i for i, store in enumerate(stores) if key in store.shard_of]
            due[key] = shared.setdefault(tuple(wanting), wanting)
    return ClipPlan(due, lost)


def clip_of(stores: Sequence[Filling], key: str) -> Clip:
    """The due clip of this key, from whichever of `stores` wants it."""
    return next(store for store in stores if key in store.shard_of).clip(key)


class LocalExtraction:
    """Makes the due clips of one run: from requests to child processes to settled records.

    `media_read` is called with the media of every decoded clip. `notes`: how often each note was made, by store.
    `place`: where media lie that are not in the manifest's folder; `spool_in`: the folder to fetch them into instead of
    the home's. `keep`: keep finished records in journals. The clips `alone` come first, none beside another. `watch` is
    told each clip that begins and that is settled. `pool` gives the child processes, by default new ones.
    """

    def __init__(
        self,
        context: RunContext,
        jobs: Sequence[Job],
        stores: Sequence[Filling],
        media_read: Callable[[str], object],
        *,
        place: Place | None = None,
        spool_in: Path | None = None,
        keep: bool = True,
        alone: Sequence[str] = (),
        watch: Watch | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.notes: list[Counter[str]] = [Counter() for _ in jobs]
        self.remarks: list[str] = []
        self._context, self._jobs, self._stores, self._media_read = context, jobs, stores, media_read
        self._root, self._place = Path(context.manifest.media_root), place
        self._spool_in = spool_in or spool_folder(context.home)
        self._files: MediaFiles = FolderFiles(self._root, self._media_of)
        self._plan = plan_clips(stores, self._root)
        self._uses_devices = bool(self._plan.due) and any(job.device_parts for job in jobs)
        self._workers = min(context.options.workers, max(1, len(self._plan.due)))
        self.meter = Meter(self._resources())
        self._collector = Collector(stores, context.on_clip, self.meter, self._fail, keep=keep)
        self._alone = tuple(key for key in alone if key in self._plan.due)
        self._watch = watch or (lambda key, begins: None)
        self._open_pool = pool or self._new_pool
        self._builder = RecordBuilder(jobs, self._settle)
        self._pool: WorkerPool | None = None
        self._runner: Runner | None = None
        self._units: Mapping[int, Sequence[Unit]] = {}
        self._lock = threading.Lock()
        self._room = CLIPS_PER_WORKER * self._workers
        self._under_way = self._decoding = 0
        self._left = len(self._plan.due)
        self._over = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make all due clips; without any, no child process is started and no torch imported."""
        try:
            self._collector.begin()
            for key, why in self._plan.lost.items():
                lost = Quarantined(key, "media", f"{why}: {self._clip(key).media}", 1)
                for store in self._stores:
                    if key in store.shard_of:
                        self._collector.settle(store, key, lost)
            if self._plan.due:
                self._compute()
        except KeyboardInterrupt:
            self._collector.hurry()
            raise
        finally:
            self._collector.close()
        if self._error is not None:
            raise self._error

    def _compute(self) -> None:
        with ExitStack() as stack:
            if self._uses_devices:
                self._start_runner(stack)
            if isinstance(self._place, Address):
                self._files = stack.enter_context(
                    Spool(self._place, self._spool_in, [*self._order()], self._media_of, self._nudge)
                )
            with self._open_pool() as self._pool:
                for outcome in self._pool.map(self._requests()):
                    self._take(outcome)
                self._pool = None
            self._over.wait()

    def _new_pool(self) -> WorkerPool:
        return WorkerPool(
            SETUP,
            worker_settings(self._jobs),
            workers=self._workers,
            deadline_s=self._context.options.deadline_s,
        )

    def _start_runner(self, stack: ExitStack) -> None:
        from caeav.pipeline.extract.device.batches import make_units
        from caeav.pipeline.extract.device.runner import Runner

        self._units = make_units(self._jobs)
        units = [unit for some in self._units.values() for unit in some]
        self._runner = Runner(
            units,
            self._context.options.devices,
            self._builder.add_result,
            self._fail,
            self._remark,
            self.meter,
            self._nudge,
        )
        stack.callback(self._runner.close)
        for unit in units:
            store = self._stores[unit.store]
            due = [key for key in store.shard_of if key in self._plan.due]
            self._runner.expect(unit, [(store.shard_of[key], store.place(key)) for key in due])
        batches = 2 * self._resources()["device"] + 1
        self._room += batches * max(unit.rows for unit in units)

    def _resources(self) -> dict[str, int]:
        resources = {"workers": self._workers, "writer": 1}
        if self._uses_devices:
            from caeav.pipeline.extract.device.runner import Runner

            resources |= Runner.resources(self._context.options.devices)
        return resources

    def _clip(self, key: str) -> Clip:
        return clip_of(self._stores, key)

    def _media_of(self, key: str) -> str:
        return self._clip(key).media

    def _order(self) -> Iterator[str]:
        """The due clips as they are asked for: those alone first."""
        others = [key for key in self._plan.due if key not in self._alone] if self._alone else self._plan.due
        return chain(self._alone, others)

    def _requests(self) -> Iterator[Request | None]:
        """Clips in order, None while too many are under way; runs in the pool's thread."""
        rooms = chain(repeat(1, len(self._alone) + 1 if self._alone else 0), repeat(self._room))
        for key, room in zip(self._order(), rooms, strict=False):
            while not self._enter(room):
                yield None
            self._watch(key, True)
            jobs = self._plan.due[key]
            try:
                while (path := self._files.path(key)) is None:
                    yield None
            except Lost as lost:
                self._fail_clip(key, jobs, Failure("media", lost.problem, 1))
                continue
            yield {"id": key, "path": path, "start_s": self._clip(key).start_s, "jobs": jobs}

    def _enter(self, room: int) -> bool:
        with self._lock:
            if self._under_way < room:
                self._under_way += 1
                self._decoding += 1
                return True
            stuck = self._decoding == 0
        if stuck and self._runner is not None and self._runner.idle:
            self._runner.flush()  # clips wait for others in batches that there is no room to fill
        return False

    def _take(self, outcome: Outcome) -> None:
        """Take the outcome of one clip's child process."""
        key, jobs = outcome.id, self._plan.due[outcome.id]
        failure = outcome.failure
        if failure is None:
            wrong = validate_reply(outcome, {job: self._jobs[job] for job in jobs})
            failure = Failure("decode", wrong, 1) if wrong else None
        if failure is not None:
            self._fail_clip(key, jobs, failure)
        else:
            self._media_read(self._clip(key).media)
            spent = outcome.info["spent"]
            self.meter.add("workers", "decode", spent["decode"])
            self.meter.add("workers", "backbone", spent["compute"])
            for job in jobs:
                rate = str(self._jobs[job].sampling.rate_hz)
                self.notes[job].update({note["code"] for note in outcome.info["clips"][rate]["notes"]})
            waiting = self._builder.add_reply(outcome, jobs)
            self._miss(key, [job for job in jobs if job not in waiting])
            for job in waiting:
                self._submit(job, outcome)
            self._decoded(key)

    def _fail_clip(self, key: str, jobs: Sequence[int], failure: Failure) -> None:
        """A clip cannot be made: it is quarantined in all stores that want it."""
        entry = Quarantined(key, failure.stage, " ".join(failure.reason.split()), failure.attempts)
        self._miss(key, jobs)
        for job in jobs:
            self._settle(job, key, entry)
        self._decoded(key)

    def _decoded(self, key: str) -> None:
        """Nothing more is read of a clip's media."""
        self._files.done(key)
        with self._lock:
            self._decoding -= 1
        self._nudge()

    def _submit(self, job: int, outcome: Outcome) -> None:
        """Have the devices compute their parts of a clip's record."""
        assert self._runner is not None
        key, store = outcome.id, self._stores[job]
        clip, sampling = decoded(outcome, self._jobs[job]), self._jobs[job].sampling
        for unit in self._units[job]:
            self._runner.submit(unit, store.shard_of[key], store.place(key), key, clip, sampling)

    def _miss(self, key: str, jobs: Sequence[int]) -> None:
        """Tell the batches of these jobs not to wait for this clip."""
        for job in jobs:
            for unit in self._units.get(job, ()):
                assert self._runner is not None
                self._runner.miss(unit, self._stores[job].shard_of[key], self._stores[job].place(key))

    def _settle(self, job: int, key: str, result: Record | Quarantined) -> None:
        """A clip is done in one store; called from any thread."""
        if not self._collector.settle(self._stores[job], key, result):
            return
        self._watch(key, False)
        with self._lock:
            self._under_way -= 1
            self._left -= 1
            over = self._left == 0
        if over:
            self._over.set()
        self._nudge()

    def _nudge(self) -> None:
        if (pool := self._pool) is not None:
            pool.nudge()

    def _remark(self, text: str) -> None:
        self.remarks.append(text)
        self._context.remark(text)

    def _fail(self, error: BaseException) -> None:
        """Something broke in another thread, and the main thread will raise it; called from any thread."""
        with self._lock:
            self._error = self._error or error
        if (pool := self._pool) is not None:
            pool.interrupt(error)
        self._over.set()
