"""What a run was made with: versions, platform and device, and the frozen backbones behind its tokens.

A score says little without them. Backbones are read from the run's own record of its stores; nothing is opened.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from caeav.model.tasks.config import RunConfig
from caeav.pipeline.store import Recipe
from caeav.pipeline.store.recipe import MODALITIES

PACKAGES = ("caeav", "torch", "numpy", "safetensors", "pydantic", "tensorboard", "matplotlib")
IMPORTED = "features"
"""The backbone's name in recipes written by `caeav import`."""
RANDOM_VALUES = " (random values)"


def describe_environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Versions and device as JSON values; threads and processes too, since sums over them decide the last bits of a
    CPU run."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def environment_differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Changes that can change the numbers of a resumed run, such as `torch: 2.12.0 -> 2.13.0`."""
    pairs = [
        (name, then.get(name), now.get(name)) for name in ("machine", "device", "device_name", "threads")
    ]
    pairs.append(("processes", then.get("processes", 1), now.get("processes", 1)))
    pairs += [
        (name, then.get("packages", {}).get(name), now["packages"].get(name))
        for name in ("caeav", "torch", "numpy")
    ]
    return [f"{name}: {before} -> {after}" for name, before, after in pairs if before != after]


def installed_version(name: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def modalities_read(config: RunConfig) -> tuple[str, ...]:
    """Those of `visual` and `audio` that the run reads."""
    return tuple(modality for modality in MODALITIES if config.model.modalities in ("both", modality))


def backbones(config: RunConfig, recipes: Sequence[Recipe]) -> str:
    """`swinv2-large + hts-at`, visual first; a name that both share once; `none` for a run that reads neither."""
    named: list[str] = []
    for modality in modalities_read(config):
        for recipe in recipes:
            part = recipe.fields.get(modality)
            if isinstance(part, Mapping):
                named.append(_backbone_name(part, recipe))
    return " + ".join(dict.fromkeys(named)) or ("none" if not modalities_read(config) else "not known")


def _backbone_name(part: Mapping[str, object], recipe: Recipe) -> str:
    name = str(part.get("name", "not known"))
    if name == IMPORTED:
        return f"imported {recipe.name}"
    weights = part.get("weights")
    source = str(weights.get("source", "")) if isinstance(weights, Mapping) else ""
    return name + (RANDOM_VALUES if source.startswith("random:") else "")
