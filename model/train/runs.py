"""Run folders: where they lie, what is in them, and how they are found again.

`<home>/runs/<date-time>-<task>-<recipe>-s<seed>/` holds config.yaml (resolved), inputs.json (classes and shapes),
stores.json (what was joined), origin.json (command and group), environment.json, metrics.jsonl, tensorboard/,
checkpoints/, and when training is finished result.json, adapter.safetensors and card.md. A run is self-contained:
it can be scored or used for prediction wherever the folder is copied to. A group (`--seeds`) is one file
`<name>.group.json` beside its runs.

What a run was made with: versions, platform and device, for whoever repeats it elsewhere.

Which stores the runs of a home refer to: those must stay as long as the runs are to be scored or repeated.

Which frozen backbones made the tokens that a run reads, in a few words: for tables and cards.

A score says little without them. What is read is the run's own record of its stores; nothing is opened or loaded.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from caeav.manifests.core.atomic import publish_text
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.adapters.batch import Inputs
from caeav.model.tasks.config import RunConfig
from caeav.model.train.config_file import dump_config, load_config
from caeav.model.train.protocol import HONEST, PUBLISHED, stamp
from caeav.pipeline.store import Recipe, Reference

PACKAGES = ("caeav", "torch", "numpy", "safetensors", "pydantic", "tensorboard", "matplotlib")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """JSON values. The thread count is part of it: sums over threads decide the last bits of a CPU run."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }


def environment_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed that can change a resumed run's numbers: `torch: 2.12.0 -> 2.13.0`."""
    pairs = [
        (name, then.get(name), now.get(name)) for name in ("machine", "device", "device_name", "threads")
    ]
    pairs += [
        (name, then.get("packages", {}).get(name), now["packages"].get(name))
        for name in ("caeav", "torch", "numpy")
    ]
    return [f"{name}: {before} -> {after}" for name, before, after in pairs if before != after]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


IMPORTED = "features"
"""The name that `caeav import` gives to what it did not compute."""
RANDOM_VALUES = " (random values)"
READ: Mapping[str, tuple[str, ...]] = {
    "both": ("visual", "audio"),
    "visual": ("visual",),
    "audio": ("audio",),
    "neither": (),
}
"""The modalities that a run reads, by its setting `model.modalities`."""


def modalities_read(config: RunConfig) -> tuple[str, ...]:
    """Of `visual` and `audio`, those the run reads."""
    return READ[config.model.modalities]


def backbones(config: RunConfig, recipes: Sequence[Recipe]) -> str:
    """`swinv2-large + hts-at`, visual first; one name where both are the same, `none` for a run that reads neither."""
    named: list[str] = []
    for modality in modalities_read(config):
        for recipe in recipes:
            part = recipe.fields.get(modality)
            if isinstance(part, Mapping):
                named.append(_name(part, recipe))
    return " + ".join(dict.fromkeys(named)) or ("none" if not modalities_read(config) else "not known")


def _name(part: Mapping[str, object], recipe: Recipe) -> str:
    name = str(part.get("name", "not known"))
    if name == IMPORTED:
        return f"imported {recipe.name}"
    weights = part.get("weights")
    source = str(weights.get("source", "")) if isinstance(weights, Mapping) else ""
    return name + (RANDOM_VALUES if source.startswith("random:") else "")


CONFIG, INPUTS, STORES, ENVIRONMENT = "config.yaml", "inputs.json", "stores.json", "environment.json"
METRICS, RESULT, CARD, ADAPTER = "metrics.jsonl", "result.json", "card.md", "adapter.safetensors"
ORIGIN = "origin.json"
CHECKPOINTS, TENSORBOARD, PREDICTIONS = "checkpoints", "tensorboard", "predictions"
GROUP_SUFFIX = ".group.json"


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
        """Where weights and the resumable state lie."""
        return self.folder / CHECKPOINTS

    def config(self) -> RunConfig:
        """The resolved configuration."""
        return load_config(self.folder / CONFIG)

    def inputs(self) -> Inputs:
        """Classes and shapes."""
        return Inputs.from_json(self.read(INPUTS))

    def stores(self) -> dict[str, Any]:
        """What was joined: labels digest and store facts with their recipes."""
        return self.read(STORES)

    def token_recipes(self) -> list[Recipe]:
        """By which recipes a new clip becomes the tokens the run was trained on."""
        return self._recipes("tokens")

    def caption_recipe(self) -> Recipe | None:
        """By which its captions are made; None for a run without."""
        return next(iter(self._recipes("captions")), None)

    def _recipes(self, kind: str) -> list[Recipe]:
        held = [fact["recipe"] for fact in self.stores()["stores"] if fact["kind"] == kind]
        return [Recipe(recipe["kind"], recipe["name"], recipe["fields"]) for recipe in held]

    def origin(self) -> dict[str, Any]:
        """The command that began it and the group it belongs to, as far as known."""
        return self.read(ORIGIN) if (self.folder / ORIGIN).exists() else {"command": "", "group": ""}

    def result(self) -> dict[str, Any] | None:
        """Scores, or None while training is unfinished."""
        if not (self.folder / RESULT).exists():
            return None
        return {"protocol": HONEST, "intervals": {}} | self.read(RESULT)  # runs from before there were any

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
    """A new run folder with its configuration; names never clash, whoever trains at the same time."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    marked = "" if config.select_on == "val" else "-selected-on-test"
    if config.protocol == PUBLISHED:
        marked = "-published"
    base = f"{stamp}-{config.task}-{config.recipe}{marked}-s{config.seed}"
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
    """The run at a path, or called `name` or with the only name that begins so or holds it; `last`: the newest."""
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
        raise RunError(f"{name!r} fits {len(matches)} runs: {shown}", hint="give the whole name")
    if known:
        raise RunError(
            f"no run {name!r} in {home.runs}; the newest are: {shown}", hint="list them: caeav runs ls"
        )
    raise RunError(
        f"no run {name!r}: there are no runs in {home.runs}", hint="train one: caeav train --task ave"
    )


def list_runs(home: Home) -> list[Run]:
    """All run folders, oldest first."""
    if not home.runs.is_dir():
        return []
    return [Run(folder) for folder in sorted(home.runs.iterdir()) if (folder / CONFIG).is_file()]


def summarise(run: Run) -> dict[str, Any]:
    """One line of `caeav runs ls`: what it is and how it did. A damaged run is listed as such, not hidden."""
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


def group_path(home: Home, name: str) -> Path:
    """Where the summary of a group of runs lies."""
    return home.runs / f"{name}{GROUP_SUFFIX}"


def referenced_stores(home: Home) -> set[Reference]:
    """The stores of every run, finished or not.

    Raises `RunError` when a run does not say which: nothing may be called unused then.
    """
    found: set[Reference] = set()
    folders = sorted(home.runs.iterdir()) if home.runs.is_dir() else []
    for run in (
        Run(folder) for folder in folders if (folder / CONFIG).exists() or (folder / STORES).exists()
    ):
        try:
            for fact in run.stores()["stores"]:
                place = PurePosixPath(fact["folder"])
                found.add(Reference(place.parent.name, fact["fingerprint"]))
        except (RunError, KeyError, TypeError) as error:
            raise RunError(
                f"run {run.name} does not say which stores it uses: {getattr(error, 'problem', repr(error))}",
                hint=f"it has just begun, or it is damaged; remove {run.folder} if it is of no use",
            ) from error
    return found
