"""A small generated data set and digests of folders, for the tests of the pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caeav.manifests.clip import Manifest
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.pipeline.backbones.weights import remember_at


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path) -> Iterator[None]:
    """Keep the remembered digests of weight files in a home that belongs to this test."""
    remember_at(Home(tmp_path / "memory"))
    yield
    remember_at(None)


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a generated data set: 24 clips of 4 s. Tests must not change it."""
    folder = tmp_path_factory.mktemp("small") / "synthetic"
    synthesise(folder, SyntheticOptions(clips=24, classes=5, seconds=4, size_px=64, fps=5), workers=1)
    return folder


@pytest.fixture
def small_manifest(small_set: Path, tmp_path: Path) -> Manifest:
    """The manifest of `small_set`."""
    return load_dataset("synthetic", small_set, Home(tmp_path))


@pytest.fixture(scope="session")
def digests() -> Callable[[Path], dict[str, str]]:
    """`digests(folder)`: the sha256 of every file below it, by relative path."""

    def of(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    return of
