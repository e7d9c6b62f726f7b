"""What tells runs apart in a list: backbones, which settings differ from the preset, seeds together, age."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from caeav.manifests.core.errors import CaeavError
from caeav.model.tasks.config import RunConfig
from caeav.model.train.config_file import flat_settings, resolve_config
from caeav.model.train.provenance import backbones
from caeav.model.train.runs import CONFIG, Run, summarise

OF_EVERY_RUN = ("task", "recipe", "dataset", "seed", "select_on", "protocol", "stores.", "training.device")
"""Settings that have a column of their own, or say nothing about the method."""


def overview(run: Run) -> dict[str, Any]:
    """`summarise`, and `backbones`, `set` (what differs from the preset) and `age_s`; less for a damaged run."""
    facts = summarise(run)
    age_s = max(0.0, time.time() - (run.folder / CONFIG).stat().st_mtime)
    if facts["state"] == "damaged":
        return {**facts, "age_s": age_s}
    config = run.config()
    try:
        named = backbones(config, run.token_recipes())
    except (CaeavError, KeyError, TypeError):
        named = "not known"  # a run that has just begun has no record of its stores yet
    return {**facts, "backbones": named, "set": changed(config), "age_s": age_s}


def changed(config: RunConfig) -> list[str]:
    """`training.epochs=3`: the settings in which a run differs from its preset, as `--set` takes them."""
    try:
        preset = resolve_config(config.task, config.recipe, options={"dataset": config.dataset})
    except CaeavError:
        return []  # a preset of another version
    usual = flat_settings(preset)
    return [
        f"{path}={_shown(value)}"
        for path, value in flat_settings(config).items()
        if value != usual.get(path) and not path.startswith(OF_EVERY_RUN)
    ]


def groups(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for the finished runs of each group of seeds: seeds, and mean and deviation of each split's score."""
    named = dict.fromkeys(row["group"] for row in rows if row.get("group"))
    found = []
    for name in named:
        members = [row for row in rows if row.get("group") == name and row["state"] == "finished"]
        facts: dict[str, Any] = {"group": name, "seeds": [row["seed"] for row in members]}
        for split in ("val", "test"):
            scores = [row[split] for row in members if row.get(split) is not None]
            facts[split] = statistics.fmean(scores) if scores else None
            facts[f"{split}_std"] = statistics.stdev(scores) if len(scores) > 1 else None
        found.append(facts)
    return found


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
