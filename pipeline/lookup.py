"""The engine of stores made of what is there already, in files (captions, features) or in another store (texts). No
media is read.

The promises are those of `stage.py`: every clip ends stored or quarantined with the true reason, an interrupted run
goes on where it was, and the bytes are a function of manifest and recipe.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.extract.collect import Complete, Filling, Gatherer, open_stores
from caeav.pipeline.meter import Meter
from caeav.pipeline.store import Quarantined, Recipe, Record
from caeav.pipeline.extract.options import Remark, Report, RunOptions, StageSummary, failure_limit

Find = Callable[[str], Record | Quarantined]
"""A clip's record by its key, or why there is none."""


def run_lookup(
    manifest: Manifest,
    recipe: Recipe,
    home: Home,
    run: RunOptions,
    find: Find,
    complete: Complete,
    report: Report,
    remark: Remark,
) -> StageSummary:
    """Make or finish the store of `recipe` for `manifest` below `home` from what `find` gives.

    Raises `CaeavError` where nothing can be done; KeyboardInterrupt passes through, and finished shards stay.
    """
    began = time.monotonic()
    limit = failure_limit(run.max_failed, len(manifest.clips))
    if not manifest.clips:
        raise CaeavError(f"data set {manifest.dataset!r} has no clips", hint="caeav manifest check")
    folder = home.stores / manifest.dataset
    with ExitStack() as stack:
        (store,) = open_stores(stack, folder, manifest, [(recipe, complete)], run, remark)
        writer, meter = store.writer, Meter({"writer": 1})
        for text in writer.remarks:
            remark(text)
        due = len(store.shard_of)
        _fill(store, find, report, meter)
        done = writer.finish()
        return StageSummary(
            path=writer.path,
            recipe=writer.recipe,
            stored=done.stored,
            expected=done.expected,
            bytes=done.bytes,
            quarantined=writer.quarantined,
            due=due,
            seconds=time.monotonic() - began,
            notes={},
            remarks=tuple(writer.remarks),
            max_failed=limit,
            busy_s=meter.seconds(),
            limit=meter.limit(),
        )


def _fill(store: Filling, find: Find, report: Report, meter: Meter) -> None:
    broken: list[BaseException] = []
    gatherer = Gatherer([store], report, meter, broken.append, keep=False)  # to find again is cheap
    try:
        gatherer.begin()
        for key in store.shard_of:
            if broken:
                break
            gatherer.settle(store, key, find(key))
    finally:
        gatherer.close()
    if broken:
        raise broken[0]
