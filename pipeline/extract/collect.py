"""From settled clips to published shards: clips come in any order, from any thread, and leave as whole shards.

One thread writes, so a store has one writer whatever computes; few whole shards may wait for it, so that memory
stays bounded and whoever is faster than the disk waits. A record whose shard is not whole yet is kept in the store's
journal meanwhile. Every clip ends stored or quarantined with the true reason.

From what comes back of one clip to the records of the stores that want it.

A child process brings what is cheap, and pictures and sound for what computes on devices; when the last part of a
record has come, the record is settled. A part that fails costs that store this clip, and no other store.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from caeav.manifests.clip import Clip, Manifest
from caeav.pipeline.extract.decode_job import FRAMES, in_worker, wave_name
from caeav.pipeline.extract.jobs import Job, sampling_of
from caeav.pipeline.extract.options import Meter, Progress, Remark, Report, RunOptions
from caeav.pipeline.media.clip import DecodedClip, Note
from caeav.pipeline.media.workers.pool import Outcome
from caeav.pipeline.store import Quarantined, Recipe, Record, ShardPlan, StoreWriter, open_for_writing
from caeav.pipeline.store.dtypes import MOST, SCALE, dtype_name, not_finite, stored, too_large
from caeav.pipeline.store.layout import shard_clips

if TYPE_CHECKING:
    from caeav.pipeline.extract.device.batches import Unit


COMPUTE = "compute"
"""The stage that quarantine names when a component fails."""

Settle = Callable[[int, str, Record | Quarantined], None]
"""Takes the number of a job, a key, and what became of the clip in its store."""


@dataclass
class _Parts:
    """What has come of one record, and of which modalities something is still to come."""

    arrays: dict[str, NDArray[Any]]
    info: dict[str, Any]
    awaited: set[str]
    failed: str = ""
    texts: dict[str, str] = field(default_factory=dict)


class Assembly:
    """Records in the making, of all jobs of a run. For use from several threads."""

    def __init__(self, jobs: Sequence[Job], settle: Settle) -> None:
        self._jobs = jobs
        self._settle = settle
        self._away = [
            tuple(modality for modality, part in job.parts.items() if not in_worker(part)) for job in jobs
        ]
        self._open: dict[tuple[int, str], _Parts] = {}
        self._lock = threading.Lock()

    def arrived(self, outcome: Outcome, jobs: Sequence[int]) -> list[int]:
        """Take what a child process brought for `jobs`; returns those of which parts are still to come."""
        key, open_jobs = outcome.id, []
        taps: dict[int, dict[str, NDArray[Any]]] = {job: {} for job in jobs}
        for name, array in outcome.arrays.items():
            number, slash, tap = name.partition("/")
            if slash:
                taps[int(number)][tap] = array
        for job in jobs:
            fields = self._jobs[job].recipe.fields
            failed = outcome.info["failed"].get(str(job))
            if failed is not None:
                self._settle(job, key, Quarantined(key, COMPUTE, " ".join(failed.split()), 1))
                continue
            parts = _Parts(
                stored(taps[job], fields["dtype"]),
                dict(outcome.info["clips"][str(fields["sampling"]["rate_hz"])]),
                set(self._away[job]),
                texts=dict(outcome.info["texts"][str(job)]),
            )
            if parts.awaited:
                with self._lock:
                    self._open[job, key] = parts
                open_jobs.append(job)
            else:
                self._finish(job, key, parts)
        return open_jobs

    def made(self, unit: Unit, key: str, result: object, facts: Mapping[str, object]) -> None:
        """Take what a device made of a clip, or the exception that says why nothing."""
        with self._lock:
            parts = self._open[unit.store, key]
            parts.awaited.discard(unit.modality)
            done = not parts.awaited
            if done:
                del self._open[unit.store, key]
            if isinstance(result, Exception):
                parts.failed = parts.failed or _reason(result)
            elif isinstance(result, str):
                parts.texts[unit.modality] = result
            elif isinstance(result, Mapping):
                parts.arrays |= result
            parts.info["facts"] = {
                **parts.info["facts"],
                "device": {**parts.info["facts"].get("device", {}), **facts},
            }
        if done:
            self._finish(unit.store, key, parts)

    def _finish(self, job: int, key: str, parts: _Parts) -> None:
        if parts.failed:
            self._settle(job, key, Quarantined(key, COMPUTE, parts.failed, 1))
            return
        info = dict(parts.info)
        if self._jobs[job].recipe.kind == "captions":
            info["texts"] = {modality: parts.texts[modality] for modality in self._jobs[job].parts}
        self._settle(job, key, Record(key, parts.arrays, info))


def decoded(outcome: Outcome, job: Job) -> DecodedClip:
    """The clip as decoded for a job, from what a child process sent back."""
    rate_hz = sampling_of(job.recipe).rate_hz
    info = outcome.info["clips"][str(rate_hz)]
    return DecodedClip(
        frames=outcome.arrays.get(FRAMES),
        wave=outcome.arrays.get(wave_name(rate_hz)),
        frames_ok=tuple(info["frames_ok"]),
        audio_ok=tuple(info["audio_ok"]),
        notes=[Note(note["code"], note["detail"]) for note in info["notes"]],
        facts=dict(info["facts"]),
        key=outcome.id,
    )


def _reason(error: Exception) -> str:
    """An exception in one line; those whose text is the whole reason are given without their type."""
    text = " ".join(str(error).split())
    return text if type(error).__name__ == "ComputeFailed" else f"{type(error).__name__}: {text}"


Complete = Callable[[Sequence[Record], Callable[[str], int]], list[Record]]
"""Turns the records of one shard into what is stored (embedding texts, say), given each key's place in the shard."""

QUEUED_SHARDS = 1
SYNC_S = 10.0
"""A power cut costs at most what was finished within so many seconds before it."""
_Item = tuple["Filling", ShardPlan, dict[str, Record]] | tuple["Filling", Quarantined | Record]


class Filling:
    """A store being filled: what is due, where each clip has its place, and the shards that are not whole yet.

    `shard_of`: the shard of each clip that has to be made, in the store's order; `waiting`: how many clips of a shard
    are not settled. Clips whose records an earlier run kept are neither.
    """

    def __init__(self, writer: StoreWriter, complete: Complete) -> None:
        self.writer = writer
        self.complete = complete
        plans = writer.plan()
        self.plans = {plan.number: plan for plan in plans}
        self.shard_of: dict[str, int] = {}
        for plan in plans:
            kept = set(plan.kept)
            self.shard_of.update((key, plan.number) for key in plan.missing if key not in kept)
        self.waiting = {plan.number: len(plan.missing) - len(plan.kept) for plan in plans}
        self.records: dict[int, dict[str, Record]] = {plan.number: {} for plan in plans}
        self._size = shard_clips(writer.recipe)

    def clip(self, key: str) -> Clip:
        """A clip of the store's manifest."""
        return self.writer.manifest.clips[self.writer.place(key)]

    def place(self, key: str) -> int:
        """Where a clip lies in its shard as planned, whichever others are missing there."""
        return self.writer.place(key) % self._size


def open_stores(
    stack: ExitStack,
    folder: Path,
    manifest: Manifest,
    wanted: Sequence[tuple[Recipe, Complete]],
    run: RunOptions,
    remark: Remark,
    settle: Callable[[StoreWriter], object] = lambda _: None,
) -> list[Filling]:
    """The stores of these recipes below `folder`, opened for writing until `stack` ends, in the order given.

    One that another process writes is waited for, having said so; by name, so that no two runs wait for each other.
    `settle` is given each opened store before it is planned what is due.
    """
    opened = {}
    for recipe, complete in sorted(wanted, key=lambda pair: pair[0].folder_name):
        writer = open_for_writing(
            folder,
            recipe,
            manifest,
            retry_failed=run.retry_failed,
            part=run.part,
            waiting=remark,
            relabel=run.relabel,
        )
        stack.enter_context(writer)
        settle(writer)
        opened[recipe.folder_name] = Filling(writer, complete)
    return [opened[recipe.folder_name] for recipe, _ in wanted]


