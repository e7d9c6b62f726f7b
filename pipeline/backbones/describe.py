"""What `caeav models` shows of a model: its facts and, where it can be built here, what it declares itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.catalogue import registry_of
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.facts import ModelFacts
from caeav.pipeline.backbones.weights.find import HUB, is_cached, package_folder
from caeav.pipeline.store.recipe import random_parts
from caeav.pipeline.store.record import Tap

PLACEHOLDER = "random:0"
"""The weights of a model that is built only to be described."""


@dataclass(frozen=True)
class ModelView:
    """A model as it would run: the `taps` it caches and the `offered` ones it could; empty where it cannot be built.

    weights, licence: of the default weights, where a family's facts leave them open. tensors: which dictionary of the
    file is taken, and which others it holds. problem: why its weights cannot be found, or why it cannot be built.
    """

    facts: ModelFacts
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Any] = field(default_factory=dict)
    taps: tuple[Tap, ...] = ()
    offered: tuple[Tap, ...] = ()
    parameters: int | None = None
    weights: str = ""
    licence: str = ""
    tensors: str = ""
    problem: str = ""


def weights_state(facts: ModelFacts) -> str:
    """In a word or two, whether the default weights are on this machine: in the hub's cache or an installed package."""
    if not facts.learned:
        return "not needed"
    if not facts.weights:
        return "by model" if facts.name.endswith(":") else "give a file"
    return "here" if package_folder(facts.package) or is_cached(facts.weights) else "to pull"


def view_model(choice: ModelChoice, facts: ModelFacts) -> ModelView:
    """Build a model and let it describe itself; with random weights where its own cannot be found."""
    problem = ""
    model: Any = None
    for attempt in (choice, ModelChoice(choice.name, PLACEHOLDER, choice.settings)):
        try:
            model = registry_of(facts.kind)[choice.name](attempt)
            break
        except CaeavError as error:
            problem = problem or str(error)
    if model is None:
        return ModelView(facts, choice.name, weights=facts.weights, licence=facts.licence, problem=problem)
    described = json.loads(json.dumps(dict(model.describe())))
    settings = described.pop("settings", {})
    if problem:
        described.pop("weights", None)
    own_licence = str(getattr(model, "licence", "")) if facts.name.endswith(":") else ""
    taps = tuple(model.taps()) if hasattr(model, "taps") else facts.taps
    return ModelView(
        facts,
        choice.name,
        settings,
        described,
        taps,
        tuple(getattr(model, "offered_taps", taps)),
        getattr(model, "parameters", facts.parameters),
        facts.weights or getattr(model, "default_weights", ""),
        own_licence or facts.licence,
        _tensors(model),
        problem,
    )


def _tensors(model: Any) -> str:
    """Which dictionary of a torch file is taken; empty for other files and for models without weights."""
    weights = getattr(model, "_weights", None)
    return weights.parts.in_words() if weights is not None and weights.parts is not None else ""


def pull_model(choice: ModelChoice, facts: ModelFacts) -> Mapping[str, str]:
    """Download a model's weights into the hub's cache, unless they are there; returns their source and digest.

    Raises `CaeavError` for a model without weights or without a hub name, and when the hub cannot be reached.
    """
    if not facts.learned:
        raise CaeavError(f"{choice.name} has no weights to fetch", hint="use it as it is")
    wanted = ModelChoice(choice.name, choice.weights or HUB, choice.settings)
    if not wanted.weights.startswith(HUB):
        raise CaeavError(f"{wanted.weights!r} is no name on the hub", hint="write hub:<owner>/<repo>")
    described = registry_of(facts.kind)[choice.name](wanted).describe()
    weights: Mapping[str, str] = described["weights"]
    return weights


def random_remarks(described: Mapping[str, Any]) -> list[str]:
    """Warnings about a recipe's models that have random weights, its text encoders among them."""
    return [
        f"{name} HAS RANDOM WEIGHTS: what it gives is good for measurements of speed only"
        for name in sorted(set(random_parts(described)))
    ]
