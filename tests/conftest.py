"""Fixtures for all tests: where the shared real data lie, and a single-threaded torch."""

from __future__ import annotations

import os
from pathlib import Path

# One thread a process, here and in the processes that tests start: tests run in parallel, and threads that wait for
# each other on taken cores cost minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("no-wall-time", deadline=None)  # a busy machine is no defect
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