class Gatherer:
    """Takes settled clips of several stores; `error` is called, once, with what went wrong in the writing thread.

    With `keep` the records of shards that are not whole are kept in journals: where making one again is dear.
    """

    def __init__(
        self,
        stores: Sequence[Filling],
        report: Report,
        meter: Meter,
        error: Callable[[BaseException], None],
        *,
        keep: bool = True,
    ) -> None:
        self._stores = stores
        self._report = report
        self._meter = meter
        self._error = error
        self._keep = keep
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(QUEUED_SHARDS + 1)
        self._hurry = threading.Event()
        self._unsynced_s: float | None = None
        self._open: dict[str, int] = defaultdict(int)
        for store in stores:
            for key in store.shard_of:
                self._open[key] += 1
        self._failed: set[str] = set()
        self.total = len(self._open)
        self._done = 0
        self._thread = threading.Thread(target=self._write_all, name="caeav-write", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Report what is due, and write the shards for which nothing is but to be written again."""
        if self.total:
            self._report(Progress(0, 0, self.total))
        for store in self._stores:
            for number in [n for n, waiting in store.waiting.items() if not waiting]:
                self._publish(store, number)

    def settle(self, store: Filling, key: str, result: Record | Quarantined) -> bool:
        """One clip of one store is done; True when it is done in all stores. Waits when writing is behind."""
        if isinstance(result, Quarantined):  # before its shard, which is published without it
            self._queue.put((store, result))
        number = store.shard_of[key]
        with self._lock:
            if isinstance(result, Record):
                store.records[number][key] = result
            else:
                self._failed.add(key)
            store.waiting[number] -= 1
            whole = not store.waiting[number]
            if self._keep and isinstance(result, Record) and not whole:  # else its shard follows at once
                self._queue.put((store, result))
            self._open[key] -= 1
            done = self._open[key] == 0
            self._done += done
            if done:
                self._report(Progress(self._done, len(self._failed), self.total, self._meter.limit()))
        if whole:
            self._publish(store, number)
        return done

    def hurry(self) -> None:
        """The run is broken off: all that is settled is kept in journals, and no further shard is begun."""
        self._hurry.set()
        with self._lock:
            for store in self._stores if self._keep else ():
                for record in [record for found in store.records.values() for record in found.values()]:
                    self._queue.put((store, record))

    def close(self) -> None:
        """Write what is whole, have what is kept on the disk, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _publish(self, store: Filling, number: int) -> None:
        self._room.acquire()
        with self._lock:
            store.waiting.pop(number)
            found = store.records.pop(number)
        self._queue.put((store, store.plans[number], found))

    # Everything below runs in the writing thread.

    def _write_all(self) -> None:
        broken = False
        while (item := self._next(broken)) is not None:
            try:
                if not broken:  # else go on taking, or those who give would wait for ever
                    self._write(item)
            except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
                broken = True
                self._error(error)
            finally:
                if len(item) == 3:
                    self._room.release()

    def _next(self, broken: bool) -> _Item | None:
        """What is to be done next, what was kept being synced in time and at the end."""
        item: _Item | None = None
        while not broken:
            passed_s = 0.0 if self._unsynced_s is None else time.monotonic() - self._unsynced_s
            if passed_s >= SYNC_S:
                self._sync()
                continue
            try:
                item = self._queue.get(timeout=None if self._unsynced_s is None else SYNC_S - passed_s)
            except queue.Empty:
                continue
            if item is None:
                self._sync()
            return item
        return self._queue.get()

    def _sync(self) -> None:
        self._unsynced_s = None
        try:
            for store in self._stores:
                store.writer.sync()
        except OSError as error:
            self._error(error)

    def _write(self, item: _Item) -> None:
        with self._meter.busy("writer", "write"):
            if len(item) == 3:
                store, plan, found = item
                if self._hurry.is_set() and self._keep:
                    self._keep_all(store, found)
                else:
                    self._write_shard(store, plan, found)
                return
            store, settled = item
            if isinstance(settled, Quarantined):
                store.writer.quarantine(settled)
                return
            with self._lock:
                whole = store.shard_of[settled.key] not in store.records
            if not whole or self._hurry.is_set():
                self._keep_all(store, {settled.key: settled})

    def _keep_all(self, store: Filling, records: Mapping[str, Record]) -> None:
        for record in records.values():
            store.writer.keep(record)
        if self._unsynced_s is None:
            self._unsynced_s = time.monotonic()

    def _write_shard(self, store: Filling, plan: ShardPlan, made: Mapping[str, Record]) -> None:
        found = {**store.writer.kept(plan.number), **made} if plan.kept else made
        good = {}
        ready = [found[key] for key in plan.missing if key in found]
        for record in store.complete(ready, store.place):
            reason = unfit(record)
            if reason:
                store.writer.quarantine(Quarantined(record.key, "values", reason, 1))
                with self._lock:
                    self._failed.add(record.key)
            else:
                good[record.key] = record
        store.writer.publish(plan, good)


def unfit(record: Record) -> str:
    """Why a record may not be stored: the array with values that are no finite numbers; empty when it is sound."""
    for name, array in record.arrays.items():
        wrong = not_finite(array)
        if wrong and too_large(name, array):
            tap, scaled, _ = name.partition(SCALE)
            what = "channels" if scaled else "values"
            return (
                f"{tap} has {wrong} of {array.size} {what} beyond {MOST:g} in {'int8' if scaled else 'float16'}; "
                "--dtype bfloat16 or float32 holds such values"
            )
        if wrong:
            return f"{name} has {wrong} of {array.size} values not finite in {dtype_name(array)}"
    return ""
