"""Dropping what is damaged, and nothing else, so that the next run of extract or caption fills exactly the hole.

A damaged record is taken out of its shard, the others keep their bytes; a shard whose index or size is wrong goes
as a whole. Where only something around the records was damaged nothing is lost. What is left complete is sealed
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.publish import unpublish
from caeav.pipeline.store.backend import backend_of
from caeav.pipeline.store.errors import DamagedStore, Problem
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.state import StoreState, inspect, read_recipe
from caeav.pipeline.store.verification import check_shard


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
    said: list[str] = []
    lock = WriterLock(folder.lock)
    try:
        state = _readable(folder, said)
        if state is None:
            return Repair(path, tuple(said), (), False)
        for problem in state.problems:
            said += _drop_misfit(folder, problem)
    finally:
        lock.release()
    part = Slice.of_folder(path.resolve().name)[1]
    with open_for_writing(path.resolve().parent, recipe, state.manifest, part=part) as writer:
        said += writer.remarks
        backend = backend_of(recipe)
        for number, index in sorted(writer.indexes.items()):
            problems = list(check_shard(folder, backend, index, progress))
            if problems:
                said += [f"{problem}; {'dropped' if problem.key else 'put right'}" for problem in problems]
                writer.drop(number, {problem.key for problem in problems})
        due = tuple(key for plan in writer.plan() for key in plan.missing)
        if not due:
            writer.finish()
        return Repair(path, tuple(said), due, not due)


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


def _drop_misfit(folder: StoreFolder, problem: Problem) -> list[str]:
    """A shard with clips that the manifest does not plan there is nobody's; a writer leaves it to its owner."""
    if problem.shard is not None or not problem.where.startswith("index/"):
        return []
    unpublish(folder.seal)
    unpublish(folder.path / problem.where)
    return [f"{problem}; the shard is dropped"]
