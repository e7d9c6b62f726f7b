"""What lies in a store's folder, read once and compared: recipe, manifest, indexes, quarantine, seal.

Reader, writer and `verify` all begin with `inspect`. It looks at shards only by their size; a record's content is
checked when it is read, all content by `verify`. Damage is collected and not raised, so that a reader can refuse, a
writer can make the shard again and `verify` can list everything.
"""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import file_sha256, some_of
from caeav.manifests.key_index import Keys
from caeav.manifests.manifest import read_manifest
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
from caeav.pipeline.store.recipe import COMMANDS, Recipe
from caeav.pipeline.store.record import Quarantined, read_quarantine
from caeav.pipeline.store.slices import Slice


class ShardFacts(NamedTuple):
    """What is kept of a shard in memory: records, bytes of its files, and the sha256 of its index."""

    records: int
    size: int
    digest: bytes


class PublishedShards(MutableMapping[int, ShardIndex]):
    """Shard number -> index. Each index stays on the disk and is read when it is asked for.

    It must still be the one that was seen first. So the shards of a million clips need little memory. Setting an index
    notes what was published.
    """

    def __init__(self, folder: StoreFolder, backend: Backend) -> None:
        self.facts: dict[int, ShardFacts] = {}
        self._folder = folder
        self._backend = backend

    def __getitem__(self, number: int) -> ShardIndex:
        facts = self.facts[number]
        path = self._folder.index(number)
        try:
            data = read_capped(path)
            if hashlib.sha256(data).digest() == facts.digest:
                return self._backend.decode_index(data)
            what = "not the index that was there when the store was opened: the store was written meanwhile"
        except FileNotFoundError:
            what = "vanished since the store was opened: the store was written meanwhile"
        except (BadIndex, DamagedStore) as error:
            what = getattr(error, "problem", str(error))
        raise Problem(self._folder.name_of(path), what, shard=number).error(self._folder.path)

    def __setitem__(self, number: int, index: ShardIndex) -> None:
        self.note(index, hashlib.sha256(index.encode()).digest())

    def note(self, index: ShardIndex, digest: bytes) -> None:
        """Note an index whose file has this sha256."""
        size = sum(file.bytes for file in index.files)
        self.facts[index.number] = ShardFacts(len(index.keys), size, digest)

    def __delitem__(self, number: int) -> None:
        del self.facts[number]

    def __contains__(self, number: object) -> bool:
        return number in self.facts

    def __iter__(self) -> Iterator[int]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def records(self, number: int) -> int:
        """Records in a shard; 0 if it is not published."""
        facts = self.facts.get(number)
        return facts.records if facts else 0

    @property
    def stored(self) -> int:
        """Records in all shards."""
        return sum(facts.records for facts in self.facts.values())

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(facts.size for facts in self.facts.values())


@dataclass(frozen=True, slots=True)
class InspectedShard:
    """A shard whose index is sound and whose files have the sizes it says; `digest` is the sha256 of the index."""

    index: ShardIndex
    digest: bytes


SizeOf = Callable[[str], int | None]
"""The bytes of a shard's file by its name in the store; None where it is not there."""


def inspect_shard(
    folder: StoreFolder,
    backend: Backend,
    number: int,
    fingerprint: str,
    seal: Seal | None,
    size_of: SizeOf | None = None,
) -> InspectedShard | Problem:
    """Read the index of shard `number`; compare it with recipe and seal, and the sizes of the shard's files with it.

    `size_of` tells these where the files lie elsewhere.
    """
    name = folder.index_name(number)
    try:
        data = read_capped(folder.index(number))
        index = backend.decode_index(data)
    except FileNotFoundError:
        return Problem(name, "vanished while it was read: the store is being written", shard=number)
    except (BadIndex, DamagedStore) as error:
        return Problem(name, getattr(error, "problem", str(error)), shard=number)
    digest = hashlib.sha256(data)
    if index.fingerprint != fingerprint:
        what = f"belongs to recipe {index.fingerprint[:12]}, not {fingerprint[:12]}"
    elif index.number != number:
        what = f"is the index of shard {index.number}"
    elif seal and seal.sha256.get(name) != digest.hexdigest():
        what = "not the index that was there when the store was finished: complete.json names another sha256"
    else:
        wrong = _wrong_file(index, size_of or partial(_size_of_file, folder.path))
        return wrong or InspectedShard(index, digest.digest())
    return Problem(name, what, shard=number)


def _wrong_file(index: ShardIndex, size_of: SizeOf) -> Problem | None:
    for facts in index.files:
        size = size_of(facts.name)
        if size is None:
            return Problem(facts.name, "the file is missing", shard=index.number)
        if size != facts.bytes:
            return Problem(facts.name, f"{size} bytes, its index says {facts.bytes}", shard=index.number)
    return None


def _size_of_file(store: Path, name: str) -> int | None:
    try:
        there = (store / name).stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None
    return there.st_size if stat.S_ISREG(there.st_mode) else None


def mismatch(found: InspectedShard, planned: Keys, layout: tuple[Any, ...] | None) -> Problem | None:
    """What does not fit: keys must be planned ones in the planned order, `layout` is that of the other shards."""
    index = found.index
    name = StoreFolder.index_name(index.number)
    if index.keys == planned or index.keys == _those_of(planned, index.keys):
        if layout in (None, index.layout):
            return None
        return Problem(name, "holds other arrays than the shards before it", shard=index.number)
    allowed = set(planned)
    stray = next((key for key in index.keys if key not in allowed), index.keys[0])
    return Problem(name, "holds clips that the manifest does not plan for this shard in this order", stray)


def _those_of(planned: Keys, held: Keys) -> tuple[str, ...]:
    """The planned keys that are held, in the planned order."""
    wanted = set(held)
    return tuple(key for key in planned if key in wanted)


