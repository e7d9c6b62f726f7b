"""The one base class of errors a user can act on.

Its text states the value seen, the value allowed and the next step; the command prints it without a
traceback. Programming mistakes stay ordinary exceptions and keep theirs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MIN_BEGUN = 3
"""Letters from which on the beginning of a name is taken for it."""


class CaeavError(Exception):
    """Something the user can put right; `str(error)` is complete on its own."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem}\n  next: {hint}" if hint else problem)

    def __reduce__(self) -> tuple[type[CaeavError], tuple[str]]:
        return type(self), (str(self),)  # keyword arguments do not survive the default pickling of exceptions


def did_you_mean(seen: object, known: Iterable[object]) -> str:
    """`"did you mean 'x'?"` for the known name that begins like what was typed, or is nearest; empty when none is.

    Of `timm:<name>` and the like the part before the colon counts.
    """
    text, names = str(seen), [str(name) for name in known]
    begun = [name for name in names if len(text) >= MIN_BEGUN and name.startswith(text)]
    family = f"{text.partition(':')[0]}:<name>" if ":" in text else text
    near = begun or difflib.get_close_matches(family, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def choices(seen: object, known: Iterable[object]) -> str:
    """A hint that names the nearest known name, if one is near, and all of them."""
    names = [str(name) for name in known]
    return f"{did_you_mean(seen, names)} choose one of: {', '.join(names)}".strip()
