"""Run folders: what is in them, how they are found again, and which stores they need.

`<home>/runs/<date-time>-<task>-<recipe>-s<seed>/` holds config.yaml (resolved), inputs.json (classes and shapes),
stores.json (what was joined), origin.json (command and group), environment.json, metrics.jsonl, tensorboard/,
checkpoints/, and when training is finished result.json, predictions.parquet (or .jsonl), adapter.safetensors and
card.md. A run is self-contained: it
can be scored or used for prediction wherever its folder is copied. A group of runs (`--seeds`) is described in
`<name>.group.json` beside them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from caeav.manifests.core.atomic import publish_text, unpublish
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.adapters.batch import Inputs
from caeav.model.tasks.config import RunConfig
from caeav.model.train.config_file import dump_config, load_config
from caeav.model.train.protocol import HONEST, PUBLISHED, stamp
from caeav.model.train.used_stores import STORES, references
from caeav.pipeline.store import Recipe, Reference

CONFIG, INPUTS, ENVIRONMENT = "config.yaml", "inputs.json", "environment.json"
METRICS, RESULT, CARD, ADAPTER = "metrics.jsonl", "result.json", "card.md", "adapter.safetensors"
ORIGIN = "origin.json"
CHECKPOINTS, TENSORBOARD, PREDICTIONS = "checkpoints", "tensorboard", "predictions"


class RunError(CaeavError):
    """A run that cannot be found or read."""


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        """The folder of weights and resumable state."""
        return self.folder / CHECKPOINTS

    def config(self) -> RunConfig:
        """The resolved configuration."""
        return load_config(self.folder / CONFIG)

    def inputs(self) -> Inputs:
        """Classes and shapes that the network is built for."""
        return Inputs.from_json(self.read(INPUTS))

    def stores(self) -> dict[str, Any]:
        """What was joined: the digest of the labels, and each store with its recipe."""
        return self.read(STORES)

    def token_recipes(self) -> list[Recipe]:
        """The recipes that turn a new clip into tokens like those the run was trained on."""
        return self._recipes("tokens")

    def caption_recipe(self) -> Recipe | None:
        """The recipe of its captions; None for a run without."""
        return next(iter(self._recipes("captions")), None)

    def _recipes(self, kind: str) -> list[Recipe]:
        held = [fact["recipe"] for fact in self.stores()["stores"] if fact["kind"] == kind]
        return [Recipe(recipe["kind"], recipe["name"], recipe["fields"]) for recipe in held]

    def origin(self) -> dict[str, Any]:
        """The command that started the run and its group; empty where unknown."""
        return self.read(ORIGIN) if (self.folder / ORIGIN).exists() else {"command": "", "group": ""}

    def result(self) -> dict[str, Any] | None:
        """Scores and all else of `result.json`; None while training is unfinished."""
        if not (self.folder / RESULT).exists():
            return None
        return {"protocol": HONEST, "intervals": {}} | self.read(RESULT)  # missing in older runs

    def read(self, name: str) -> dict[str, Any]:
        """One JSON file of the run; raises `RunError`."""
        path = self.folder / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"cannot read {path}: {error}", hint="the run folder is incomplete; train again"
            ) from error
        if not isinstance(value, dict):
            raise RunError(f"{path} holds a {type(value).__name__}, not an object", hint="train again")
        return value

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Publish one JSON file of the run."""
        publish_text(
            self.folder / name, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )


def create_run(home: Home, config: RunConfig) -> Run:
    """A new run folder with its configuration; names never clash, even between processes."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    mark = "" if config.select_on == "val" else "-selected-on-test"
    if config.protocol == PUBLISHED:
        mark = "-published"
    base = f"{stamp}-{config.task}-{config.recipe}{mark}-s{config.seed}"
    home.runs.mkdir(parents=True, exist_ok=True)
    name, n = base, 1
    while True:
        try:
            (home.runs / name).mkdir()
            break
        except FileExistsError:
            n += 1
            name = f"{base}-{n}"
    run = Run(home.runs / name)
    publish_text(run.folder / CONFIG, dump_config(config))
    return run


def find_run(home: Home, name: str) -> Run:
    """The run at a path, the one called `name`, or the only one whose name contains it; `last`: the newest."""
    as_path = Path(name).expanduser()
    if (as_path / CONFIG).is_file():
        return Run(as_path.absolute())
    known = list_runs(home)
    if name == "last" and known:
        return known[-1]
    exact = [run for run in known if run.name == name]
    matches = exact or [run for run in known if name in run.name]
    if len(matches) == 1:
        return matches[0]
    shown = ", ".join(run.name for run in (matches or known)[-5:])
    if matches:
        raise RunError(f"{name!r} fits {len(matches)} runs: {shown}", hint="give the full name")
    if known:
        raise RunError(
            f"no run {name!r} in {home.runs}; the newest are: {shown}", hint="list them: caeav runs ls"
        )
    raise RunError(
        f"no run {name!r}: there are no runs in {home.runs}", hint="train one: caeav train --task ave"
    )


def remove_run(run: Run) -> None:
    """Remove a run's folder; its configuration first, so that an interrupted removal leaves nothing that is listed."""
    unpublish(run.folder / CONFIG)
    shutil.rmtree(run.folder)


def list_runs(home: Home) -> list[Run]:
    """All run folders, oldest first."""
    if not home.runs.is_dir():
        return []
    return [Run(folder) for folder in sorted(home.runs.iterdir()) if (folder / CONFIG).is_file()]


def summarise(run: Run) -> dict[str, Any]:
    """One line of `caeav runs ls`: what the run is and how it scored. A damaged run is listed as damaged."""
    try:
        config, result = run.config(), run.result()
    except CaeavError as error:
        return {"run": run.name, "state": "damaged", "error": error.problem.splitlines()[0]}
    facts = {
        "run": run.name,
        "state": "finished" if result else "unfinished",
        "task": config.task,
        "recipe": config.recipe,
        "dataset": config.dataset,
        "seed": config.seed,
        "select_on": config.select_on,
        "protocol": stamp(config.protocol, config.select_on),
    }
    if result:
        facts |= {"val": result["scores"].get("val"), "test": result["scores"].get("test")}
        facts |= {"best_epoch": result["best_epoch"], "group": result.get("group", "")}
    return facts


def referenced_stores(home: Home) -> set[Reference]:
    """The stores that any run needs to be scored or repeated, finished or not.

    Raises `RunError` when a run does not say which, since no store can be called unused then.
    """
    found: set[Reference] = set()
    folders = sorted(home.runs.iterdir()) if home.runs.is_dir() else []
    for run in [
        Run(folder) for folder in folders if (folder / CONFIG).exists() or (folder / STORES).exists()
    ]:
        try:
            found.update(references(run.stores()))
        except (RunError, KeyError, TypeError) as error:
            raise RunError(
                f"run {run.name} does not say which stores it uses: {getattr(error, 'problem', repr(error))}",
                hint=f"it has just started, or it is damaged; remove {run.folder} if it is not needed",
            ) from error
    return found
