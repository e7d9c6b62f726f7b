"""What is known of every model by name, without loading it: the rows `caeav models ls` and the docs are made of.

The facts stand beside the components, one module a kind with a tuple `FACTS`; a test compares them with what the
components declare. A name ending in a colon stands for a family (`timm:`), whose numbers differ from model to model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from caeav.manifests.core.errors import CaeavError, choices
from caeav.manifests.core.registry import Registry
from caeav.pipeline.store.record import Tap

Kind = Literal["visual backbone", "audio backbone", "text encoder", "visual captioner", "audio captioner"]

REGISTRIES: dict[Kind, str] = {
    "visual backbone": "caeav.pipeline.backbones:visual_backbones",
    "audio backbone": "caeav.pipeline.backbones:audio_backbones",
    "text encoder": "caeav.pipeline.backbones:text_backbones",
    "visual captioner": "caeav.pipeline.captioners:visual_captioners",
    "audio captioner": "caeav.pipeline.captioners:audio_captioners",
}
FACTS = "caeav.pipeline.backbones.facts"
TABLES = ("FACTS", "AUDIO_FACTS", "TEXT_FACTS", "CAPTIONER_FACTS")
FLOAT16_BYTES = 2


@dataclass(frozen=True)
class ModelFacts:
    """One model. `taps` with default settings: a backbone's places, a text encoder's one `tokens`, a captioner's none.

    `weights`: what is loaded by default (`hub:<owner>/<repo>`), `file`: the file of it to get. `licence`: of the
    weights, as their publisher states it. `parameters`: of the part that is run; None: depends, or there are none.
    """

    name: str
    kind: Kind
    what: str
    input: str
    taps: tuple[Tap, ...] = ()
    weights: str = ""
    file: str = ""
    licence: str = "no weights"
    parameters: int | None = None

    @property
    def learned(self) -> bool:
        """Whether it has weights at all."""
        return self.licence != "no weights"

    def bytes_a_clip(self, segments: int = 10) -> int:
        """Bytes of all taps of a clip in float16; 0 where they are not known beforehand."""
        times = segments if self.kind.endswith("backbone") else 1
        return FLOAT16_BYTES * times * sum(tap.tokens * tap.channels for tap in self.taps)


def catalogue() -> list[ModelFacts]:
    """All rows, kind by kind."""
    return [row for table in TABLES for row in getattr(importlib.import_module(FACTS), table)]


def is_kind(row: ModelFacts, kind: str | None) -> bool:
    """Whether a row is of a kind, or of all that have `kind` in their name (`audio`, `captioner`); None is any."""
    return kind is None or kind in row.kind


def find_facts(name: str, kind: str | None = None) -> ModelFacts:
    """The row of `name`, of its family for `timm:resnet18`; `kind`, or a part of it, decides where two share a name.

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
    """The same for every kind that has the name, at least one."""
    rows = catalogue()
    family = name.partition(":")[0] + ":"
    found = [row for row in rows if row.name == name or (row.name == family and name != family)]
    fit = [row for row in found if is_kind(row, kind)]
    if not fit:
        names = (row.name for row in rows if is_kind(row, kind))
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
