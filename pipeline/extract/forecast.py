"""What a run of stage one would do, before it starts: how many clips, how many bytes, and how long.

Bytes follow from the shapes that recipes declare. Time follows from how fast the last run on this home made the same
stores with as many workers on the same devices; where there was none, it is not known. Nothing is opened for writing,
and no weights are loaded that describing a backbone does not need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from caeav.manifests.core.atomic import publish_text
from caeav.manifests.core.home import Home
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.jobs import StoreOptions
from caeav.pipeline.extract.progress import StageSummary
from caeav.pipeline.store import Recipe, StoreError, StoreReader
from caeav.pipeline.store.recipe import MODALITIES

RATES = "rates.json"
"""In the home: recipes that were filled together, workers and devices -> seconds per clip of the last run."""
TELLING_CLIPS = 8
"""A run of fewer clips says little: starting up is most of it."""
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}
SCALE_BYTES = 4
"""int8 keeps one float32 for each channel of an array."""


@dataclass(frozen=True)
class Forecast:
    """One store: its folder, how many of its clips are `stored`, in quarantine and `due`; the bytes that a clip takes
    (None: not declared); and why it cannot be continued as it is."""

    path: Path
    clips: int
    stored: int
    quarantined: int
    due: int
    clip_bytes: int | None
    problem: str = ""


@dataclass(frozen=True)
class Plan:
    """All stores of a run. `seconds`: for all due clips, None where no run has shown it."""

    stores: tuple[Forecast, ...]
    seconds: float | None


def forecast(context: RunContext, options: Sequence[StoreOptions]) -> Plan:
    """What filling these stores takes; raises `CaeavError` for unknown names or values."""
    recipes = [each.job(context.manifest.segments, context.manifest.segment_s).recipe for each in options]
    stores = tuple(_of_store(context, recipe) for recipe in recipes)
    due = max((store.due for store in stores), default=0)  # each clip is decoded once for all of them
    rate = read_rates(context.home).get(_key(recipes, context.options.workers, context.options.devices))
    return Plan(stores, None if rate is None else due * rate)


def record_rate(context: RunContext, summaries: Sequence[StageSummary]) -> None:
    """Keep how fast this run was, if it was long enough to tell."""
    due = max((summary.due for summary in summaries), default=0)
    if due < TELLING_CLIPS:
        return
    key = _key([s.recipe for s in summaries], context.options.workers, context.options.devices)
    rates = {**read_rates(context.home), key: round(max(s.seconds for s in summaries) / due, 4)}
    publish_text(context.home.root / RATES, json.dumps(rates, indent=1, sort_keys=True) + "\n")


def read_rates(home: Home) -> dict[str, float]:
    """Seconds per clip by recipes, workers and devices; empty where none is known or the file is damaged."""
    try:
        held = json.loads((home.root / RATES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(held, dict):
        return {}
    return {str(k): float(x) for k, x in held.items() if isinstance(x, int | float) and 0 < x < float("inf")}


def clip_bytes(recipe: Recipe) -> int | None:
    """Bytes of one clip's arrays by the shapes that the recipe declares; None where it declares none."""
    item = ITEM_BYTES.get(str(recipe.fields.get("dtype")))
    shapes = list(_shapes(recipe))
    if item is None or not shapes:
        return None
    scales = sum(shape[-1] for shape in shapes) * SCALE_BYTES if recipe.fields.get("dtype") == "int8" else 0
    masks = sum(shape[0] for shape in shapes if len(shape) == 2)
    return sum(map(prod, shapes)) * item + scales + masks


def _shapes(recipe: Recipe) -> list[tuple[int, ...]]:
    """Of taps `[T, L, C]` and captions `[W, C]`."""
    segments = int(recipe.fields.get("sampling", {}).get("segments", 0))
    found: list[tuple[int, ...]] = []
    for part in (recipe.fields.get(modality) for modality in MODALITIES):
        if not isinstance(part, Mapping):
            continue
        found += [(segments, int(tap["tokens"]), int(tap["channels"])) for tap in part.get("taps", ())]
        text: Any = part.get("text")
        if isinstance(text, Mapping) and {"max_tokens", "channels"} <= text.keys():
            found.append((int(text["max_tokens"]), int(text["channels"])))
    return found


def _of_store(context: RunContext, recipe: Recipe) -> Forecast:
    place = context.folder / (recipe.folder_name + context.options.part.suffix)
    clips, each = len(context.manifest.clips), clip_bytes(recipe)
    if not (place / "recipe.json").is_file():
        return Forecast(place, clips, 0, 0, clips, each)
    try:
        reader = StoreReader.open(place, allow_partial=True)
    except StoreError as error:
        return Forecast(place, clips, 0, 0, clips, each, error.problem)
    stored = sum(key in reader for key in context.manifest.keys)
    failed = {entry.key for entry in reader.quarantined}
    retried = 0 if context.options.retry_failed else len(failed)
    return Forecast(place, clips, stored, len(failed), clips - stored - retried, each)


def _key(recipes: Sequence[Recipe], workers: int, devices: Sequence[str]) -> str:
    made = "+".join(sorted(recipe.fingerprint[:12] for recipe in recipes))
    return f"{made} workers={workers} devices={','.join(devices)}"
