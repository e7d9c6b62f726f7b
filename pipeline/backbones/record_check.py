"""Does a model give here what it gave elsewhere? Its features of a built-in sample, against recorded ones.

Features that silently differ from published ones come from other weights, preprocessing or libraries. The first two
are in the key of a record: a digest of what the model says of itself (settings, weights by their digest). The third is
what shows up as a difference. Records come with the package (`records.json`) and are made by users (`<home>/
model_records.json`), who can so carry theirs from one machine to another. A record holds, for every array, mean,
standard deviation, largest magnitude and some signed sums that no exchange of tokens or channels leaves alone; for a
captioner, its texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.atomic import publish_bytes
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.catalogue import Kind, registry_of
from caeav.pipeline.sample import TEXTS, sample_clip, sample_frames, sample_wave
from caeav.pipeline.store.recipe import recipe_identity

RECORDS = "model_records.json"
TOLERANCE = 0.01
"""Largest difference allowed, in standard deviations of the array: float32 on other machines differs far less."""
SUMS = 8
Statistics = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Checked:
    """What a model gave. `against`: where the record it was compared with is from, empty when there is none."""

    key: str
    described: Mapping[str, Any]
    statistics: Statistics
    against: str = ""
    differences: list[str] = field(default_factory=list)


def check_model(choice: ModelChoice, kind: Kind, home: Home) -> Checked:
    """Run a model on the sample (float32, on the CPU) and compare; raises `CaeavError` when it cannot be made."""
    model = registry_of(kind)[choice.name](choice)
    described = json.loads(json.dumps(dict(model.describe())))
    found = _statistics(model, kind)
    identity = json.dumps([kind, recipe_identity(described)], sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(identity.encode()).hexdigest()
    for place, records in ((str(home.root / RECORDS), _user_records(home)), ("caeav", _packaged_records())):
        if key in records:
            return Checked(key, described, found, place, differences(records[key]["statistics"], found))
    return Checked(key, described, found)


def record(checked: Checked, choice: ModelChoice, kind: Kind, home: Home) -> Path:
    """Keep what a model gave in `<home>/model_records.json`, in the place of an earlier record of the same key."""
    path = home.root / RECORDS
    records = _user_records(home)
    entry = {
        "name": choice.name,
        "kind": kind,
        "described": checked.described,
        "statistics": checked.statistics,
    }
    records[checked.key] = entry
    publish_bytes(path, json.dumps(records, indent=1, sort_keys=True).encode())
    return path


def differences(recorded: Statistics, found: Statistics) -> list[str]:
    """What differs, named; empty when nothing does."""
    said = [f"{name} is missing" for name in recorded if name not in found]
    said += [f"{name} was not recorded" for name in found if name not in recorded]
    for name in recorded:
        if name in found:
            said += _differences(name, recorded[name], found[name])
    return said


def array_statistics(array: NDArray[Any]) -> dict[str, Any]:
    """Of one array: shape, mean, std, largest magnitude, and signed sums in units of the std."""
    x = np.asarray(array, dtype=np.float64)
    flat = x.ravel()
    std = float(flat.std())
    bits = np.unpackbits(
        np.frombuffer(hashlib.shake_256(b"signs").digest(SUMS * (flat.size // 8 + 1)), dtype=np.uint8)
    )
    signs = bits[: SUMS * flat.size].reshape(SUMS, flat.size) * 2.0 - 1
    centred = (flat - flat.mean()) / (std or 1.0)
    sums = signs @ centred / np.sqrt(flat.size)
    return {
        "shape": list(x.shape),
        "mean": float(flat.mean()),
        "std": std,
        "largest": float(np.abs(flat).max()),
        "sums": [float(value) for value in sums],
    }


def _differences(name: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    if "texts" in recorded or "texts" in found or recorded["shape"] != found["shape"]:
        part = "shape" if "shape" in recorded else "texts"
        a, b = recorded.get(part), found.get(part)
        return [] if a == b else [f"{name}: {part} {b}, recorded {a}"]
    scale = recorded["std"] or 1.0
    pairs = [(part, recorded[part] / scale, found[part] / scale) for part in ("mean", "std", "largest")]
    pairs += [
        (f"sum {i + 1}", *pair) for i, pair in enumerate(zip(recorded["sums"], found["sums"], strict=True))
    ]
    off = [
        (abs(a - b), part, a * scale, b * scale)
        for part, a, b in pairs
        if not abs(a - b) <= TOLERANCE * max(1, abs(a))
    ]
    if not off:
        return []
    worst, part, a, b = max(off)
    return [f"{name}: {part} {b:.5g}, recorded {a:.5g} ({worst:.2g} standard deviations apart)"]


def _statistics(model: Any, kind: Kind) -> Statistics:
    if kind == "visual backbone":
        arrays = model.tokens([sample_frames()])[0]
    elif kind == "audio backbone":
        arrays = model.tokens([sample_wave(model.rate_hz).reshape(-1, model.rate_hz)])[0]
    elif kind == "text encoder":
        tokens, mask = model.encode(TEXTS)
        arrays = {"tokens": tokens, "mask": mask}
    else:
        return {"caption": {"texts": model.caption([sample_clip(model.rate_hz or 16_000)])}}
    return {name: array_statistics(array) for name, array in arrays.items()}


def _user_records(home: Home) -> dict[str, Any]:
    path = home.root / RECORDS
    if not path.is_file():
        return {}
    return _parsed(path.read_bytes(), str(path))


def _packaged_records() -> dict[str, Any]:
    return _parsed(resources.files("caeav.pipeline").joinpath("records.json").read_bytes(), "records.json")


def _parsed(data: bytes, place: str) -> dict[str, Any]:
    try:
        records = json.loads(data)
        if all(isinstance(entry["statistics"], dict) for entry in records.values()):
            return dict(records)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise CaeavError(f"{place} holds no records of models", hint="move it away and record again")
