"""Hides the packages named in `CAEAV_TEST_WITHOUT` from a Python process, as if they were not installed.

Python imports a module of this name at start-up when its folder is in `PYTHONPATH`. `tests/conftest.py` puts it there
when the variable is set, so that child processes of tests lack the same packages, and loads it in its own process too.
Commands are hidden by a `PATH` without them, which `conftest.py` sets.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

# Installed from a wheel, but its compiled part needs the system's FFmpeg; the first line is the library's own.
FAILS_TO_LOAD = {
    "torchcodec": (
        "Could not load libtorchcodec. Likely causes:\n"
        "  1. FFmpeg is not properly installed in your environment.\n"
        "OSError: libavutil.so.60: cannot open shared object file: No such file or directory"
    )
}
DISTRIBUTIONS = {"open_clip": "open_clip_torch", "laion_clap": "laion-clap"}
# Not zarr: pytest has loaded its plugin before anything can be hidden.
PACKAGES = (
    "torchcodec",
    "decord",
    "timm",
    "open_clip",
    "transformers",
    "torchvision",
    "torchaudio",
    "webdataset",
    "h5py",
    "laion_clap",
    "ray",
    "pyarrow",
    "plotly",
    "obstore",
    "playwright",
)
COMMANDS = {"ffmpeg": ("ffmpeg", "ffprobe"), "strace": ("strace",), "chromium": ("chromium",)}


class _FailingLoader:
    """The loader of a package that is installed and does not load."""

    def __init__(self, message: str) -> None:
        self._message = message

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: object) -> None:
        raise RuntimeError(self._message)


class Without:
    """`PathFinder` that does not find some packages and their metadata, or finds them and fails to load them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._gone = {DISTRIBUTIONS.get(name, name) for name in self._names - FAILS_TO_LOAD.keys()}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> ModuleSpec | None:
        if name not in self._names:
            return PathFinder.find_spec(name, path, target)
        if name in FAILS_TO_LOAD:
            return ModuleSpec(name, _FailingLoader(FAILS_TO_LOAD[name]))  # type: ignore[arg-type]
        return None

    def find_distributions(self, *arguments: Any, **options: Any) -> Iterable[Any]:
        found = PathFinder.find_distributions(*arguments, **options)  # type: ignore[attr-defined]
        return (one for one in found if one.metadata["Name"] not in self._gone)

    def invalidate_caches(self) -> None:
        PathFinder.invalidate_caches()


def hidden_names() -> list[str]:
    """The names in `CAEAV_TEST_WITHOUT`."""
    return [name.strip() for name in os.environ.get("CAEAV_TEST_WITHOUT", "").split(",") if name.strip()]


def hide_packages() -> None:
    """Hide them in this process; a second call changes nothing."""
    names = [name for name in hidden_names() if name in PACKAGES]
    if names and PathFinder in sys.meta_path:
        sys.meta_path[sys.meta_path.index(PathFinder)] = Without(names)  # type: ignore[call-overload]


def path_without(names: Iterable[str]) -> str:
    """`PATH` in which each folder that holds one of the commands is replaced by links to its other files."""
    commands = {command for name in names for command in COMMANDS.get(name, ())}
    folders = []
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        if any(shutil.which(command, path=folder) for command in commands):
            links = Path(tempfile.mkdtemp(prefix="caeav-without-"))
            atexit.register(shutil.rmtree, links, ignore_errors=True)
            for command in Path(folder).absolute().iterdir():
                if command.name not in commands:
                    (links / command.name).symlink_to(command)
            folder = str(links)
        folders.append(folder)
    return os.pathsep.join(folders)


hide_packages()
