"""What lies in a store's folder, read once and compared: recipe, manifest, indexes, quarantine, seal.

Reader, writer and `verify` all begin here. Shards are only looked at by size; their content is checked when a
record is read, and all of it by `verify`. Damage is collected, not raised, so that a reader can refuse, a
writer can make the shard again and `verify` can list everything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from caeav.manifests.clip import Manifest
from caeav.manifests.errors import CaeavError
from caeav.manifests.jsonl import read_manifest
from caeav.pipeline.store.backend import Backend, BadIndex, ShardIndex, backend_of
from caeav.pipeline.store.errors import DamagedStore, IncompleteStore, Problem, StoreError
from caeav.pipeline.store.layout import (
    FOLDER_PATTERN,
    Seal,
    StoreFolder,
    cut,
    parse_recipe,
    parse_seal,
    read_capped,
    shard_clips,
)
from caeav.pipeline.store.quarantine import read_quarantine
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Quarantined
from caeav.pipeline.store.slices import Slice


@dataclass(frozen=True)
class StoreState:
    """`indexes` holds the shards that are sound as far as looked at; `missing` the keys neither stored nor
    quarantined; `sealed` whether the store was finished and nothing about it is in doubt."""

    folder: StoreFolder
    recipe: Recipe
    manifest: Manifest
    plan: tuple[tuple[str, ...], ...]
    indexes: dict[int, ShardIndex]
    quarantined: dict[str, Quarantined]
    missing: tuple[str, ...]
    seal: Seal | None
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]

    @property
    def stored(self) -> int:
        """Records in sound shards."""
        return sum(len(index.keys) for index in self.indexes.values())

    @property
    def expected(self) -> int:
        """Clips that are to be stored or quarantined here: those of the manifest, in a slice those of its shards."""
        return sum(map(len, self.plan))

    @property
    def shard_bytes(self) -> int:
        """Bytes of sound shards."""
        return sum(file.bytes for index in self.indexes.values() for file in index.files)

    def incomplete(self) -> IncompleteStore:
        """Why this store is not finished."""
        first = ", ".join(self.missing[:3]) + (", ..." if len(self.missing) > 3 else "")
        what = (
            f"{len(self.missing)} of {self.expected} clips are neither stored nor quarantined: {first}"
            if self.missing
            else "every clip is there, but the writer was stopped before it closed the store"
        )
        command = {"tokens": "extract", "captions": "caption"}[self.recipe.kind]
        return IncompleteStore(
            f"{self.folder.path} is not finished: {what}", hint=f"run `caeav {command}` again to finish it"
        )


def read_recipe(folder: StoreFolder) -> Recipe:
    """The recipe, which must be the one the folder is named after."""
    if not folder.recipe.is_file():
        raise StoreError(f"{folder.path} holds no store: there is no recipe.json", hint="caeav store ls")
    recipe = parse_recipe(read_capped(folder.recipe), folder.recipe)
    name = folder.path.resolve().name
    if Slice.of_folder(name)[0] != recipe.folder_name:
        what = "not a store's name" if not FOLDER_PATTERN.fullmatch(name) else "another recipe's name"
        raise DamagedStore(
            f"{folder.path}: the recipe in it belongs to a folder called {recipe.folder_name}; {name} is {what}",
            hint="rename the folder back; if it was not renamed, recipe.json is damaged: remove it and extract again",
        )
    return recipe


def read_stored_manifest(folder: StoreFolder) -> Manifest:
    """The store's copy of the manifest; raises `DamagedStore`."""
    try:
        return read_manifest(folder.manifest)
    except (CaeavError, OSError, UnicodeDecodeError) as error:
        raise DamagedStore(
            f"{folder.manifest}: {getattr(error, 'problem', error)}",
            hint=f"remove {folder.manifest} and extract again; it is written anew from the data set's manifest",
        ) from error


def inspect(path: Path) -> StoreState:
    """Read and compare everything but the shards' content.

    Raises `StoreError` where recipe or manifest cannot be read, since nothing else has a meaning then.
    """
    folder = StoreFolder(path)
    recipe = read_recipe(folder)
    backend = backend_of(recipe)
    manifest = read_stored_manifest(folder)
    problems: list[Problem] = []
    remarks: list[str] = []
    seal = _read_seal(folder, recipe, problems)
    quarantined = _read_quarantined(folder, problems, remarks)
    whole = cut([clip.key for clip in manifest.clips], shard_clips(recipe))
    plan = Slice.of_folder(path.resolve().name)[1].plan(whole)
    manifest_doubtful = any(problem.where == "manifest.jsonl" for problem in problems)
    indexes: dict[int, ShardIndex] = {}
    for number in folder.published():
        planned = plan[number] if number < len(plan) else ()
        found = _read_index(folder, number, backend, recipe.fingerprint, seal)
        if not isinstance(found, Problem) and not manifest_doubtful:
            found = _misfit(found, planned, indexes, folder.name_of(folder.index(number))) or found
        if isinstance(found, Problem):
            problems.append(found)
        else:
            indexes[number] = found
    if seal:
        problems += _missing_indexes(folder, seal)
        problems += _wrong_documents(folder, seal, recipe, indexes, manifest)
    stored = {key for index in indexes.values() for key in index.keys}
    known = {key for planned in plan for key in planned}
    quarantined = {key: entry for key, entry in quarantined.items() if key in known and key not in stored}
    missing = tuple(
        key for planned in plan for key in planned if key not in stored and key not in quarantined
    )
    state = StoreState(
        folder, recipe, manifest, tuple(plan), indexes, quarantined, missing, seal, (), tuple(remarks)
    )
    if seal and not problems:
        problems += _count_differences(state, seal)
    return replace(state, problems=tuple(problems))


