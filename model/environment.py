"""What a run was made with: versions, platform and device, for whoever repeats it elsewhere."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

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
