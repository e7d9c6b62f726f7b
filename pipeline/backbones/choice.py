"""Which model is wanted: a name, the source of its weights, and its settings, before anything is loaded.

A model is built from a choice (`registry[choice.name](choice)`) and describes itself by settings and weights from
which the same choice can be made again. A description never holds a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caeav.manifests.core.errors import CaeavError, choices, did_you_mean


@dataclass(frozen=True)
class ModelChoice:
    """A model by its registry name (`swinv2-large`, `timm:resnet18`).

    `weights`: empty for the model's default, `hub:<owner>/<repo>`, a folder, a file, or `random:<seed>` for random
    values at real size, to measure speed. `settings`: JSON values by name; a setting not named keeps its default.
    """

    name: str
    weights: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: ModelChoice | str) -> ModelChoice:
        """A choice, or a plain name as one."""
        return cls(value) if isinstance(value, str) else value

    @property
    def variant(self) -> str:
        """The part of the name after a family's prefix: `resnet18` in `timm:resnet18`; empty without prefix."""
        return self.name.partition(":")[2]

    def refuse_options(self) -> None:
        """For models with neither weights nor settings: raises `CaeavError` when any are given."""
        if self.weights:
            raise CaeavError(
                f"{self.name} has no weights, but {self.weights!r} was given", hint="leave its weights out"
            )
        self.resolve({})

    def resolve(
        self, defaults: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """All settings, spelled out: the defaults, overridden by the preset, if one is named, and by the choice's own.

        The result does not name the preset, so that a preset and its values spelled out make the same recipe.
        Raises `CaeavError` for unknown settings and presets, and for values of another type than the default's.
        """
        given = dict(self.settings)
        chosen: Mapping[str, Any] = {}
        if presets and "preset" in given:
            name = given.pop("preset")
            if not isinstance(name, str) or name not in presets:
                raise CaeavError(f"{self.name} has no preset {name!r}", hint=choices(name, sorted(presets)))
            chosen = presets[name]
        known = sorted([*defaults, *(["preset"] if presets else [])])
        for key, value in given.items():
            if key not in defaults:
                raise CaeavError(
                    f"{self.name} has no setting {key!r}",
                    hint=f"{did_you_mean(key, known)} its settings are {', '.join(known)}".strip()
                    if known
                    else "it has no settings",
                )
            if not _fits(value, defaults[key]):
                raise CaeavError(
                    f"setting {key!r} of {self.name} is {value!r}, its default is {defaults[key]!r}",
                    hint=f"give {_KINDS[type(defaults[key])]}",
                )
        return {**defaults, **chosen, **given}


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    tuple: "a list",
}
"""Types of settings as errors name them."""


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has the default's type; a default of None admits any."""
    if default is None or value is None:
        return default is None
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(default))