def _count_differences(state: StoreState, seal: Seal) -> list[Problem]:
    seen = {
        "expected": state.expected,
        "stored": state.stored,
        "quarantined": len(state.quarantined),
        "shards": len(state.indexes),
        "shard_bytes": state.shard_bytes,
    }
    wrong = [
        f"{name} is {n}, the seal says {getattr(seal, name)}"
        for name, n in seen.items()
        if n != getattr(seal, name)
    ]
    if state.missing:
        wrong.append(
            f"{len(state.missing)} clips are neither stored nor quarantined, {state.missing[0]} first"
        )
    return [Problem("complete.json", "; ".join(wrong), rewritten=True)] if wrong else []


def _read_seal(folder: StoreFolder, recipe: Recipe, problems: list[Problem]) -> Seal | None:
    if not folder.seal.is_file():
        return None
    try:
        seal = parse_seal(read_capped(folder.seal), folder.seal)
    except DamagedStore:
        problems.append(Problem("complete.json", "not a seal as this program writes it", rewritten=True))
        return None
    if seal.fingerprint != recipe.fingerprint:
        problems.append(Problem("complete.json", "belongs to another recipe", rewritten=True))
        return None
    for name in ("manifest.jsonl", "quarantine.jsonl"):
        path = folder.path / name
        if not path.is_file():
            what = "the file is missing, though the store was finished"
        elif hashlib.sha256(read_capped(path)).hexdigest() != seal.sha256.get(name):
            what = (
                "not the file that was there when the store was finished: complete.json names another sha256"
            )
        else:
            continue
        problems.append(Problem(name, what, rewritten=name == "quarantine.jsonl"))
    return seal


def _read_quarantined(
    folder: StoreFolder, problems: list[Problem], remarks: list[str]
) -> dict[str, Quarantined]:
    if not folder.quarantine.is_file():
        return {}
    try:
        entries, torn = read_quarantine(folder.quarantine)
    except DamagedStore as error:
        problems.append(Problem("quarantine.jsonl", error.problem, rewritten=True))
        return {}
    if torn:
        remarks.append("the last line of quarantine.jsonl is torn and left out; its clip will be tried again")
    return entries


def _missing_indexes(folder: StoreFolder, seal: Seal) -> Iterator[Problem]:
    for name in seal.sha256:
        if name.startswith("index/") and not (folder.path / name).exists():
            what = "the index is missing, though the store was finished"
            yield Problem(name, what, shard=int(Path(name).stem))


def _wrong_documents(
    folder: StoreFolder, seal: Seal, recipe: Recipe, indexes: Mapping[int, ShardIndex], manifest: Manifest
) -> Iterator[Problem]:
    """Documents for other programs must be what a finished store has; while it is written they may be older."""
    if not indexes:
        return
    layout = next(iter(indexes.values())).layout
    documents = backend_of(recipe).metadata(folder, recipe, layout, len(manifest.clips))
    for path, wanted in documents.items():
        if not path.is_file():
            what = "the file is missing, though the store was finished"
        elif path.stat().st_size != len(wanted) or path.read_bytes() != wanted:
            what = "not the document that belongs to the shards"
        else:
            continue
        yield Problem(folder.name_of(path), what, rewritten=True)
    digests = {folder.name_of(path): hashlib.sha256(data).hexdigest() for path, data in documents.items()}
    others = {name for name in seal.sha256 if name.endswith((".jsonl", ".idx"))}
    if digests != {name: value for name, value in seal.sha256.items() if name not in others}:
        yield Problem("complete.json", "names other documents than belong to the shards", rewritten=True)


def _read_index(
    folder: StoreFolder, number: int, backend: Backend, fingerprint: str, seal: Seal | None
) -> ShardIndex | Problem:
    path = folder.index(number)
    name = folder.name_of(path)
    try:
        data = read_capped(path)
        index = backend.decode_index(data)
    except FileNotFoundError:
        return Problem(name, "vanished while it was read: the store is being written", shard=number)
    except (BadIndex, DamagedStore) as error:
        return Problem(name, getattr(error, "problem", str(error)), shard=number)
    if index.fingerprint != fingerprint:
        return Problem(
            name, f"belongs to recipe {index.fingerprint[:12]}, not {fingerprint[:12]}", shard=number
        )
    if index.number != number:
        return Problem(name, f"is the index of shard {index.number}", shard=number)
    if seal and seal.sha256.get(name) != hashlib.sha256(data).hexdigest():
        return Problem(
            name,
            "not the index that was there when the store was finished: complete.json names another sha256",
            shard=number,
        )
    for facts in index.files:
        file = folder.path / facts.name
        if not file.is_file():
            return Problem(facts.name, "the file is missing", shard=number)
        if (size := file.stat().st_size) != facts.bytes:
            return Problem(facts.name, f"{size} bytes, its index says {facts.bytes}", shard=number)
    return index


def _misfit(
    index: ShardIndex, planned: tuple[str, ...], others: Mapping[int, ShardIndex], name: str
) -> Problem | None:
    """Its keys must be some of the planned ones in the planned order, its arrays those of the other shards."""
    held = set(index.keys)
    if tuple(key for key in planned if key in held) == index.keys:
        if all(other.layout == index.layout for other in islice(others.values(), 1)):
            return None
        return Problem(name, "holds other arrays than the shards before it", shard=index.number)
    stray = next((key for key in index.keys if key not in planned), index.keys[0])
    return Problem(name, "holds clips that the manifest does not plan for this shard in this order", stray)
