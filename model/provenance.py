"""Which frozen backbones made the tokens that a run reads, in a few words: for tables and cards.

A score says little without them. What is read is the run's own record of its stores; nothing is opened or loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caeav.model.tasks.config import RunConfig
from caeav.pipeline.store import Recipe

IMPORTED = "features"
"""The name that `caeav import` gives to what it did not compute."""
RANDOM_VALUES = " (random values)"
SIDES: Mapping[str, tuple[str, ...]] = {
    "both": ("visual", "audio"),
    "visual": ("visual",),
    "audio": ("audio",),
    "neither": (),
}
"""The modalities that a run reads, by its setting `model.modalities`."""


def sides_of(config: RunConfig) -> tuple[str, ...]:
    """Of `visual` and `audio`, those the run reads."""
    return SIDES[config.model.modalities]


def backbones(config: RunConfig, recipes: Sequence[Recipe]) -> str:
    """`swinv2-large + hts-at`, visual first; one name where both are the same, `none` for a run that reads neither."""
    named: list[str] = []
    for side in sides_of(config):
        for recipe in recipes:
            part = recipe.fields.get(side)
            if isinstance(part, Mapping):
                named.append(_name(part, recipe))
    return " + ".join(dict.fromkeys(named)) or ("none" if not sides_of(config) else "not known")


def _name(part: Mapping[str, object], recipe: Recipe) -> str:
    name = str(part.get("name", "not known"))
    if name == IMPORTED:
        return f"imported {recipe.name}"
    weights = part.get("weights")
    source = str(weights.get("source", "")) if isinstance(weights, Mapping) else ""
    return name + (RANDOM_VALUES if source.startswith("random:") else "")
