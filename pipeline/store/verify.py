"""Reading all of a store to see whether it is what was written: `caeav store verify`.

Every file's sha256, every record's checksums and content, what is around the records, and that every clip is
stored or quarantined, in one pass over the bytes and several shards at a time. Lists everything it finds; changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.util import usable_cores
from caeav.pipeline.store.backend import Backend, ShardIndex, backend_of
from caeav.pipeline.store.errors import DamagedShard, Problem, StoreError
from caeav.pipeline.store.journal import journal_files, kept_remarks
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.leftovers import temp_files
from caeav.pipeline.store.spare import copy_problems
from caeav.pipeline.store.state import StoreState, inspect

MAX_THREADS = 8


@dataclass(frozen=True)
class Report:
    """What `verify` found: `problems` are damage, `missing` clips that are simply not there yet."""

    path: Path
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...] = ()
    missing: int = 0
    finished: bool = False
    stored: int = 0
    quarantined: int = 0
    shards: int = 0
    bytes: int = 0

    @property
    def sound(self) -> bool:
        """Finished and without damage."""
        return self.finished and not self.problems and not self.missing


def verify(path: Path, progress: Callable[[int], object] | None = None) -> Report:
    """Check the store in `path`; `progress` is told the bytes read as they are read.

    Raises `StoreError` only where there is no store at all.
    """
    folder = StoreFolder(path)
    if not folder.recipe.is_file():
        raise StoreError(f"{path} holds no store: there is no recipe.json", hint="caeav store ls")
    try:
        state = inspect(path)
    except StoreError as error:
        return Report(path, (Problem("(store)", error.problem),))
    backend = backend_of(state.recipe)
    problems = [*state.problems, *_unknown_files(state, backend)]
    remarks = state.remarks if state.seal else (*state.remarks, *kept_remarks(folder))
    with ThreadPoolExecutor(min(MAX_THREADS, usable_cores())) as threads:
        told = progress or (lambda _: None)
        for found in threads.map(
            lambda number: list(check_shard(folder, backend, state.indexes[number], told)), state.indexes
        ):
            problems += found
    return Report(
        path,
        tuple(problems),
        remarks,
        len(state.missing),
        state.seal is not None,
        state.stored,
        len(state.quarantined),
        len(state.indexes),
        state.shard_bytes,
    )


def check_shard(
    folder: StoreFolder, backend: Backend, index: ShardIndex, progress: Callable[[int], object]
) -> Iterator[Problem]:
    """All that is wrong with one shard whose index is sound."""
    try:
        for damage in backend.open(folder, index).check(progress):
            yield Problem(damage.where, damage.what, damage.key, index.number)
    except DamagedShard as error:
        yield Problem(index.files[0].name, error.problem, shard=index.number)


def _unknown_files(state: StoreState, backend: Backend) -> Iterator[Problem]:
    """A finished store holds its own files and nothing else, and the copies of its indexes are like them."""
    if state.seal is None:
        return
    known = {state.folder.path / file.name for index in state.indexes.values() for file in index.files}
    damaged = {problem.shard for problem in state.problems}
    for number, paths in backend.files(state.folder).items():
        for path in paths:
            if path not in known and number not in damaged:
                yield Problem(state.folder.name_of(path), "does not belong to the finished store")
    journals = [path for _, path in journal_files(state.folder)]
    for name, what in copy_problems(state.folder, sorted(state.indexes)):
        yield Problem(name, what, rewritten=True)
    for path in (*temp_files(state.folder, backend), *journals):
        yield Problem(state.folder.name_of(path), "does not belong to the finished store")
