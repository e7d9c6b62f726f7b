"""Tables from names to components, filled by decorator, in place of chains of `if name == ...`.

An entry may be registered lazily as `"package.module:attribute"`: heavy libraries are then imported only when it is
used. An entry whose name ends in a colon serves a family: `timm:` is found for `timm:resnet18`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, cast

from caeav.manifests.core.errors import CaeavError, choices

T = TypeVar("T")


class Registry(Generic[T]):
    """The components of one kind by name; `what` is the kind in error messages."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T | str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `@decoders.register("pyav")`. Registering a name twice is a programming mistake (`ValueError`)."""

        def add(entry: T) -> T:
            self._claim(name, entry)
            return entry

        return add

    def register_lazily(self, name: str, path: str) -> None:
        """Register `"package.module:attribute"`, which is imported on first use."""
        self._claim(name, path)

    def _claim(self, name: str, entry: T | str) -> None:
        if name in self._entries:
            raise ValueError(f"{self.what} {name!r} is registered twice")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """The entry called `name`; raises `CaeavError` with the known names when there is none."""
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
