"""The engine of both stages: a recipe and a manifest in, a finished store out, however often it is interrupted.

Clips that are due go to killable child processes; what comes back is gathered shard by shard and published as
soon as a shard is whole, several shards being open at a time. Every clip ends stored or quarantined with the true
reason. What is computed is the business of `worker.py` and of the stage's `complete`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from caeav.manifests.clip import Manifest
from caeav.manifests.errors import CaeavError
from caeav.manifests.home import Home
from caeav.manifests.publish import publish_bytes
from caeav.pipeline.decode.pool import Outcome, Request, WorkerPool
from caeav.pipeline.store import (
    Quarantined,
    Recipe,
    Record,
    ShardPlan,
    StoreWriter,
    find_other_recipes,
    open_for_writing,
)
from caeav.pipeline.summary import Progress, Remark, Report, RunOptions, StageSummary, failure_limit
from caeav.pipeline.worker import worker_settings

Complete = Callable[[Sequence[Record]], list[Record]]
"""Turns the records of one shard into what is stored (embedding texts, say)."""

MEDIA_ROOT = "media_root"
"""File beside a data set's stores: where its media was read last. Stores themselves do not know."""
SETUP = "caeav.pipeline.worker:setup"


def run_stage(
    manifest: Manifest,
    recipe: Recipe,
    home: Home,
    run: RunOptions,
    complete: Complete,
    report: Report,
    remark: Remark,
) -> StageSummary:
    """Make or finish the store of `recipe` for `manifest` below `home`.

    Raises `CaeavError` where nothing can be done; KeyboardInterrupt passes through, and finished shards stay.
    """
    began = time.monotonic()
    limit = failure_limit(run.max_failed, len(manifest.clips))
    if not manifest.clips:
        raise CaeavError(f"data set {manifest.dataset!r} has no clips", hint="caeav manifest check")
    folder = home.stores / manifest.dataset
    remarks = _others(home, manifest.dataset, recipe) + _moved(folder / MEDIA_ROOT, manifest.media_root)
    with open_for_writing(folder, recipe, manifest, retry_failed=run.retry_failed) as writer:
        remarks += writer.remarks
        for text in remarks:
            remark(text)
        work = _Work(writer, Path(manifest.media_root), complete, report)
        work.run(run)
        done = writer.finish()
        return StageSummary(
            path=writer.path,
            recipe=recipe,
            stored=done.stored,
            expected=done.expected,
            bytes=done.bytes,
            quarantined=writer.quarantined,
            due=work.total,
            seconds=time.monotonic() - began,
            notes=dict(sorted(work.notes.items())),
            remarks=tuple(remarks),
            max_failed=limit,
        )


class _Work:
    """The clips one run has to do, and the shards they are gathered into."""

    def __init__(self, writer: StoreWriter, media_root: Path, complete: Complete, report: Report) -> None:
        self.notes: Counter[str] = Counter()
        self._writer = writer
        self._complete = complete
        self._report = report
        self._plans = {plan.number: plan for plan in writer.plan()}
        self._shard_of = {key: plan.number for plan in self._plans.values() for key in plan.missing}
        self._waiting = {plan.number: set(plan.missing) for plan in self._plans.values()}
        self._records: dict[int, dict[str, Record]] = {number: {} for number in self._plans}
        self._clips = {clip.key: clip for clip in writer.manifest.clips if clip.key in self._shard_of}
        self._root = media_root
        self.total = len(self._shard_of)
        self._done = self._failed = 0

    def run(self, run: RunOptions) -> None:
        """Do everything that is due; no child process is started when nothing is."""
        for plan in list(self._plans.values()):
            self._publish_if_whole(plan)
        for key in [key for key in self._shard_of if not self._path(key).is_file()]:
            self._quarantine(Quarantined(key, "media", f"file not found: {self._clips[key].media}", 1))
        due = [key for key in self._shard_of if key in self._waiting.get(self._shard_of[key], ())]
        if not due:
            return
        workers = min(run.workers, len(due))
        settings = worker_settings(self._writer.recipe)
        with WorkerPool(SETUP, settings, workers=workers, deadline_s=run.deadline_s) as pool:
            for outcome in pool.map(self._requests(due)):
                self._take(outcome)

    def _path(self, key: str) -> Path:
        return self._root / self._clips[key].media

    def _requests(self, keys: Sequence[str]) -> Iterator[Request]:
        for key in keys:
            yield {"id": key, "path": str(self._path(key)), "start_s": self._clips[key].start_s}

    def _take(self, outcome: Outcome) -> None:
        key = outcome.id
        if outcome.failure is not None:
            failure = outcome.failure
            reason = " ".join(failure.reason.split())
            self._quarantine(Quarantined(key, failure.stage, reason, failure.attempts))
            return
        self.notes.update({note["code"] for note in outcome.info["notes"]})
        number = self._shard_of[key]
        self._records[number][key] = Record(key, outcome.arrays, outcome.info)
        self._settle(key)

    def _quarantine(self, entry: Quarantined) -> None:
        self._writer.quarantine(entry)
        self._failed += 1
        self._settle(entry.key)

    def _settle(self, key: str) -> None:
        """One clip less to wait for."""
        plan = self._plans[self._shard_of[key]]
        self._waiting[plan.number].discard(key)
        self._done += 1
        self._report(Progress(self._done, self._failed, self.total))
        self._publish_if_whole(plan)

    def _publish_if_whole(self, plan: ShardPlan) -> None:
        if self._waiting[plan.number]:
            return
        found = self._records.pop(plan.number)
        good = []
        for record in self._complete([found[key] for key in plan.missing if key in found]):
            reason = unfit(record)
            if reason:
                self._writer.quarantine(Quarantined(record.key, "values", reason, 1))
                self._failed += 1
            else:
                good.append(record)
        self._writer.publish(plan, {record.key: record for record in good})


def _others(home: Home, dataset: str, recipe: Recipe) -> list[str]:
    """What to say about stores of other recipes when a new store is begun: it is easily not what was meant."""
    if (home.stores / dataset / recipe.folder_name).exists():
        return []
    return [
        f"a new store is made; {other.path.name} was made by another recipe: {'; '.join(other.differences)}"
        for other in find_other_recipes(home.stores, dataset, recipe)
    ]


def _moved(note: Path, root: str) -> list[str]:
    """What to say when the media lay elsewhere the last time: moved, or another folder of the same name."""
    before, now = note.read_bytes() if note.is_file() else b"", os.fsencode(root)
    if before == now:
        return []
    with suppress(FileNotFoundError):  # the other stage, begun at the same moment, has just written it
        publish_bytes(note, now)
    if not before:
        return []
    return [
        f"the media was in {os.fsdecode(before)} before, it is now in {root}; clips of the same name are taken for "
        "the same clips: for another data set, rename its folder or use another --home"
    ]


def unfit(record: Record) -> str:
    """Why a record may not be stored: the array with values that are no finite numbers; empty when it is sound."""
    for name, array in record.arrays.items():
        wrong = int(array.size - np.isfinite(array).sum()) if array.dtype.kind == "f" else 0
        if wrong:
            return f"{name} has {wrong} of {array.size} values not finite in {array.dtype}"
    return ""
