"""Counted things in messages: `1 clip`, `2 clips`."""

from __future__ import annotations


def counted(number: int, one: str, several: str = "") -> str:
    """`number` with the noun in singular or plural; `several` where it is not `one` with an s."""
    return f"{number} {one if number == 1 else several or one + 's'}"
