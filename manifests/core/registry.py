"""A name -> thing table filled by decorator, so that no chain of `if name == ...` is ever written.

Entries may be registered lazily as `"package.module:attribute"`, which keeps heavy libraries out of
`import` until the entry is asked for. An entry whose name ends in a colon serves a family: `timm:` is found for
`timm:resnet18`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, cast

from caeav.manifests.core.errors import CaeavError, choices

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of one kind of component (`what` is the word used in errors)."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T | str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `@decoders.register("pyav")`. A name taken twice is a programming mistake."""

        def add(entry: T) -> T:
            self._claim(name, entry)
            return entry

        return add

    def register_lazily(self, name: str, path: str) -> None:
        """Register `"package.module:attribute"`, imported on first use."""
        self._claim(name, path)

    def _claim(self, name: str, entry: T | str) -> None:
        if name in self._entries:
            raise ValueError(f"{self.what} {name!r} is registered twice")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """The entry called `name`; raises `CaeavError` naming the known ones."""
        if name not in self:
            raise CaeavError(
                f"unknown {self.what} {name!r}",
                hint=choices(name, (f"{n}<name>" if n.endswith(":") else n for n in self.names())),
            )
        key = _family(name) or name
        entry = self._entries[key]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = cast(T, getattr(importlib.import_module(module), attribute))
            self._entries[key] = entry
        return entry

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (_family(name) or name) in self._entries and not name.endswith(":")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)


def _family(name: str) -> str:
    """`timm:` of `timm:resnet18`; empty for a plain name."""
    family, colon, _ = name.partition(":")
    return family + colon if colon else ""
