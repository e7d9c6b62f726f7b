"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Return as soon as `true()` holds; fail when it does not within a generous time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"still waiting after {seconds:g} s"
        time.sleep(0.002)
