"""A tiny real extraction (tokens and captions of four clips, one of them missing) and ways to break it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from extraction import make_old

from caeav.manifests.clip import Manifest
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.tokens import extract_all
from caeav.pipeline.store import StoreReader, list_stores, verify
from caeav.pipeline.store.media_record import PREFIX, read_record


@dataclass(frozen=True)
class Small:
    """A data set and its extraction; tests must not change `media`."""

    media: Path
    manifest: Manifest

    def extract(self, root: Path, backend: str = "webdataset", **run: Any) -> None:
        """Extract tokens and captions into stores below `root`."""
        options = [
            TokenOptions(shard_clips=2, backend=backend),
            CaptionOptions(shard_clips=2, backend=backend),
        ]
        extract_all(
            RunContext(self.manifest, Home(root), RunOptions(workers=1, **run), lambda _: None), options
        )

    def grown(self, folder: Path) -> Small:
        """A copy in which the missing file exists, one clip has other labels, and there is one more clip."""
        shutil.copytree(self.media, folder)
        first, *others, missing = self.manifest.clips
        shutil.copy(folder / first.media, folder / missing.media)
        make_old(folder.rglob("*"))
        clips = (replace(first, events=()), *others, missing, replace(first, key="more", start_s=0.5))
        manifest = replace(self.manifest, clips=clips, media_root=str(folder))
        return replace(self, media=folder, manifest=manifest)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Three clips of 4 s, and one whose file is missing."""
    folder = tmp_path_factory.mktemp("faults") / "synthetic"
    synthesise(folder, SyntheticOptions(clips=12, classes=5, seconds=4, size_px=64, fps=5), workers=1)
    make_old(folder.rglob("*"))
    manifest = load_dataset("synthetic", folder, Home(folder.parent / "home"))
    clips = (*manifest.clips[:3], replace(manifest.clips[3], media="gone.mp4"))
    return Small(folder, replace(manifest, clips=clips))


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    """`contents(home)`: the sha256 of every file of its stores by path, empty lock files included.

    The media record beside a store counts without the digests of whole files, which are lost in a kill.
    """

    def of(home: Path) -> dict[str, str]:
        found = {}
        for path in sorted(path for path in (home / "stores").rglob("*") if path.is_file()):
            data = path.read_bytes()
            if path.name.startswith(PREFIX):
                seen = read_record(path.with_name(path.name.removeprefix(PREFIX)))
                assert seen is not None, f"{path} is damaged"
                data = repr({name: replace(facts, whole=b"") for name, facts in seen.items()}).encode()
            found[path.relative_to(home).as_posix()] = hashlib.sha256(data).hexdigest()
        return found

    return of


@pytest.fixture(scope="session")
def forked() -> Callable[[Callable[[], object]], int]:
    """`forked(work)`: call it in a child process; the exit status is negative for a signal, 1 for an exception."""

    def run(work: Callable[[], object]) -> int:
        child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            except BaseException as error:  # a child of pytest must not go on as pytest
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


@pytest.fixture(scope="session")
def die() -> Callable[[str, tuple[Any, ...]], None]:
    """A step at which the process is killed; of a write, half has reached the disk."""

    def killed(name: str, args: tuple[Any, ...]) -> None:
        if name == "write_bytes":
            out, data = args
            data = memoryview(data).cast("B")
            out.write(data[: len(data) // 2])
            out.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    return killed


@pytest.fixture(scope="session")
def assert_sound() -> Callable[[Path], int]:
    """`assert_sound(home)`: every store is complete or says it is unfinished, and every record is sound.

    Returns the number of complete stores.
    """

    def look(home: Path) -> int:
        finished = 0
        for info in list_stores(home / "stores"):
            if info.state == "damaged":  # nothing but the recipe has been written
                assert "manifest" in info.problem and not (info.path / "complete.json").exists(), info.problem
                continue
            verified = verify(info.path)
            assert not verified.problems, verified.problems
            assert verified.sound == (info.state == "complete") == (info.path / "complete.json").exists()
            assert sum(1 for _ in StoreReader.open(info.path, allow_partial=True)) == verified.stored
            finished += verified.sound
        return finished

    return look


@pytest.fixture
def fresh_home(memory: Path) -> Callable[[Path | None], Path]:
    """`fresh_home(begin)`: a copy of the folder `begin`, or an empty home; in memory, where syncing is free."""
    home = memory / "home"

    def make(begin: Path | None = None) -> Path:
        shutil.rmtree(home, ignore_errors=True)
        if begin is not None:
            shutil.copytree(begin, home)
        return home

    return make
