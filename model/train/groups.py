"""Groups of runs that differ in their seed only, summarised as mean and deviation."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from caeav.manifests.core.atomic import publish_text
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.train.runs import Run, list_runs

GROUP_SUFFIX = ".group.json"


def summarise_group(name: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation (0 for one run) of every split's score over `results`."""
    first = results[0]
    scores = {
        split: _spread([result["scores"][split] for result in results])
        for split in first["scores"]
        if all(split in result["scores"] for result in results)
    }
    return {
        "group": name,
        "task": first["task"],
        "recipe": first["recipe"],
        "dataset": first["dataset"],
        "metric": first["metric"],
        "select_on": first["select_on"],
        "protocol": first["protocol"],
        "runs": [result["run"] for result in results],
        "seeds": [result["seed"] for result in results],
        "scores": scores,
        "majority": first["majority"],
    }


def group_path(home: Home, name: str) -> Path:
    """The file with the summary of a group."""
    return home.runs / f"{name}{GROUP_SUFFIX}"


def members(home: Home, name: str) -> list[Run]:
    """The runs of a group, oldest first; none for an empty name."""
    return [run for run in list_runs(home) if name and run.origin()["group"] == name]


def finished_group(home: Home, name: str) -> list[dict[str, Any]]:
    """The results of a group in the order its seeds were given; none while one is missing."""
    runs = members(home, name)
    results = [result for run in runs if (result := run.result()) is not None]
    seeds = runs[0].origin().get("seeds", []) if runs else []
    by_seed = {result["seed"]: result for result in results}
    return [by_seed[seed] for seed in seeds] if set(by_seed) == set(seeds) else []


def write_group(home: Home, summary: dict[str, Any]) -> None:
    """Publish the summary of a group beside its runs."""
    publish_text(group_path(home, summary["group"]), json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def read_group(home: Home, name: str) -> dict[str, Any] | None:
    """The summary of the group called `name`, or None; raises `CaeavError` for a damaged file."""
    path = group_path(home, name)
    if path.parent != home.runs or not path.is_file():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CaeavError(
            f"cannot read {path}: {error}", hint="delete the file; the runs themselves are not affected"
        ) from error
    return summary


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": list(values),
    }
