"""Every setting of a training with its default, what it may be, what it means, and the page that tells more.

All of it is read from the configuration classes: fields, their types, and their docstrings, in which `name: text` or
`name, other: text` tells what a setting means.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from caeav.model.train.config_file import resolve_config

PAGES = (
    ("model.adapters.placement", "PLACEMENTS.md"),
    ("model.adapters.inject", "PLACEMENTS.md"),
    ("model.adapters.lavish", "PEERS.md"),
    ("model.adapters.dg_sct", "PEERS.md"),
    ("model.probe", "PEERS.md"),
    ("model.adapters", "VARIANTS.md"),
    ("model.variant", "VARIANTS.md"),
    ("model", "TASKS.md"),
    ("loss", "OBJECTIVES.md"),
    ("augment", "ROBUSTNESS.md"),
    ("stores", "STORES.md"),
    ("metric", "TASKS.md"),
    ("protocol", "RESULTS.md"),
    ("select_on", "RESULTS.md"),
    ("drop_leaks", "RESULTS.md"),
)
"""The beginning of a setting's path and its page in docs/; the first that fits."""
ANY_OTHER = "TASKS.md"
OPTIONS = ("task", "recipe", "dataset")
"""Chosen by options of the command, never by `--set`."""


@dataclass(frozen=True)
class Setting:
    """`path`: as `--set` takes it. `default`: what the preset gives. `allowed`: in words. `meaning`: empty where the
    name says it. `page`: in docs/."""

    path: str
    default: Any
    allowed: str
    meaning: str
    page: str


def settings(task: str, preset: str) -> list[Setting]:
    """All settings of a task, in the order of the configuration, with the defaults of a preset."""
    config = resolve_config(task, preset, options={"dataset": "any"})
    return [
        Setting(path, value, allowed(annotation, metadata), meaning, _page(path))
        for path, value, annotation, metadata, meaning in _leaves(config, "")
        if path not in OPTIONS
    ]


def _leaves(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any, Any, list[Any], str]]:
    told = meanings(type(section))
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value, field.annotation, list(field.metadata), told.get(name, "")


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """What the docstrings of a section and of the classes it derives from say about each field."""
    found: dict[str, str] = {}
    names = set(section.model_fields)
    for kind in section.__mro__:
        if not issubclass(kind, BaseModel) or "__doc__" not in kind.__dict__ or not kind.__doc__:
            continue
        text = " ".join(inspect.cleandoc(kind.__doc__).split())
        parts = list(re.finditer(r"(?:(?<=[.;:] )|^)`?(\w+(?:`?, `?\w+)*)`?: ", text))
        marks = [part for part in parts if set(_names(part)) <= names]
        for i, mark in enumerate(marks):
            end = marks[i + 1].start() if i + 1 < len(marks) else len(text)
            said = text[mark.end() : end].strip().rstrip(";")
            for name in _names(mark):
                found.setdefault(name, said)
    return found


def _names(mark: re.Match[str]) -> list[str]:
    return [name.strip("` ") for name in mark[1].split(",")]


def allowed(annotation: Any, metadata: list[Any]) -> str:
    """What a field may be, in words: `a | b`, `true | false`, `whole number >= 1`."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(allowed(part, []) for part in typing.get_args(annotation))
    if origin is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return allowed(inner, more)
    if origin in (list, tuple):
        parts = [part for part in typing.get_args(annotation) if part is not Ellipsis]
        count = f"{len(parts)} " if origin is tuple and len(parts) > 1 else ""
        return f"list of {count}{allowed(parts[0], [])}s"
    words = {bool: "true | false", int: "whole number", float: "number", str: "text", type(None): "null"}
    return " ".join([words.get(annotation, str(annotation)), *filter(None, map(_bound, metadata))])


def _bound(rule: Any) -> str:
    for kind, sign, name in ((Ge, ">=", "ge"), (Gt, ">", "gt"), (Le, "<=", "le"), (Lt, "<", "lt")):
        if isinstance(rule, kind):
            return f"{sign} {getattr(rule, name)}"
    return " ".join(filter(None, map(_bound, getattr(rule, "metadata", ()))))


def _page(path: str) -> str:
    fitting = (page for start, page in PAGES if path == start or path.startswith(f"{start}."))
    return next(fitting, ANY_OTHER)
