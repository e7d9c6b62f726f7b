"""Which model is wanted: a name, where its weights come from, and its settings, before anything is loaded.

A component is made from a choice (`registry[choice.name](choice)`) and describes itself by settings and weights
from which a choice can be made again, see `described_choice`. A machine's paths never get into a description.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caeav.manifests.core.errors import CaeavError, choices, did_you_mean


@dataclass(frozen=True)
class ModelChoice:
    """A model by its registry name (`swinv2-large`, `timm:resnet18`).

    `weights`: empty for the model's default, `hub:<owner>/<repo>`, a folder, a file, or `random:<seed>`: real size,
    random values, for measurements only. `settings`: JSON values by name; what is not named keeps its default.
    """

    name: str
    weights: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: ModelChoice | str) -> ModelChoice:
        """A plain name is a choice without more."""
        return cls(value) if isinstance(value, str) else value

    @property
    def variant(self) -> str:
        """What follows the prefix of a name: `resnet18` of `timm:resnet18`; empty without prefix."""
        return self.name.partition(":")[2]

    def refuse_options(self) -> None:
        """For components that have neither weights nor settings; raises `CaeavError` when some are given."""
        if self.weights:
            raise CaeavError(
                f"{self.name} has no weights, but {self.weights!r} was given", hint="leave its weights out"
            )
        self.resolve({})

    def resolve(
        self, defaults: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        """All settings, explicit: the defaults, over them the preset named by the setting `preset`, over it one's own.

        The result does not name the preset, so that a preset and its values spelled out are one and the same recipe.
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


def _fits(value: Any, default: Any) -> bool:
    """Whether a value is of the default's kind; None as default admits everything."""
    if default is None or value is None:
        return default is None
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(default))
