"""From settled clips to published shards: clips come in any order, from any thread, and leave as whole shards.

One thread writes, so a store has one writer whatever computes; only a few whole shards may wait for it: memory
stays bounded, and work that is faster than the disk waits. A record whose shard is not whole yet is kept in the store's
journal meanwhile. Every clip ends stored or quarantined with the true reason.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from caeav.manifests.clip import Clip
from caeav.manifests.core.util import ignore
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.jobs import Complete
from caeav.pipeline.extract.progress import Meter, OnClip, Progress
from caeav.pipeline.store import Quarantined, Recipe, Record, ShardPlan, StoreWriter, open_for_writing
from caeav.pipeline.store.dtypes import MOST, SCALE, dtype_name, not_finite, too_large
from caeav.pipeline.store.layout import shard_clips
from caeav.pipeline.store.staged import StagedShard

QUEUED_SHARDS = 1
SYNC_S = 10.0
"""A power cut costs at most what was finished within this many seconds before it."""
_Item = tuple["Filling", ShardPlan, dict[str, Record]] | tuple["Filling", Quarantined | Record]


class Filling:
    """A store being filled: which clips are due, the place of each, and the shards that are not whole yet.

    `shard_of`: the shard of each clip that has to be made, in the store's order; `waiting`: how many clips of a shard
    are not settled. Clips whose records an earlier run kept count for neither.
    """

    def __init__(self, writer: StoreWriter | StagedShard, complete: Complete) -> None:
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
        return self.writer.clip(key)

    def place(self, key: str) -> int:
        """A clip's planned place in its shard, whichever others are missing there."""
        return self.writer.place(key) % self._size


class OpenStore(Filling):
    """A store being filled by the process that holds its lock."""

    writer: StoreWriter


def open_stores(
    stack: ExitStack,
    context: RunContext,
    wanted: Sequence[tuple[Recipe, Complete]],
    settle: Callable[[StoreWriter], object] = ignore,
) -> list[OpenStore]:
    """The stores of these recipes, opened for writing until `stack` ends, in the order given.

    A store that another process writes is waited for, after a remark. Stores are opened in the order of their names, so
    that no two runs wait for each other. `settle` is given each opened store before its due clips are planned.
    """
    run = context.options
    opened = {}
    for recipe, complete in sorted(wanted, key=lambda pair: pair[0].folder_name):
        writer = open_for_writing(
            context.folder,
            recipe,
            context.manifest,
            retry_failed=run.retry_failed,
            part=run.part,
            waiting=context.remark,
            relabel=run.relabel,
        )
        stack.enter_context(writer)
        settle(writer)
        opened[recipe.folder_name] = OpenStore(writer, complete)
    return [opened[recipe.folder_name] for recipe, _ in wanted]


class Collector:
    """Takes settled clips of several stores; `fail` is called, once, with what went wrong in the writing thread.

    With `keep`, for records that are expensive to make again, those of shards that are not whole go into journals.
    """

    def __init__(
        self,
        stores: Sequence[Filling],
        on_clip: OnClip,
        meter: Meter,
        fail: Callable[[BaseException], None],
        *,
        keep: bool = True,
    ) -> None:
        self._stores = stores
        self._on_clip = on_clip
        self._meter = meter
        self._fail = fail
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
        """Report how many clips are due, and publish the shards for which an earlier run kept every clip."""
        if self.total:
            self._on_clip(Progress(0, 0, self.total))
        for store in self._stores:
            for number in [n for n, waiting in store.waiting.items() if not waiting]:
                self._publish(store, number)

    def settle(self, store: Filling, key: str, result: Record | Quarantined) -> bool:
        """One clip of one store is done; True when it is done in all stores. Waits when writing is behind."""
        if isinstance(result, Quarantined):  # written before its shard, which is published without it
            self._queue.put((store, result))
        number = store.shard_of[key]
        with self._lock:
            if isinstance(result, Record):
                store.records[number][key] = result
            else:
                self._failed.add(key)
            store.waiting[number] -= 1
            whole = not store.waiting[number]
            if self._keep and isinstance(result, Record) and not whole:  # a whole shard follows at once
                self._queue.put((store, result))
            self._open[key] -= 1
            done = self._open[key] == 0
            self._done += done
            if done:
                self._on_clip(Progress(self._done, len(self._failed), self.total, self._meter.limit()))
        if whole:
            self._publish(store, number)
        return done

    def hurry(self) -> None:
        """The run is interrupted: keep all that is settled in journals, and begin no further shard."""
        self._hurry.set()
        with self._lock:
            for store in self._stores if self._keep else ():
                for record in [record for found in store.records.values() for record in found.values()]:
                    self._queue.put((store, record))

    def close(self) -> None:
        """Write whole shards, sync the journals, and end the thread."""
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
                if not broken:  # after an error items are only taken, or `settle` would block for ever
                    self._write(item)
            except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
                broken = True
                self._fail(error)
            finally:
                if len(item) == 3:
                    self._room.release()

    def _next(self, broken: bool) -> _Item | None:
        """The next item; journals are synced in time, and at the end."""
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
            self._fail(error)

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
    """Why a record may not be stored: which array has values that are not finite; empty when none has."""
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
