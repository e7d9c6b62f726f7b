"""The shipped small data set, for the tests of the store: `toy` on the default backend, `toys` on each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from caeav.pipeline.store.testing_data import Toy
from caeav.pipeline.store.testing_data import contents as read_contents


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: syncing, of which stores do much, is free there."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture
def toy(memory: Path) -> Toy:
    return Toy(memory / "stores")


@pytest.fixture(params=["webdataset", "zarr"])
def toys(memory: Path, request: pytest.FixtureRequest) -> Toy:
    return Toy(memory / "stores", request.param)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], Mapping[str, bytes]]:
    """Every file below a folder with its bytes."""
    return read_contents
