"""Checking all of a store, and dropping what is damaged: `caeav store verify` and `caeav store repair`.

`verify` reads every byte once, several shards at a time: each file's sha256, each record's checksums and content, what
lies around the records, and whether every clip is stored or quarantined. It lists all it finds and changes nothing.

`repair` drops what is damaged and nothing else, so that the next run of extract or caption fills exactly the hole. A
damaged record is taken out of its shard and the others keep their bytes, even where a file was cut off or appended to.
A lost or wrong index is replaced by its copy; without a sound copy nothing tells which records are sound, and the whole
shard goes. Where only something around the records was damaged, nothing is lost. What is complete is sealed again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.atomic import resize_file, unpublish
from caeav.manifests.core.util import OnProgress, ignore, usable_cores
from caeav.pipeline.store.backend import Backend, ShardIndex, backend_of, orphans, temp_files
from caeav.pipeline.store.errors import DamagedShard, DamagedStore, Problem, StoreError
from caeav.pipeline.store.journal import journal_files, kept_remarks
from caeav.pipeline.store.layout import StoreFolder, read_capped
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.spare import copy_problems, repair_copies, restore_indexes, withdraw_index
from caeav.pipeline.store.state import StoreState, inspect, read_recipe

MAX_THREADS = 8


@dataclass(frozen=True)
class Verification:
    """What `verify` found: `problems` are damage, `missing` counts clips that are not there yet."""

    path: Path
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...] = ()
    missing: int = 0
    finished: bool = False
    stored: int = 0
    quarantined: int = 0
    shards: int = 0
    bytes: int = 0

    @classmethod
    def of(
        cls, path: Path, state: StoreState, problems: Iterable[Problem], remarks: tuple[str, ...]
    ) -> Verification:
        """What was found of a store whose files are in `state`."""
        return cls(
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

    @property
    def sound(self) -> bool:
        """Finished and without damage."""
        return self.finished and not self.problems and not self.missing


def verify(path: Path, progress: OnProgress = ignore) -> Verification:
    """Check the store in `path`; `progress` is told bytes as they are read.

    Raises `StoreError` only when there is no store at all.
    """
    folder = StoreFolder(path)
    if not folder.recipe.is_file():
        raise StoreError(f"{path} holds no store: there is no recipe.json", hint="caeav store ls")
    try:
        state = inspect(path)
    except StoreError as error:
        return Verification(path, (Problem("(store)", error.problem),))
    backend = backend_of(state.recipe)
    problems = [*state.problems, *_unknown_files(state, backend)]
    remarks = state.remarks if state.seal else (*state.remarks, *kept_remarks(folder))
    with ThreadPoolExecutor(min(MAX_THREADS, usable_cores())) as threads:
        for found in threads.map(
            lambda number: list(check_shard(folder, backend, state.indexes[number], progress)), state.indexes
        ):
            problems += found
    return Verification.of(path, state, problems, remarks)


def check_shard(
    folder: StoreFolder, backend: Backend, index: ShardIndex, progress: OnProgress
) -> Iterator[Problem]:
    """Everything that is wrong with one shard whose index is sound."""
    try:
        for damage in backend.open(folder, index).check(progress):
            yield Problem(damage.where, damage.what, damage.key, index.number)
    except DamagedShard as error:
        yield Problem(index.files[0].name, error.problem, shard=index.number)


def _unknown_files(state: StoreState, backend: Backend) -> Iterator[Problem]:
    """Files that do not belong to a finished store, and copies that differ from their indexes."""
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
    """What `repair` did, in words; which keys are due now; whether the store is finished and sound again."""

    path: Path
    said: tuple[str, ...]
    due: tuple[str, ...]
    finished: bool


def repair(path: Path, progress: OnProgress = ignore) -> Repair:
    """Check everything in the store and drop what is not as written; `progress` is told bytes as they are read.

    Raises `StoreError` when there is no store, when it is being written, or when the recipe is damaged.
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
        state = _readable_state(folder, said)
        if state is None:
            return Repair(path, tuple(said), (), False)
        if state.problems:
            said += _restore_sizes(folder, backend, state.problems)
            said += _remove_obstacles(folder, inspect(path).problems)
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
            said += repair_copies(folder, sorted(writer.indexes))
        due = tuple(key for plan in writer.plan() for key in plan.missing if key not in plan.kept)
        if not writer.plan():
            writer.finish()
        return Repair(path, tuple(said), due, not writer.plan())


def _readable_state(folder: StoreFolder, said: list[str]) -> StoreState | None:
    """The state of the store, or None when its manifest is not the one written: it is dropped, since nothing else can
    be judged without it."""
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


def _restore_sizes(folder: StoreFolder, backend: Backend, problems: Sequence[Problem]) -> list[str]:
    """Cut files that are longer than a sound index says, and fill shorter ones with zeros.

    Then each record tells by itself whether it is damaged. A file that other stores share (`adopt.py`) is first copied.
    Left as it is when there is not enough room on the disk: a stranger's index may say anything.
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
            there = path.stat()
            size = there.st_size
            needed = facts.bytes - size if there.st_nlink == 1 else facts.bytes
            if size != facts.bytes and needed <= shutil.disk_usage(folder.path).free:
                resize_file(path, facts.bytes)
                said.append(
                    f"{facts.name}: {size} bytes, its index says {facts.bytes}; what is left of it is kept"
                )
    return said


def _remove_obstacles(folder: StoreFolder, problems: Sequence[Problem]) -> list[str]:
    """Remove what would stop or mislead a writer: the seal, a doubtful quarantine, and shards that nobody planned.

    The seal itself may be what is wrong. Without it an index is trusted if it is sound and its shard is what it says.
    Returns remarks on what a writer will not find any more.
    """
    unpublish(folder.seal)
    if any(problem.where == "quarantine.jsonl" for problem in problems):
        unpublish(folder.quarantine)
    left = inspect(folder.path).problems
    unplanned = [problem for problem in left if _is_unplanned(problem)]
    for problem in unplanned:
        withdraw_index(folder, int(Path(problem.where).stem))
    settled = [problem for problem in problems if problem not in left]
    return [f"{problem}; {_outcome(problem)}" for problem in (*settled, *unplanned)]


def _is_unplanned(problem: Problem) -> bool:
    """Whether a shard holds clips that the manifest does not plan for it."""
    return problem.shard is None and problem.where.startswith("index/")


def _outcome(problem: Problem) -> str:
    if _is_unplanned(problem):
        return "the shard is dropped"
    if problem.where == "quarantine.jsonl":
        return "its clips are tried again"
    return (
        "it is written anew"
        if problem.rewritten
        else "the seal is set aside and the shard looked at by itself"
    )
