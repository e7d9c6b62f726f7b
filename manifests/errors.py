"""The one base class of errors a user can act on.

Its text states the value seen, the value allowed and the next step; the command prints it without a
traceback. Programming mistakes stay ordinary exceptions and keep theirs.
"""

from __future__ import annotations


class CaeavError(Exception):
    """Something the user can put right; `str(error)` is complete on its own."""

    def __init__(self, problem: str, *, hint: str = "") -> None:
        self.problem = problem
        self.hint = hint
        super().__init__(f"{problem}\n  next: {hint}" if hint else problem)

    def __reduce__(self) -> tuple[type[CaeavError], tuple[str]]:
        return type(self), (str(self),)  # keyword arguments do not survive the default pickling of exceptions
