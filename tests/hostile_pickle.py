"""An object as a hostile checkpoint or array file could hold."""

from __future__ import annotations


class Hostile:
    """Prints `executed` when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)
