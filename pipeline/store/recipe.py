"""A recipe: everything that decides the bytes of a store; its digest, and how two recipes differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA_VERSION = 1
StoreKind = Literal["tokens", "captions"]
COMMANDS: Mapping[StoreKind, str] = {"tokens": "extract", "captions": "caption"}
"""The command that makes each kind of store."""
Modality = Literal["visual", "audio"]
MODALITIES: tuple[Modality, ...] = ("visual", "audio")
"""Fields of a recipe that say what made the tokens or captions of each modality."""


@dataclass(frozen=True)
class Recipe:
    """`fields` is nested JSON: decoder, sampling, backbones with their taps and weight digests, dtype, shard size."""

    kind: StoreKind
    name: str
    fields: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The whole recipe as JSON values."""
        return {"schema": SCHEMA_VERSION, "kind": self.kind, "name": self.name, "fields": dict(self.fields)}

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON (sorted keys, no blanks); weights count by their digest, not their source."""
        text = json.dumps(
            recipe_identity(self.as_json()), sort_keys=True, separators=(",", ":"), ensure_ascii=True
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folder_name(self) -> str:
        """`<kind>-<name>-<fingerprint12>`."""
        return f"{self.kind}-{self.name}-{self.fingerprint[:12]}"


def recipe_identity(value: Any) -> Any:
    """`value` without the `source` of what has a digest: the same weights can come from several places."""
    if not isinstance(value, Mapping):
        return value
    return {key: recipe_identity(x) for key, x in value.items() if key != "source" or "digest" not in value}


def recipe_differences(stored: Any, wanted: Any, path: str = "") -> list[str]:
    """The fields in which two recipes differ, with both values: `fields.dtype: float16 -> float32`.

    Weights with the same digest do not differ, whatever their source.
    """
    if recipe_identity(stored) == recipe_identity(wanted):
        return []
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        found: list[str] = []
        for key in sorted({*stored, *wanted}):
            here = f"{path}.{key}" if path else str(key)
            found += recipe_differences(stored.get(key, "(absent)"), wanted.get(key, "(absent)"), here)
        return found
    return [] if stored == wanted else [f"{path}: {stored!r} -> {wanted!r}"]


def makers(recipe: Recipe) -> list[str]:
    """The names of the backbones or captioners of both modalities, and of what embeds captions; each once."""
    named = [part for modality in MODALITIES if isinstance(part := recipe.fields.get(modality), Mapping)]
    inner = [text for part in named if isinstance(text := part.get("text"), Mapping)]
    return list(dict.fromkeys(str(part.get("name", "")) for part in (*named, *inner) if part.get("name")))


def random_parts(described: Mapping[str, Any]) -> list[str]:
    """Names of the components with random weights in a recipe's fields, at any depth."""
    found = []
    for place, part in described.items():
        if isinstance(part, Mapping):
            weights = part.get("weights")
            if isinstance(weights, Mapping) and str(weights.get("digest")).startswith("random:"):
                found.append(str(part.get("name", place)))
            found += random_parts(part)
    return found
