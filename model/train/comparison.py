"""Runs of several recipes and seeds that are compared: which exist, training the others, measuring each.

A cell is one recipe and seed. Its run is found by its configuration and stores, so that a comparison continues where it
broke off and takes over runs that `caeav train` made. What a table needs beyond `result.json` is measured once and kept
beside it, in `compare.json`: the terms of the score clip by clip, scores under stress, how true the agreement is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.adapters.live import LiveOpener
from caeav.model.tasks.bootstrap import CLIPS
from caeav.model.tasks.config import RunConfig, StressConfig
from caeav.model.train.agreement import judge, read_calibration
from caeav.model.train.experiment import Experiment, reopen
from caeav.model.train.loop import Watcher
from caeav.model.train.runs import ORIGIN, Run, create_run, list_runs
from caeav.model.train.session import load_best, train
from caeav.model.train.stress import CAPTION_KINDS, Stress, active, check_stress
from caeav.model.train.used_stores import STORES
from caeav.pipeline.store.errors import StoreBusy
from caeav.pipeline.store.lock import WriterLock

MEASURED = "compare.json"
LOCK = "lock"
WAIT_S = 60.0
"""How long a run may still be held by a process that is about to end."""

Measured = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """One recipe and seed, its configuration, and its run if that was begun before."""

    config: RunConfig
    run: Run | None

    def begun(self, home: Home, command: str) -> Cell:
        """With a run, which is made if there is none; `command`: where a new one comes from."""
        run = self.run
        if run is None:
            run = create_run(home, self.config)
            run.write(ORIGIN, {"command": command, "group": "", "seeds": []})
        return Cell(self.config.recipe, self.config.seed, run)


@dataclass(frozen=True)
class Cell:
    """One recipe and seed, and the run that is it."""

    recipe: str
    seed: int
    run: Run


@dataclass(frozen=True)
class Measures:
    """What is measured of every run: on which split, and under which damage, each kind by itself."""

    split: str
    strengths: StressConfig

    def stresses(self, config: RunConfig) -> dict[str, StressConfig]:
        """Name -> damage, without those of captions for a run that reads none."""
        return {
            f"{kind} {value:g}": StressConfig.model_validate({kind: value})
            for kind, value in active(self.strengths).items()
            if config.captions or kind not in CAPTION_KINDS
        }

    def check(self, experiment: Experiment) -> None:
        """Raise `CaeavError` for a split or a damage that the experiment does not allow."""
        if not experiment.joined.splits[self.split]:
            raise CaeavError(f"no usable clip in split {self.split!r}", hint="choose another --split")
        kinds = [name.partition(" ")[0] for name in self.stresses(experiment.config)]
        spec, config = experiment.inputs.spec, experiment.config
        check_stress(kinds, spec, captions=config.captions, shift=self.strengths.shift)


def plan(home: Home, experiments: Sequence[Experiment], seeds: Sequence[int]) -> list[Planned]:
    """Every recipe and seed with its run, if there is one; seed by seed. Makes nothing."""
    known = list_runs(home)
    every = [experiment.with_seed(seed) for seed in seeds for experiment in experiments]
    return [Planned(experiment.config, _existing(known, experiment)) for experiment in every]


def _existing(known: Sequence[Run], experiment: Experiment) -> Run | None:
    """A run with this configuration on these stores, a finished one first."""
    config = experiment.config
    wanted, stores = _settings(config), experiment.stores_json()
    same = []
    for run in known:
        if f"-{config.task}-{config.recipe}" not in run.name:
            continue
        try:
            if _settings(run.config()) != wanted:
                continue
            if not (run.folder / STORES).exists() or run.stores() == stores:
                same.append(run)
        except CaeavError:  # a damaged run, or one of another version, is none of these
            continue
    return next((run for run in same if run.result() is not None), same[0] if same else None)


def _settings(config: RunConfig) -> dict[str, Any]:
    """Everything that decides a run's numbers but the device; of adapters that are off only that they are."""
    values = config.model_dump(mode="json")
    values["training"].pop("device")
    adapters = values["model"]["adapters"]
    for name, part in adapters.items():
        if isinstance(part, dict) and part.get("enabled") is False:
            adapters[name] = {"enabled": False}
    return values


def complete(
    home: Home,
    run: Run,
    measures: Measures,
    *,
    device: str | None = None,
    live: LiveOpener | None = None,
    watchers: Callable[[Run], Sequence[Watcher]] = lambda run: (),
) -> None:
    """Train the run to its end if need be, and measure what is missing; one process at a time."""
    lock = _locked(run)
    try:
        if is_complete(run, measures):
            return
        experiment = reopen(home, run, device, live)
        if run.result() is None:
            train(experiment, run, watchers(run))
        model = experiment.build()
        load_best(run, model)
        run.write(MEASURED, measure(experiment, model, run, measures))
    finally:
        lock.release()


def _locked(run: Run) -> WriterLock:
    """The run's lock; a process whose comparison was killed may hold it for a moment longer."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            return WriterLock(run.folder / LOCK)
        except StoreBusy:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def read_measured(run: Run) -> Measured | None:
    """What was measured of a run; None if nothing was."""
    return run.read(MEASURED) if (run.folder / MEASURED).exists() else None


def is_complete(run: Run, measures: Measures) -> bool:
    """Whether the run is trained to its end and all of this is measured."""
    measured = read_measured(run)
    return (
        measured is not None
        and run.result() is not None
        and measured["split"] == measures.split
        and measures.stresses(run.config()).keys() <= measured["stress"].keys()
    )


def measure(experiment: Experiment, model: nn.Module, run: Run, measures: Measures) -> Measured:
    """Score, its terms, scores under each stress, how true the agreement is: area under the ROC curve, calibration."""
    split, metric = measures.split, experiment.task.metric
    scores = experiment.score(model, split)
    terms, keys = None, None
    evidence = scores.evidence
    if evidence is not None and metric in evidence.parts:
        terms = [part.double().tolist() for part in evidence.parts[metric]]
        clips = list(experiment.data[split].clips)
        keys = clips if evidence.unit == CLIPS and len(clips) == len(terms[0]) else None
    judged = judge(experiment, model, split, read_calibration(run))
    return {
        "split": split,
        "metric": metric,
        "score": scores.value,
        "terms": terms,
        "keys": keys,
        "agreement_auc": None if judged is None else judged.auc,
        "calibration_error": None if judged is None else judged.calibration_error,
        "stress": {
            name: experiment.score(model, split, Stress(strengths)).value
            for name, strengths in measures.stresses(experiment.config).items()
        },
    }
