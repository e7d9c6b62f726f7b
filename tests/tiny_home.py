"""The tiny stores of tests/model/conftest.py, for tests in other folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from module_files import load_module

from caeav.manifests.core.home import Home


def tiny_stores() -> Any:
    """tests/model/conftest.py as a module, loaded again at every call."""
    return load_module("tiny_stores", Path(__file__).parent / "model" / "conftest.py")


def write_tiny_home(path: Path, **options: Any) -> Home:
    """Write them below `path`, with the options of `write_tiny_home` there."""
    home: Home = tiny_stores().write_tiny_home(path, **options)
    return home
