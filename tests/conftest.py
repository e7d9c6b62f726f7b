"""Fixtures for all tests: where the shared real data lie, a single-threaded torch, and interrupts that arrive."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

# One thread a process, here and in the processes that tests start: tests run in parallel, and threads that wait for
# each other on taken cores cost minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts a job in the background lets it ignore Ctrl-C, and what the job starts inherits that; the tests of
# interrupts need processes that do not.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "no-wall-time", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no defect
settings.load_profile("no-wall-time")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real media, annotations and vectors: `CAEAV_SHARED`, by default `../shared`."""
    folder = Path(os.environ.get("CAEAV_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set CAEAV_SHARED")
    return folder.resolve()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY
