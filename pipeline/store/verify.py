"""Reading all of a store to see whether it is what was written: `caeav store verify`.

Every file's sha256, every record's checksums and content, what is around the records, and that every clip is
stored or quarantined, in one pass over the bytes and several shards at a time. Lists everything it finds; changes
nothing.

Dropping what is damaged, and nothing else, so that the next run of extract or caption fills exactly the hole.

A damaged record is taken out of its shard, the others keep their bytes, also where a file was cut off or something
was appended to it. An index that is lost or wrong is taken from its copy; where there is none that is sound nothing
tells which records are, and the shard goes as a whole. Where only something around the records was damaged nothing is
lost. What is left complete is sealed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.atomic import cut_file, unpublish
from caeav.manifests.core.util import usable_cores
from caeav.pipeline.store.backend import Backend, ShardIndex, backend_of, orphans, temp_files
from caeav.pipeline.store.errors import DamagedShard, DamagedStore, Problem, StoreError
from caeav.pipeline.store.journal import journal_files, kept_remarks
from caeav.pipeline.store.layout import StoreFolder, read_capped
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.spare import copy_problems, mend_copies, restore_indexes, withdraw_index
from caeav.pipeline.store.state import StoreState, inspect, read_recipe

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


@dataclass(frozen=True)
class Repair:
    """What `repair` did: in words, which keys are due now, and whether the store is finished and sound again."""

    path: Path
    said: tuple[str, ...]
    due: tuple[str, ...]
    finished: bool


def repair(path: Path, progress: Callable[[int], object] = lambda _: None) -> Repair:
    """Check everything in the store and drop what is not as written; `progress` is told bytes as they are read.

    Raises `StoreError` where there is no store, where it is being written, or where the recipe is damaged.
    """
    folder = StoreFolder(path)
    recipe = read_recipe(folder)
    backend = backend_of(recipe)
    said: list[str] = []
    lock = WriterLock(folder.lock)
    try:
        said += restore_indexes(folder, backend, recipe.fingerprint)
        said += [
            f"{folder.name_of(path)}: there is no index nor a copy of one, so nothing tells which records are whole; "
            "its clips are made again"
            for path in orphans(folder, backend)
        ]
        state = _readable(folder, said)
        if state is None:
            return Repair(path, tuple(said), (), False)
        if state.problems:
            said += _to_size(folder, backend, state.problems)
            said += _clear_the_way(folder, inspect(path).problems)
    finally:
        lock.release()
    part = Slice.of_folder(path.resolve().name)[1]
    with open_for_writing(path.resolve().parent, recipe, state.manifest, part=part) as writer:
        said += writer.remarks
        for number, index in sorted(writer.indexes.items()):
            problems = list(check_shard(folder, backend, index, progress))
            if problems:
                said += [f"{problem}; {'dropped' if problem.key else 'put right'}" for problem in problems]
                writer.drop(number, {problem.key for problem in problems})
        if (folder.path / "spare").is_dir():
            said += mend_copies(folder, sorted(writer.indexes))
        due = tuple(key for plan in writer.plan() for key in plan.missing if key not in plan.kept)
        if not writer.plan():
            writer.finish()
        return Repair(path, tuple(said), due, not writer.plan())


def _readable(folder: StoreFolder, said: list[str]) -> StoreState | None:
    """What is in the store; a manifest that is not the one written is dropped, and nothing else can be said then."""
    try:
        state = inspect(folder.path)
        problem = next((p for p in state.problems if p.where == "manifest.jsonl"), None)
        if problem is None:
            return state
    except DamagedStore as error:
        problem = Problem("manifest.jsonl", error.problem)
    unpublish(folder.seal)
    unpublish(folder.manifest)
    said.append(
        f"{problem}; dropped: run the command that made the store, which writes it anew, and then repair again"
    )
    return None


def _to_size(folder: StoreFolder, backend: Backend, problems: Sequence[Problem]) -> list[str]:
    """Cut off, or fill with zeros, files that are longer or shorter than a sound index says.

    Each record then tells for itself whether it is damaged. Not where that would take more room than there is: a
    stranger's index may say anything.
    """
    said = []
    for number in sorted(
        {p.shard for p in problems if p.shard is not None and not p.where.startswith("index/")}
    ):
        index = backend.decode_index(read_capped(folder.index(number)))
        for facts in index.files:
            path = folder.path / facts.name
            if not path.is_file() or path.is_symlink():
                continue
            size = path.stat().st_size
            if size != facts.bytes and facts.bytes - size <= shutil.disk_usage(folder.path).free:
                cut_file(path, facts.bytes)
                said.append(
                    f"{facts.name}: {size} bytes, its index says {facts.bytes}; what is left of it is kept"
                )
    return said


def _clear_the_way(folder: StoreFolder, problems: Sequence[Problem]) -> list[str]:
    """Take away what a writer would stumble over or trust: the seal, a doubtful quarantine, and nobody's shards.

    The seal may itself be what is wrong. Without it an index is believed if it is whole, and if all of its shard
    then is what it says. Gives in words what a writer will not find any more.
    """
    unpublish(folder.seal)
    if any(problem.where == "quarantine.jsonl" for problem in problems):
        unpublish(folder.quarantine)
    left = inspect(folder.path).problems
    nobodys = [problem for problem in left if _is_nobodys(problem)]
    for problem in nobodys:
        withdraw_index(folder, int(Path(problem.where).stem))
    settled = [problem for problem in problems if problem not in left]
    return [f"{problem}; {_outcome(problem)}" for problem in (*settled, *nobodys)]


def _is_nobodys(problem: Problem) -> bool:
    """Whether it is a shard with clips that the manifest does not plan there."""
    return problem.shard is None and problem.where.startswith("index/")


def _outcome(problem: Problem) -> str:
    if _is_nobodys(problem):
        return "the shard is dropped"
    if problem.where == "quarantine.jsonl":
        return "its clips are tried again"
    return (
        "it is written anew"
        if problem.rewritten
        else "the seal is set aside and the shard looked at by itself"
    )
