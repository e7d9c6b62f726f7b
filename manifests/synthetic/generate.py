"""Make a set: plan every clip, write the media that are missing, then the lists.

Clips are independent, so any number of processes may write them in any order, and an interrupted run continues with the
clips it lacks.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import usable_cores
from caeav.manifests.synthetic import oracle
from caeav.manifests.synthetic.layouts.base import MATERIAL_FILE, assign_splits, claim, layouts, write_lines
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario

Progress = Callable[[int, int], None]
"""Called with the number of finished clips, including those found, and the number of all clips."""


@dataclass(frozen=True)
class Summary:
    """What lies in `root`: clips by split, kind and class, the share of seconds in which nothing is both seen and heard
    (`background`), and how far each modality alone could get in the layout's `measure`. This run wrote `written` clips
    and found `kept`."""

    root: Path
    options: SyntheticOptions
    written: int
    kept: int
    splits: dict[str, int]
    kinds: dict[str, int]
    classes: dict[str, int]
    background: float
    measure: str
    scores: tuple[oracle.Score, ...]


def synthesise(
    root: Path, options: SyntheticOptions, workers: int | None = None, progress: Progress | None = None
) -> Summary:
    """Write the set to `root`, or finish it; the same options give the same bytes for any `workers`.

    `workers` processes are used, by default one per core. They are spawned, so unless `workers` is 1 a script must
    guard its main part by `if __name__ == "__main__"`. Raises `CaeavError` when `root` was made with other options or
    holds something else.
    """
    if workers is not None and workers < 1:
        raise CaeavError(f"workers is {workers}; it must be 1 or more", hint="leave it out for one a core")
    claim(root, options)
    if options.material is not None:
        write_lines(root / MATERIAL_FILE, options.material.table().splitlines())
    made = layouts[options.layout]
    scenarios = [made.plan(options, i) for i in range(options.clips)]
    splits = assign_splits(options, scenarios)
    missing = [
        (s.index, split)
        for s, split in zip(scenarios, splits, strict=True)
        if not made.last_file(root, s, split).exists()
    ]
    _write_media(root, options, missing, workers or usable_cores(), progress or (lambda done, total: None))
    made.write_lists(root, options, scenarios, splits)
    return _summarise(root, options, scenarios, splits, written=len(missing))


def write_clip(root: Path, options: SyntheticOptions, index: int, split: str) -> None:
    """Make the media of one clip."""
    made = layouts[options.layout]
    made.write_clip(root, options, made.plan(options, index), split)


def _write_media(
    root: Path,
    options: SyntheticOptions,
    missing: Sequence[tuple[int, str]],
    workers: int,
    progress: Progress,
) -> None:
    done = options.clips - len(missing)
    progress(done, options.clips)
    write = partial(write_clip, root, options)
    if min(workers, len(missing)) <= 1:
        for index, split in missing:
            write(index, split)
            done += 1
            progress(done, options.clips)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(missing)), mp_context=get_context("spawn"), initializer=_start_worker
    )
    try:
        for _ in pool.map(write, *zip(*missing, strict=True)):
            done += 1
            progress(done, options.clips)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def _summarise(
    root: Path, options: SyntheticOptions, scenarios: Sequence[Scenario], splits: Sequence[str], written: int
) -> Summary:
    names = options.names()
    made = layouts[options.layout]
    aligned = [
        bool({s.cls(n) for n in seen} & {s.cls(n) for n in heard})
        for s in scenarios
        for seen, heard in zip(s.seen, s.heard, strict=True)
    ]
    kinds = Counter(s.kind for s in scenarios)
    classes = Counter(names[s.category] for s in scenarios)
    return Summary(
        root=root,
        options=options,
        written=written,
        kept=options.clips - written,
        splits={split: splits.count(split) for split in SPLITS},
        kinds={kind: kinds[kind] for kind in options.kind_shares()},
        classes={name: classes[name] for name in names},
        background=1 - sum(aligned) / len(aligned),
        measure=made.measure,
        scores=made.scores(options, scenarios),
    )
