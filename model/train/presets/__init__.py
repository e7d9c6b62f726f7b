"""Packaged training configurations: one YAML file per task, and named overlays. `--recipe` chooses one.

`<task>.yaml` may `inherit` from another file. `+<name>.yaml` is laid over every task's file, `<task>+<name>.yaml` over
that; `full` is the task's file alone.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from caeav.model.adapters.config import deep_merge

FULL = "full"
INHERIT = "inherit"


def preset_names(task: str) -> list[str]:
    """The presets of `task`: `full`, and the names of its overlays."""
    stems = [file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml")]
    names = {
        name for stem in stems for own, plus, name in [stem.partition("+")] if plus and own in ("", task)
    }
    return [FULL, *sorted(names)]


def load_preset(task: str, name: str) -> dict[str, Any]:
    """The settings of a preset; of a name that is not one of `preset_names`, the task's file alone."""
    values = _inherited(task)
    for stem in (f"+{name}", f"{task}+{name}"):
        if (_folder() / f"{stem}.yaml").is_file():
            values = deep_merge(values, _parsed(stem))
    return deepcopy(values)


def _inherited(stem: str) -> dict[str, Any]:
    """A file laid over the one it inherits from."""
    own = dict(_parsed(stem))
    parent = own.pop(INHERIT, None)
    return own if parent is None else deep_merge(_inherited(parent), own)


@cache
def _parsed(stem: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((_folder() / f"{stem}.yaml").read_text(encoding="utf-8"))
    return values


def _folder() -> Traversable:
    return resources.files("caeav.model.train.presets")
