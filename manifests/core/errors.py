"""The base class of errors that a user can act on, and hints that name the nearest known name.

The text of such an error states the value seen, the value allowed and the next step; commands print it without a
traceback. Programming mistakes stay ordinary exceptions, with their traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MIN_PREFIX = 3
"""So many letters of the beginning of a name are taken for the name."""


class CaeavError(Exception):
    """Something the user can put right; `str(error)` says everything."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem}\n  next: {hint}" if hint else problem)

    def __reduce__(self) -> tuple[type[CaeavError], tuple[str]]:
        return type(self), (str(self),)  # keyword arguments do not survive the default pickling of exceptions


def did_you_mean(seen: object, known: Iterable[object]) -> str:
    """`"did you mean 'x'?"` for the known name that begins with what was typed, or is nearest; empty when none is near.

    Of names such as `timm:<name>` only the part before the colon counts.
    """
    text, names = str(seen), [str(name) for name in known]
    starting = [name for name in names if len(text) >= MIN_PREFIX and name.startswith(text)]
    family = f"{text.partition(':')[0]}:<name>" if ":" in text else text
    near = starting or difflib.get_close_matches(family, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def choices(seen: object, known: Iterable[object]) -> str:
    """A hint with the nearest known name, if one is near, and all of them."""
    names = [str(name) for name in known]
    return f"{did_you_mean(seen, names)} choose one of: {', '.join(names)}".strip()