@dataclass(frozen=True)
class StoreState:
    """What `inspect` found. `indexes` holds the shards that are sound as far as it looked, `missing` the keys that are
    neither stored nor quarantined; `seal` is None unless the store was finished and its seal can be read."""

    folder: StoreFolder
    recipe: Recipe
    manifest: Manifest
    plan: tuple[Keys, ...]
    indexes: PublishedShards
    quarantined: dict[str, Quarantined]
    missing: Keys
    seal: Seal | None
    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]

    @property
    def stored(self) -> int:
        """Records in sound shards."""
        return self.indexes.stored

    @property
    def expected(self) -> int:
        """Clips that have to be stored or quarantined here: all in the manifest, or those of a slice's shards."""
        return sum(map(len, self.plan))

    @property
    def shard_bytes(self) -> int:
        """Bytes of sound shards."""
        return self.indexes.size

    def incomplete(self) -> IncompleteStore:
        """The error that says why this store is not finished."""
        first = some_of(self.missing)
        what = (
            f"{len(self.missing)} of {self.expected} clips are neither stored nor quarantined: {first}"
            if self.missing
            else "every clip is there, but the writer was stopped before it closed the store"
        )
        command = COMMANDS[self.recipe.kind]
        return IncompleteStore(
            f"{self.folder.path} is not finished: {what}", hint=f"run `caeav {command}` again to finish it"
        )


def read_recipe(folder: StoreFolder) -> Recipe:
    """The recipe; raises `StoreError` unless it is the one that the folder is named after."""
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


def read_stored_manifest(folder: StoreFolder, sha256: str = "", like: Manifest | None = None) -> Manifest:
    """The store's copy of the manifest; `sha256` is what the seal says of it. Raises `DamagedStore`."""
    try:
        return read_manifest(folder.manifest, sha256=sha256, like=like)
    except (CaeavError, OSError, UnicodeDecodeError) as error:
        raise DamagedStore(
            f"{folder.manifest}: {getattr(error, 'problem', error)}",
            hint=f"remove {folder.manifest} and extract again; it is written anew from the data set's manifest",
        ) from error


def inspect(path: Path, like: Manifest | None = None, size_of: SizeOf | None = None) -> StoreState:
    """Read and compare everything but the content of the shards; rows that `like` has are not checked again.

    `size_of`: of the shards' files, where they lie elsewhere than in the store's folder. Raises `StoreError` when
    recipe or manifest cannot be read: without them nothing else means anything.
    """
    folder = StoreFolder(path)
    recipe = read_recipe(folder)
    backend = backend_of(recipe)
    problems: list[Problem] = []
    remarks: list[str] = []
    seal = _read_seal(folder, recipe, problems)
    manifest = read_stored_manifest(folder, seal.sha256.get("manifest.jsonl", "") if seal else "", like)
    quarantined = _read_quarantined(folder, problems, remarks)
    whole = cut(manifest.keys, shard_clips(recipe))
    plan = Slice.of_folder(path.resolve().name)[1].plan(whole)
    manifest_doubtful = any(problem.where == "manifest.jsonl" for problem in problems)
    indexes = PublishedShards(folder, backend)
    layout: tuple[Any, ...] | None = None
    published = folder.published()
    for number in published:
        planned = plan[number] if number < len(plan) else Keys.of(())
        found = inspect_shard(folder, backend, number, recipe.fingerprint, seal, size_of)
        if not isinstance(found, Problem) and not manifest_doubtful:
            found = mismatch(found, planned, layout) or found
        if isinstance(found, Problem):
            problems.append(found)
        else:
            layout = found.index.layout if layout is None else layout
            indexes.note(found.index, found.digest)
    if seal:
        problems += _missing_indexes(folder, seal, published)
        problems += _wrong_documents(folder, seal, recipe, indexes, manifest)
    absent = _absent(plan, indexes)
    due = set(absent) if quarantined else set()
    quarantined = {key: entry for key, entry in quarantined.items() if key in due}
    missing = absent if not quarantined else Keys.of(key for key in absent if key not in quarantined)
    state = StoreState(
        folder, recipe, manifest, tuple(plan), indexes, quarantined, missing, seal, (), tuple(remarks)
    )
    if seal and not problems:
        problems += _count_differences(state, seal)
    return replace(state, problems=tuple(problems))


def finished(path: Path) -> StoreState:
    """What is in the folder of a store; raises `StoreError` unless it is finished, and sound as far as sizes tell."""
    state = inspect(path)
    if state.problems:
        raise state.problems[0].error(path, len(state.problems) - 1)
    if state.missing or state.seal is None:
        raise state.incomplete()
    return state


def _absent(plan: Sequence[Keys], indexes: PublishedShards) -> Keys:
    """Planned keys that are not stored, in order."""
    parts: list[Sequence[str]] = []
    for number, planned in enumerate(plan):
        if not (records := indexes.records(number)):
            parts.append(planned)
        elif records < len(planned):
            held = set(indexes[number].keys)
            parts.append([key for key in planned if key not in held])
    return Keys.joined(parts)


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
        elif file_sha256(path) != seal.sha256.get(name):
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


def _missing_indexes(folder: StoreFolder, seal: Seal, published: Sequence[int]) -> Iterator[Problem]:
    for name in seal.sha256.keys() - {folder.index_name(number) for number in published}:
        if name.startswith("index/"):
            what = "the index is missing, though the store was finished"
            yield Problem(name, what, shard=int(Path(name).stem))


def _wrong_documents(
    folder: StoreFolder, seal: Seal, recipe: Recipe, indexes: Mapping[int, ShardIndex], manifest: Manifest
) -> Iterator[Problem]:
    """Documents for other programs must fit a finished store; while it is being written they may be older."""
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
