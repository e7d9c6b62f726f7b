"""How many CPU cores this process may use, by which all work in parallel is sized."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Those the process is allowed, in a container fewer than the machine has; all where the system cannot tell."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
