"""Small things that tests of extraction share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from caeav.manifests.clip import Manifest
from caeav.pipeline.extract.progress import Progress


def quiet(progress: Progress) -> None:
    """Show no progress bar."""


def first(manifest: Manifest, n: int) -> Manifest:
    """The data set with its first `n` clips only."""
    return replace(manifest, clips=manifest.clips[:n])


def make_old(paths: Iterable[Path]) -> None:
    """Give files one old time: a home does not rely on the times of recently changed files."""
    for path in paths:
        os.utime(path, (1_000_000_000, 1_000_000_000))
