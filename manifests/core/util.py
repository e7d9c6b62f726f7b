"""How many CPU cores this process may use, by which all work in parallel is sized.

Counted things in messages: `1 clip`, `2 clips`.
"""

from __future__ import annotations

import os


def counted(number: int, one: str, several: str = "") -> str:
    """`number` with the noun in singular or plural; `several` where it is not `one` with an s."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def usable_cores() -> int:
    """Those the process is allowed, in a container fewer than the machine has; all where the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
