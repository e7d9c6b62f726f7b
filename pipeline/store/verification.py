"""Reading all of a store to see whether it is what was written: `caeav store verify`.

Every shard's sha256, every record's checksums and content, the tar around the records, and that every clip is
stored or quarantined. Lists everything it finds; changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from caeav.pipeline.store.errors import DamagedShard, Problem, StoreError
from caeav.pipeline.store.index import ShardIndex
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.shardfile import ShardFile
from caeav.pipeline.store.state import StoreState, inspect
from caeav.pipeline.store.tarshard import structure_differences

CHUNK_BYTES = 4 << 20


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
    problems = [*state.problems, *_unknown_files(state)]
    for index in state.indexes.values():
        problems += _check_shard(folder, index, progress or (lambda _: None))
    return Report(
        path,
        tuple(problems),
        state.remarks,
        len(state.missing),
        state.seal is not None,
        state.stored,
        len(state.quarantined),
        len(state.indexes),
        state.shard_bytes,
    )


def _check_shard(
    folder: StoreFolder, index: ShardIndex, progress: Callable[[int], object]
) -> Iterator[Problem]:
    path = folder.shard(index.number)
    name = folder.name_of(path)
    try:
        shard = ShardFile(path, index)
    except DamagedShard as error:
        yield Problem(name, error.problem, shard=index.number)
        return
    digest = hashlib.sha256()
    for start in range(0, index.shard_bytes, CHUNK_BYTES):
        chunk = shard.bytes[start : start + CHUNK_BYTES]
        digest.update(chunk.data)
        progress(chunk.size)
    found = [(key, what) for row, key in enumerate(index.keys) if (what := _unreadable(shard, row))]
    found += structure_differences(shard.bytes, index)
    if not found and digest.hexdigest() != index.shard_sha256:
        found.append(
            ("", f"sha256 is {digest.hexdigest()[:12]}..., the index says {index.shard_sha256[:12]}...")
        )
    for key, what in found:
        yield Problem(name, what, key, index.number)


def _unreadable(shard: ShardFile, row: int) -> str:
    try:
        shard.record(row)
    except DamagedShard as error:
        return error.problem.rpartition(": ")[2]
    return ""


def _unknown_files(state: StoreState) -> Iterator[Problem]:
    """A finished store holds its own files and nothing else."""
    if state.seal is None:
        return
    for leftover in (*state.folder.orphans(), *state.folder.leftovers()):
        yield Problem(state.folder.name_of(leftover), "does not belong to the finished store")
