"""The tiny stores that the tests of `model` train on, for tests in other rooms."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from caeav.manifests.core.home import Home


def tiny_stores() -> Any:
    """The module that makes them, tests/model/conftest.py, loaded anew."""
    spec = importlib.util.spec_from_file_location(
        "tiny_stores", Path(__file__).parent / "model" / "conftest.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_tiny_home(path: Path, **options: Any) -> Home:
    """Make them below `path`; options as those of `write_tiny_home` in tests/model/conftest.py."""
    made: Home = tiny_stores().write_tiny_home(path, **options)
    return made
