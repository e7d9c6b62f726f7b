"""The engine of stage one: a manifest and jobs in, finished stores out, however often it is interrupted.

`run_stage` makes records from media: it opens the stores, has their due clips made (`Extraction`: on this machine by
`local.py`), and finishes them. `run_lookup` finds records that are there already: in files, or in another store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from caeav.pipeline.extract.collect import Collector, Filling, OpenStore, open_stores
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.identity import MediaCheck
from caeav.pipeline.extract.jobs import Complete, Job
from caeav.pipeline.extract.local import LocalExtraction
from caeav.pipeline.extract.preflight import (
    MEDIA_ROOT,
    Loader,
    check_compatible,
    moved_media,
    other_recipes,
)
from caeav.pipeline.extract.progress import Meter, OnClip, StageSummary
from caeav.pipeline.store import Quarantined, Recipe, Record
from caeav.pipeline.store.media_record import MediaChange
from caeav.pipeline.store.remote.push import Publishing

Find = Callable[[str], Record | Quarantined]
"""A clip's record by its key, or why there is none."""


class Extraction(Protocol):
    """Makes the due clips of open stores, as published shards or quarantined clips: the part that an engine replaces.

    `notes`: how often each note was made on clips, by store; `meter`: what was busy; `remarks`: what it told the user.
    """

    @property
    def notes(self) -> Sequence[Mapping[str, int]]: ...
    @property
    def remarks(self) -> Sequence[str]: ...
    @property
    def meter(self) -> Meter: ...
    def run(self) -> None:
        """Make all of them, or raise; what is finished stays."""


def run_stage(context: RunContext, jobs: Sequence[Job]) -> list[StageSummary]:
    """Make or finish the stores of `jobs`, decoding each clip at most once.

    Raises `CaeavError` where nothing can be done; KeyboardInterrupt passes through, and finished clips stay.
    """
    began_s = time.monotonic()
    limit = context.failure_limit()
    context.check_clips()
    check_compatible([job.recipe for job in jobs])
    places = [context.folder / (job.recipe.folder_name + context.options.part.suffix) for job in jobs]
    media = MediaCheck(context, places)
    media.refuse()
    on_cluster = context.options.cluster is not None
    load = _load_elsewhere if on_cluster else Loader(context.remark)
    for job, place in zip(jobs, places, strict=True):
        if not place.exists():
            load(job)
    remarks = [other_recipes(context, job.recipe) for job in jobs]
    with ExitStack() as stack:
        wanted = [(job.recipe, job.complete(context.options.devices)) for job in jobs]
        stores = open_stores(stack, context, wanted, media.settle)
        remarks[0] += moved_media(context.folder / MEDIA_ROOT, context.manifest.media_root, not media.changes)
        for store, texts in zip(stores, remarks, strict=True):
            texts += store.writer.remarks
            for text in texts:
                context.remark(text)
        due = [len(store.shard_of) for store in stores]
        for job, clips in zip(jobs, due, strict=True):
            if clips:
                load(job)
        publishing = Publishing(context.options.publish, [store.writer for store in stores], context.remark)
        stack.enter_context(publishing)
        extraction = _extraction(context, jobs, stores, media)
        try:
            extraction.run()
        finally:
            media.finish([store.writer.path for store in stores])
        made = [
            _summary(
                store,
                extraction.meter,
                began_s=began_s,
                due=due[i],
                notes=extraction.notes[i],
                remarks=[*remarks[i], *extraction.remarks],
                max_failed=limit,
                media=media.changes,
            )
            for i, store in enumerate(stores)
        ]
        publishing.finish()
        return made


def _extraction(
    context: RunContext, jobs: Sequence[Job], stores: Sequence[OpenStore], media: MediaCheck
) -> Extraction:
    """Who makes the shards: this machine, or a cluster."""
    if context.options.cluster is None:
        return LocalExtraction(context, jobs, stores, media.decoded, place=media.place)
    from caeav.pipeline.extract.cluster.driver import ClusterExtraction
    from caeav.pipeline.extract.cluster.ray_cluster import RayCluster

    address = context.options.cluster.address
    return ClusterExtraction(context, jobs, stores, media, lambda: RayCluster(address, context.remark))


def _load_elsewhere(job: Job) -> None:
    """Actors load what computes; this machine may have neither the memory nor the device for it."""


def run_lookup(context: RunContext, recipe: Recipe, find: Find, complete: Complete) -> StageSummary:
    """Make or finish the store of `recipe` from what `find` gives; no media is read.

    Raises `CaeavError` where nothing can be done; KeyboardInterrupt passes through, and finished shards stay.
    """
    began_s = time.monotonic()
    limit = context.failure_limit()
    context.check_clips()
    with ExitStack() as stack:
        (store,) = open_stores(stack, context, [(recipe, complete)])
        meter = Meter({"writer": 1})
        for text in store.writer.remarks:
            context.remark(text)
        due = len(store.shard_of)
        _find_all(store, find, context.on_clip, meter)
        return _summary(
            store, meter, began_s=began_s, due=due, remarks=store.writer.remarks, max_failed=limit
        )


def _find_all(store: Filling, find: Find, on_clip: OnClip, meter: Meter) -> None:
    errors: list[BaseException] = []
    collector = Collector(
        [store], on_clip, meter, errors.append, keep=False
    )  # records are cheap to find again
    try:
        collector.begin()
        for key in store.shard_of:
            if errors:
                break
            collector.settle(store, key, find(key))
    finally:
        collector.close()
    if errors:
        raise errors[0]


def _summary(
    store: OpenStore,
    meter: Meter,
    *,
    began_s: float,
    due: int,
    remarks: Sequence[str],
    max_failed: int,
    notes: Mapping[str, int] | None = None,
    media: Sequence[MediaChange] = (),
) -> StageSummary:
    """Finish a store and say what became of it."""
    writer, finished = store.writer, store.writer.finish()
    return StageSummary(
        path=writer.path,
        recipe=writer.recipe,
        stored=finished.stored,
        expected=finished.expected,
        bytes=finished.bytes,
        quarantined=writer.quarantined,
        due=due,
        seconds=time.monotonic() - began_s,
        notes=dict(sorted((notes or {}).items())),
        remarks=tuple(remarks),
        max_failed=max_failed,
        busy_s=meter.seconds(),
        limit=meter.limit(),
        media=tuple(change for change in media if change.store == writer.path.name),
    )
