"""The shipped small data set, for the tests of the store: `toy` on the default backend, `toys` on each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from caeav.pipeline.store.testing_data import Toy
from caeav.pipeline.store.testing_data import contents as read_contents


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "stores")


@pytest.fixture(params=["webdataset", "zarr"])
def toys(tmp_path: Path, request: pytest.FixtureRequest) -> Toy:
    return Toy(tmp_path / "stores", request.param)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], Mapping[str, bytes]]:
    """Every file below a folder with its bytes."""
    return read_contents
