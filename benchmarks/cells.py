"""Trainings of a grid, one result file each, so that an interrupted grid goes on where it stopped.

A cell is one training. Its file's name holds a digest of all that decides its result; a cell whose file exists is not
trained again. After a change of the code the folder must be deleted by hand.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caeav.model.train.experiment import Experiment
    from caeav.model.train.runs import Run

KEPT = ("scores", "majority", "best_epoch", "epochs", "parameters")
"""What of a run's result a cell keeps."""


def cell_file(home: Path, name: str, decides: Sequence[Any]) -> Path:
    """Where a cell's result lies; `decides` is all that its result depends on."""
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:8]
    return home / "cells" / f"{name}-{digest}.json"


def train_cell(
    home: Path,
    training: dict[str, Any],
    told: dict[str, Any],
    result: Path,
    look: Callable[[Experiment, Run], dict[str, Any]] | None = None,
    alter: Callable[[Experiment], Experiment] | None = None,
) -> float:
    """Train one cell on one thread and publish `told`, what is needed of its result, and what `look` sees in its run;
    CPU seconds it took. The run folder is not kept.

    training: task, recipe, dataset, assignments, seed. alter: makes another experiment of the one that these prepare.
    """
    import torch

    torch.set_num_threads(1)
    from caeav.manifests.core.atomic import publish_text
    from caeav.manifests.core.home import Home
    from caeav.model.train.config_file import resolve_config
    from caeav.model.train.experiment import prepare
    from caeav.model.train.runs import ORIGIN, create_run
    from caeav.model.train.session import train

    began, place = time.process_time(), Home(home)
    assignments = (*training["assignments"], f"seed={training['seed']}")
    config = resolve_config(
        training["task"], training["recipe"], None, assignments, {"dataset": training["dataset"]}
    )
    experiment = prepare(place, config)
    experiment = alter(experiment) if alter else experiment
    run = create_run(place, experiment.config)
    run.write(ORIGIN, {"command": f"benchmarks/{Path(sys.argv[0]).name}", "group": ""})
    try:
        found = train(experiment, run)
        seen = look(experiment, run) if look else {}
    finally:
        shutil.rmtree(run.folder)
    seconds = time.process_time() - began
    result.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: found[name] for name in KEPT}
    publish_text(result, json.dumps({**told, **kept, **seen, "cpu_s": seconds}, indent=2) + "\n")
    return seconds


def train_cells(todo: Sequence[tuple[str, Callable[..., float], tuple[Any, ...]]], jobs: int) -> None:
    """Call every (name, function, arguments), each of `jobs` processes on one thread; a line for each one done."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(function, *arguments): name for name, function, arguments in todo}
        for done, future in enumerate(as_completed(waiting), 1):
            said = f"[{done}/{len(todo)}] {waiting[future]}: {future.result():.0f} CPU s"
            print(said, file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> str:
    """`mean ± deviation`, or a dash."""
    if not values:
        return "-"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.1f}"
