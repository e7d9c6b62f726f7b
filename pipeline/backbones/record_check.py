"""`caeav models check`: run a model on a built-in sample and compare its features with recorded ones.

Features that silently differ from published ones come from other weights, preprocessing or libraries. Weights and
settings are in the key of a record, so what shows up as a difference is the libraries. Records come with the package
(`records.json`), or users make their own (`<home>/model_records.json`) and carry them to another machine. A record
holds of every array its mean, standard deviation, largest magnitude and some signed sums, which any exchange of tokens
or channels changes; of a captioner, its texts.

The sample is made by code, equal to the last bit everywhere. It has rough and smooth parts, moves, and differs from
left to right and from colour to colour, so that a swapped channel, another resizing or a shifted window changes the
features. Shapes: `T` segments.
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

from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones.catalogue import registry_of
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.facts import Kind
from caeav.pipeline.media.clip import DecodedClip
from caeav.pipeline.store.recipe import recipe_identity

RECORDS = "model_records.json"
TOLERANCE = 0.01
"""Largest difference allowed, in standard deviations of the array; float32 on another machine differs far less."""
SUMS = 8
SEGMENTS, HEIGHT, WIDTH = 2, 270, 480
TEXTS = (
    "A small red disc moves to the right over a grey ground.",
    "A loud rising tone, then a dog barks twice!",
    "",
)
Statistics = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ModelCheck:
    """The features a model gave. `against`: where the record it was compared with lies, empty if there is none."""

    key: str
    described: Mapping[str, Any]
    statistics: Statistics
    against: str = ""
    differences: list[str] = field(default_factory=list)


def check_model(choice: ModelChoice, kind: Kind, home: Home) -> ModelCheck:
    """Run a model on the sample (float32, on the CPU) and compare; raises `CaeavError` when it cannot be built."""
    model = registry_of(kind)[choice.name](choice)
    described = json.loads(json.dumps(dict(model.describe())))
    found = _statistics(model, kind)
    identity = json.dumps([kind, recipe_identity(described)], sort_keys=True, separators=(",", ":"))
    key = hashlib.sha256(identity.encode()).hexdigest()
    for place, records in ((str(home.root / RECORDS), _user_records(home)), ("caeav", _packaged_records())):
        if key in records:
            return ModelCheck(key, described, found, place, differences(records[key]["statistics"], found))
    return ModelCheck(key, described, found)


def record(checked: ModelCheck, choice: ModelChoice, kind: Kind, home: Home) -> Path:
    """Keep what a model gave in `<home>/model_records.json`, in place of an earlier record with its key."""
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
    """What differs, one line per array; empty when nothing does."""
    lines = [f"{name} is missing" for name in recorded if name not in found]
    lines += [f"{name} was not recorded" for name in found if name not in recorded]
    for name in recorded:
        if name in found:
            lines += _differences(name, recorded[name], found[name])
    return lines


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


def array_statistics(array: NDArray[Any]) -> dict[str, Any]:
    """An array's shape, mean, std and largest magnitude, and signed sums in units of the std."""
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


def sample_clip(rate_hz: int) -> DecodedClip:
    """Frames and audio as a decoded clip."""
    whole = (True,) * SEGMENTS
    return DecodedClip(sample_frames(), sample_wave(rate_hz), whole, whole)


def sample_frames() -> NDArray[np.uint8]:
    """Frames `[T, H, W, 3]` uint8, computed in whole numbers."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.int64)
    frames = []
    for t in range(SEGMENTS):
        grain = ((x * 7919 + y * 104729 + t * 1299709) ** 2 >> 7) % 41
        red = x * 255 // WIDTH // 2 + grain
        green = (y * 200 // HEIGHT + ((x // 16 + y // 16) % 2) * 30) + grain // 2
        blue = ((x * y) // 97) % 128 + 60
        disc = (x - 120 - 90 * t) ** 2 + (y - 130) ** 2 < 55**2
        rgb = np.stack(
            [np.where(disc, 230, red), np.where(disc, 30, green), np.where(disc, 40, blue)], axis=-1
        )
        frames.append(np.clip(rgb, 0, 255).astype(np.uint8))
    return np.stack(frames)


def sample_wave(rate_hz: int) -> NDArray[np.float32]:
    """Audio `[T * rate_hz]` float32: a rising tone with an overtone, two knocks, and hiss, rounded to 16 bits."""
    n = np.arange(SEGMENTS * rate_hz, dtype=np.int64)
    seconds = n / rate_hz
    turns = 300.0 * seconds + 150.0 * seconds * seconds
    tone = 0.3 * np.sin(2 * np.pi * turns) + 0.1 * np.sin(6 * np.pi * turns)
    knock = sum(np.exp(-60.0 * np.abs(seconds - at)) for at in (0.7, 1.3)) * np.sin(
        2 * np.pi * 90.0 * seconds
    )
    hiss = (((n * 1103515245 + 12345) >> 8) % 2001 - 1000) / 40000
    return (np.round((tone + 0.4 * knock + hiss) * 32767) / 32768).astype(np.float32)


def _user_records(home: Home) -> dict[str, Any]:
    path = home.root / RECORDS
    if not path.is_file():
        return {}
    return _parsed(path.read_bytes(), str(path))


def _packaged_records() -> dict[str, Any]:
    return _parsed(
        resources.files("caeav.pipeline.backbones").joinpath("records.json").read_bytes(), "records.json"
    )


def _parsed(data: bytes, place: str) -> dict[str, Any]:
    try:
        records = json.loads(data)
        if all(isinstance(entry["statistics"], dict) for entry in records.values()):
            return dict(records)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise CaeavError(f"{place} holds no records of models", hint="move it away and record again")
