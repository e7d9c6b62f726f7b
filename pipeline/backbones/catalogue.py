"""Find a model's facts by its name, and the registry that makes models of its kind."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from caeav.manifests.core.errors import CaeavError, choices
from caeav.manifests.core.registry import Registry
from caeav.pipeline.backbones.facts import MODELS, Kind, ModelFacts

REGISTRIES: dict[Kind, str] = {
    "visual backbone": "caeav.pipeline.backbones:visual_backbones",
    "audio backbone": "caeav.pipeline.backbones:audio_backbones",
    "text encoder": "caeav.pipeline.backbones:text_backbones",
    "visual captioner": "caeav.pipeline.captioners:visual_captioners",
    "audio captioner": "caeav.pipeline.captioners:audio_captioners",
}
"""By name, since a captioner may look up its facts here."""


def is_kind(row: ModelFacts, kind: str | None) -> bool:
    """Whether a row is of a kind, or of one with `kind` in its name (`audio`, `captioner`); None is any kind."""
    return kind is None or kind in row.kind


def find_facts(name: str, kind: str | None = None) -> ModelFacts:
    """The facts of `name`, or of its family for `timm:resnet18`; `kind`, or a part of it, tells equal names apart.

    Raises `CaeavError` for a name that is unknown or belongs to several kinds.
    """
    fit = find_all_facts(name, kind)
    if len(fit) > 1:
        raise CaeavError(
            f"{name!r} is several things: {', '.join(row.kind for row in fit)}",
            hint=f"say which by --kind, e.g. --kind '{fit[0].kind}'",
        )
    return fit[0]


def find_all_facts(name: str, kind: str | None = None) -> list[ModelFacts]:
    """The facts of every kind that has the name; raises `CaeavError` where none has."""
    family = name.partition(":")[0] + ":"
    found = [row for row in MODELS if row.name == name or (row.name == family and name != family)]
    fit = [row for row in found if is_kind(row, kind)]
    if not fit:
        names = (row.name for row in MODELS if is_kind(row, kind))
        known = sorted({f"{known}<name>" if known.endswith(":") else known for known in names})
        raise CaeavError(
            f"no {kind or ''} model is called {name!r}".replace("  ", " "),
            hint=choices(name, known),
        )
    return fit


def registry_of(kind: Kind) -> Registry[Callable[..., Any]]:
    """The registry that makes components of a kind."""
    module, _, attribute = REGISTRIES[kind].partition(":")
    registry: Registry[Callable[..., Any]] = getattr(importlib.import_module(module), attribute)
    return registry
