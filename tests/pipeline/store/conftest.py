"""The small shipped data set for the tests of the store: `toy` on the default backend, `toys` on each backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from caeav.cli import store as store_commands
from caeav.pipeline.store.testing_data import Toy
from caeav.pipeline.store.testing_data import contents as read_contents


@pytest.fixture
def toy(memory: Path) -> Toy:
    return Toy(memory / "stores")


@pytest.fixture(params=["webdataset", "zarr"])
def toys(memory: Path, request: pytest.FixtureRequest) -> Toy:
    return Toy(memory / "stores", request.param)


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], Mapping[str, bytes]]:
    """`contents(folder)`: the bytes of every file below it, by name."""
    return read_contents


@pytest.fixture
def store_command() -> Callable[..., Result]:
    """`store_command(*arguments)`: run `caeav store ...`."""
    app = typer.Typer()
    app.callback()(lambda: None)
    store_commands.register(app)

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(app, ["store", *map(str, arguments)])

    return run
