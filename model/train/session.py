"""Training an experiment into its run folder: fit, load the best weights, score each split once, write the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.model.tasks.bootstrap import intervals
from caeav.model.train.agreement import AGREEMENT_FILE, Calibration, calibrate
from caeav.model.train.card import write_card
from caeav.model.train.checkpoint import (
    load_into,
    read_tensors,
    trainable_state,
    write_tensors,
)
from caeav.model.train.cost import COST, peak_memory_mb
from caeav.model.train.experiment import Experiment
from caeav.model.train.join import removed
from caeav.model.train.loop import Trainer, Watcher
from caeav.model.train.predictions import keep_predictions
from caeav.model.train.processes import ONE, Processes
from caeav.model.train.protocol import AS_PUBLISHED, PUBLISHED
from caeav.model.train.provenance import describe_environment
from caeav.model.train.resume import BEST, Progress
from caeav.model.train.runs import ADAPTER, ENVIRONMENT, INPUTS, RESULT, Run
from caeav.model.train.stress import active
from caeav.model.train.used_stores import STORES


def train(experiment: Experiment, run: Run, watchers: Sequence[Watcher] = ()) -> dict[str, Any]:
    """Train, or go on training, into `run`, score, and return what `result.json` holds.

    Of several processes, which all call this, the main one alone writes; `watchers` are for it too.
    """
    processes = experiment.processes
    if processes.main:
        run.write(ENVIRONMENT, describe_environment(experiment.device, processes.count))
        run.write(INPUTS, experiment.inputs.as_json())
        run.write(STORES, experiment.stores_json())
    config, model = experiment.config, experiment.build()
    trainer = Trainer(
        task=experiment.task,
        config=config,
        model=model,
        device=experiment.device,
        data=experiment.data["train"],
        select=lambda: experiment.score(model, config.select_on),
        checkpoints=run.checkpoints,
        watchers=watchers,
        processes=processes,
    )
    progress = trainer.fit()
    load_best(run, model, processes)
    if processes.main:
        run.write(COST, {"device": experiment.device.type, "peak_mb": peak_memory_mb(experiment.device)})
    fitted = calibrate(experiment, model, config.select_on)
    if fitted is not None and processes.main:
        run.write(AGREEMENT_FILE, fitted)
    calibration = None if fitted is None else Calibration.of(fitted)
    result = _result(experiment, run, model, progress, calibration)
    if fitted is not None:
        result["agreement"] = {
            name: fitted[name] for name in ("auc", "calibration_error", "split", "against")
        }
    if not processes.main:
        return result
    facts = {"inputs": experiment.inputs.as_json(), "config": config.model_dump(mode="json"), "run": run.name}
    write_tensors(run.folder / ADAPTER, trainable_state(model), facts)
    write_card(run, experiment, result)
    run.write(RESULT, result)
    return result


def _result(
    experiment: Experiment,
    run: Run,
    model: nn.Module,
    progress: Progress,
    calibration: Calibration | None,
) -> dict[str, Any]:
    """What `result.json` holds; scores every split but train and keeps its predictions."""
    config = experiment.config
    splits = [name for name in SPLITS[1:] if experiment.joined.splits[name]]
    with keep_predictions(run, experiment, calibration) as keeper:
        scored = {name: experiment.score(model, name, observe=keeper.of(name)) for name in splits}
    result: dict[str, Any] = {
        "run": run.name,
        "group": run.origin()["group"],
        "task": config.task,
        "recipe": config.recipe,
        "dataset": config.dataset,
        "seed": config.seed,
        "metric": experiment.task.metric,
        "rows": f"{experiment.task.sample_noun}s",
        "select_on": config.select_on,
        "protocol": config.protocol,
        "augment": active(config.augment),
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "stopped_early": progress.stopped_early,
        "scores": {name: scores.value for name, scores in scored.items()},
        "intervals": {
            name: intervals(scores.evidence).as_json()
            for name, scores in scored.items()
            if scores.evidence is not None
        },
        "majority": {name: experiment.majority(name) for name in scored},
        "details": {name: dict(scores.details) for name, scores in scored.items()},
        "per_class": {name: [dict(row) for row in scores.per_class] for name, scores in scored.items()},
        "clips": {name: len(samples) for name, samples in experiment.joined.splits.items()},
        "left_out": {name: len(keys) for name, keys in experiment.joined.left_out.items()},
        "bare": {
            name: list(scores.without_media) for name, scores in scored.items() if scores.without_media[0]
        },
        "parameters": experiment.parameters,
    }
    if config.protocol == PUBLISHED and AS_PUBLISHED[config.task].peaks:
        result["peaks"] = {config.select_on: progress.peaks}
    if config.drop_leaks:
        result["leaks"] = {
            "left_out": removed(experiment.all_splits, experiment.joined.splits),
            "scores_with": {name: experiment.score_with_leaks(model, name).value for name in splits},
        }
    return result


MODEL = "model.safetensors"
"""Where a packaged run (`package.py`) has its best weights; it has no checkpoints."""


def best_weights(run: Run) -> Path:
    """The file with the weights that scored best on the selection split; raises `CaeavError` if there are none yet."""
    path = run.checkpoints / BEST
    if not path.exists() and (run.folder / MODEL).is_file():
        return run.folder / MODEL
    if not path.exists():
        raise CaeavError(
            f"run {run.name} has no finished epoch yet ({path} does not exist)",
            hint=f"caeav train --resume {run.name}",
        )
    return path


def load_best(run: Run, model: nn.Module, processes: Processes = ONE) -> None:
    """Load the weights that scored best on the selection split into `model`."""
    tensors, _ = processes.from_main(lambda: read_tensors(best_weights(run)))
    load_into(model, tensors, run.checkpoints / BEST)
