"""Making a store: what is still to do, shard by shard, publishing it so that nothing is lost, and sealing it.

The bytes of a shard depend on recipe, manifest and quarantine alone, so an interrupted, resumed or parallel run leaves
the files of an undisturbed one. Records of a shard that is not complete yet are kept in a journal (`journal.py`): a
crash at any point costs only the clips in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.atomic import publish_bytes, unpublish
from caeav.manifests.core.util import file_sha256
from caeav.manifests.key_index import KeyIndex
from caeav.pipeline.store.adopt import Adopted, adopt_shards
from caeav.pipeline.store.backend import ShardIndex, backend_of, orphans, temp_files, with_kept
from caeav.pipeline.store.errors import DamagedShard, IncompleteStore, StoreError
from caeav.pipeline.store.journal import Journals, source_of
from caeav.pipeline.store.layout import Seal, StoreFolder, cut, shard_clips
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Quarantined, Record, append_quarantine, render_quarantine
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.spare import repair_copies, withdraw_index
from caeav.pipeline.store.state import PublishedShards


@dataclass(frozen=True, slots=True)
class Summary:
    """A finished store in numbers: `expected == stored + quarantined`; `bytes` are those of the shards."""

    stored: int
    quarantined: int
    expected: int
    shards: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard that needs work: the keys it will hold, in order, and those of them that are not stored yet.

    The `kept` ones among these need not be computed: an earlier writer finished them, see `StoreWriter.kept`.
    """

    number: int
    keys: Sequence[str]
    missing: Sequence[str]
    kept: tuple[str, ...] = ()


class StoreWriter:
    """The only writer of a store; made by `open_for_writing` and used as a context manager, from one thread.

    `manifest` is the stored manifest grown by the one given, `part` the slice of the plan that is made here, and
    `remarks` say what was found on opening: resumed, added, relabelled, damaged.
    """

    def __init__(
        self,
        folder: StoreFolder,
        lock: WriterLock,
        recipe: Recipe,
        manifest: Manifest,
        indexes: PublishedShards,
        quarantined: dict[str, Quarantined],
        earlier_attempts: Mapping[str, int],
        sealed: bool,
        remarks: list[str],
    ) -> None:
        self.folder = folder
        self.path = folder.path
        self.recipe = recipe
        self.manifest = manifest
        self.remarks = remarks
        self._lock = lock
        self._indexes = indexes
        self._quarantined = quarantined
        self._earlier_attempts = earlier_attempts
        self._sealed = sealed
        self._backend = backend_of(recipe)
        self.part = Slice.of_folder(folder.path.name)[1]
        self._size = shard_clips(recipe)
        self._planned = self.part.plan(cut(manifest.keys, self._size))
        self._journals = Journals(folder, recipe.fingerprint)
        self.published: Callable[[int], object] | None = None
        """Is told the number of each shard that is published, from the writing thread."""

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write; what is published or kept stays, whether or not the store is finished."""
        self._journals.close()
        self._lock.release()

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """The quarantine so far, in manifest order."""
        if not self._quarantined:
            return ()
        return tuple(
            self._quarantined[key] for planned in self._planned for key in planned if key in self._quarantined
        )

    @property
    def indexes(self) -> Mapping[int, ShardIndex]:
        """The published shards by number."""
        return MappingProxyType(self._indexes)

    @property
    def planned(self) -> Sequence[Sequence[str]]:
        """The planned keys of each shard; none for the shards of other slices."""
        return self._planned

    @property
    def stored(self) -> int:
        """Records published so far."""
        return self._indexes.stored

    def records(self, number: int) -> int:
        """Records published in a shard; 0 if it is not."""
        return self._indexes.records(number)

    @property
    def expected(self) -> int:
        """Clips that have to be stored or quarantined here."""
        return sum(map(len, self._planned))

    @cached_property
    def _places(self) -> KeyIndex:
        return KeyIndex(self.manifest.keys)

    def place(self, key: str) -> int:
        """The row of a clip in the manifest; raises `KeyError`."""
        if (place := self._places.get(key)) is None:
            raise KeyError(key)
        return place

    def clip(self, key: str) -> Clip:
        """A clip of the manifest; raises `KeyError`."""
        return self.manifest.clips[self.place(key)]

    def plan(self) -> list[ShardPlan]:
        """The shards that need work, ascending; empty when only `finish` remains.

        A published shard that has to be written again keeps its records: only the others are `missing`.
        """
        plans = map(self.plan_shard, range(len(self._planned)))
        return [plan for plan in plans if plan is not None]

    def plan_shard(self, number: int) -> ShardPlan | None:
        """The work that a shard needs; None when it needs none."""
        keys: Sequence[str] = self._planned[number]
        if self._quarantined:
            keys = tuple(key for key in keys if key not in self._quarantined)
        records = self._indexes.records(number)
        if not records and keys:
            return ShardPlan(number, keys, keys, self._kept_of(number, keys))
        if records != len(keys):  # what a shard holds is some of these keys
            held = set(self._indexes[number].keys)
            missing = tuple(key for key in keys if key not in held)
            return ShardPlan(number, keys, missing, self._kept_of(number, missing))
        return None

    def _kept_of(self, number: int, missing: Sequence[str]) -> tuple[str, ...]:
        kept = self._journals.keys(number)
        return tuple(key for key in missing if key in kept) if kept else ()

    def resume_journals(self) -> None:
        """Read what an earlier writer kept of shards that are not complete; called once, on opening."""
        plans = {plan.number: plan for plan in self.plan()}

        def wanted(number: int) -> dict[str, bytes]:
            missing = plans[number].missing if number in plans else ()
            return {key: self._source(key) for key in missing}

        self.remarks += self._journals.resume(wanted)

    def _source(self, key: str) -> bytes:
        return source_of(self.manifest.clips[self.place(key)])

    def keep(self, record: Record) -> None:
        """Keep a finished record of a shard that is not complete yet, so that it survives a kill of this process.

        It survives a power cut from the next `sync` on. No reader sees it before its shard is published. Raises
        `ValueError` for a key that is not due.
        """
        number = self._due_shard(record.key)
        self._unseal()
        self._journals.add(number, record, self._source(record.key))

    def kept(self, number: int) -> dict[str, Record]:
        """The records kept of a shard, as they were given; raises `DamagedStore` for one that was damaged since."""
        return {key: self._journals.read(number, key) for key in self._journals.keys(number)}

    def forget(self, keys: Iterable[str]) -> None:
        """Make the kept records of these clips count no longer, durably: the clips are due again."""
        for key in keys:
            self._journals.forget(self.place(key) // self._size, key)

    @property
    def unsynced(self) -> bool:
        """Whether something was kept since the last `sync`."""
        return self._journals.unsynced

    def sync(self) -> None:
        """Have every kept record on the disk."""
        self._journals.sync()

    def _due_shard(self, key: str) -> int:
        """The shard of a clip that is due; raises `ValueError` for a clip that is not."""
        place = self._places.get(key)
        number = -1 if place is None else place // self._size
        index = self._indexes.get(number)
        if (
            place is None
            or not self.part.holds(number)
            or key in self._quarantined
            or (index and key in index.keys)
        ):
            raise ValueError(f"clip {key!r} is not due here")
        return number

    def publish(self, plan: ShardPlan, records: Mapping[str, Record]) -> None:
        """Write a planned shard: the records given and those it had, without clips that were quarantined meanwhile.

        Raises `ValueError` when a missing key is neither given nor quarantined, `DamagedShard` when a record that
        should stay is damaged.
        """
        for key, record in records.items():
            if record.key != key or key not in plan.keys or key in self._quarantined:
                raise ValueError(
                    f"record {record.key!r}, given as {key!r}, is not due in shard {plan.number}"
                )
        lost = [key for key in plan.missing if key not in records and key not in self._quarantined]
        if lost:
            raise ValueError(f"shard {plan.number} lacks {len(lost)} records, {lost[0]!r} first")
        keys = [key for key in plan.keys if key not in self._quarantined]
        old = self._indexes.get(plan.number)
        if not old or records or tuple(keys) != old.keys:  # otherwise all that was due failed again
            self._unseal()
            if keys:  # a shard is not written when all of its clips failed
                self._write(plan.number, keys, records)
                self._tell(plan.number)
        self._journals.drop(plan.number)

    def adopt(
        self, source: StoreFolder, shards: Sequence[ShardIndex], adopted: Adopted, *, check: bool = True
    ) -> None:
        """Take over finished shards of `source`, a store of this recipe, as they are: see `adopt_shards`.

        A shard of that number is replaced. Raises `ValueError` for one that does not hold exactly what is planned,
        `StoreError` for one whose arrays do not fit this store's.
        """
        for index in shards:
            due = [key for key in self._planned[index.number] if key not in self._quarantined]
            if index.fingerprint != self.recipe.fingerprint or due != list(index.keys):
                raise ValueError(f"shard {index.number} of {source.path} is not the one that is planned here")
            first = next(iter(self._indexes.values()), shards[0])
            if index.layout != first.layout:
                own, wanted = (
                    {*one.layout} - {*other.layout} for one, other in ((index, first), (first, index))
                )
                raise StoreError(
                    f"shard {index.number} of {source.path} holds {_listed(own)}, shard {first.number} of {self.path} "
                    f"{_listed(wanted)}, and a Zarr array has one shape for all clips",
                    hint="make the store with --backend webdataset, which keeps arrays of any shape; slices made by "
                    "other versions of the models have to be made again",
                )
        self._unseal()
        for index in shards:
            if index.number in self._indexes:
                self._withdraw(self._indexes[index.number])
        adopt_shards(self.folder, self._backend, source, shards, adopted, check=check)
        for index in shards:
            self._indexes[index.number] = index
            self._journals.drop(index.number)
            self._tell(index.number)

    def _tell(self, number: int) -> None:
        if self.published is not None:
            self.published(number)

    def drop_damaged(self) -> None:
        """Check the published shards that have to be written again, and drop their damaged records.

        These are due again then; the sound ones stay. Called once, on opening.
        """
        for plan in self.plan():
            old = self._indexes.get(plan.number)
            damaged = self._damaged(old) if old else {}
            if old and damaged:
                self.remarks += [
                    f"shard {plan.number}, {key}: {what}; made again" for key, what in damaged.items()
                ]
                self.drop(plan.number, damaged)

    def drop(self, number: int, keys: Collection[str]) -> None:
        """Write a published shard again without these records, which are then due again; the others keep their bytes.

        With no key, what lies around the records is restored.
        """
        old = self._indexes[number]
        sound = [key for key in old.keys if key not in keys]
        self._unseal()
        if sound:
            self._write(number, sound, {})
        else:
            self._withdraw(old)

    def remake(self, keys: Collection[str]) -> None:
        """Make stored or quarantined clips due again because their media changed; all others keep their bytes.

        After a crash some of the clips are due and the others as they were.
        """
        self.forget(keys)
        for number in sorted({self.place(key) // self._size for key in keys}):
            held = set(self._indexes[number].keys).intersection(keys) if number in self._indexes else ()
            if held:
                self.drop(number, held)
        left = {key: entry for key, entry in self._quarantined.items() if key not in keys}
        if len(left) < len(self._quarantined):
            self._unseal()
            publish_bytes(self.folder.quarantine, render_quarantine(left.values()))
            self._quarantined = left

    def _damaged(self, index: ShardIndex) -> dict[str, str]:
        """Key -> what is wrong, for the records of a shard that are damaged."""
        shard = self._backend.open(self.folder, index)
        found: dict[str, str] = {}
        for row, key in enumerate(index.keys):
            try:
                shard.record(row)
            except DamagedShard as error:
                found[key] = error.problem.rpartition(": ")[2]
        return found

    def _withdraw(self, index: ShardIndex) -> None:
        """Remove a shard, its index first."""
        withdraw_index(self.folder, index.number)
        for file in index.files:
            unpublish(self.folder.path / file.name)
        del self._indexes[index.number]

    def _write(self, number: int, keys: list[str], records: Mapping[str, Record]) -> None:
        other = next((n for n in self._indexes if n != number), None)
        layout = None if other is None else self._indexes[other].layout
        planned = self._planned[number]
        wanted = with_kept(self._backend, self.folder, self._indexes.get(number), keys, records)
        try:
            self._indexes[number] = self._backend.write(
                self.folder, number, self.recipe, planned, wanted, layout
            )
        except BaseException:
            if not self.folder.index(number).exists():
                self._indexes.pop(number, None)
            raise

    def quarantine(self, entry: Quarantined) -> None:
        """Record durably that a clip could not be processed; `entry.attempts` counts this run's attempts.

        Those of earlier runs are added. The clip is not tried again unless the store is opened with `retry_failed`.
        Raises `ValueError` for a key that the manifest lacks or that is stored.
        """
        place = self._places.get(entry.key)
        if place is None or not self.part.holds(place // self._size):
            raise ValueError(f"clip {entry.key!r} is not in the manifest, or in another slice")
        index = self._indexes.get(place // self._size)
        if index and entry.key in index.keys:
            raise ValueError(f"clip {entry.key!r} is stored and cannot be quarantined")
        attempts = entry.attempts + self._earlier_attempts.get(entry.key, 0)
        entry = Quarantined(entry.key, entry.stage, entry.reason, attempts)
        self._unseal()
        self._journals.forget(place // self._size, entry.key)  # if it is tried again, it is made again
        append_quarantine(self.folder.quarantine, entry)
        self._quarantined[entry.key] = entry

    def finish(self) -> Summary:
        """Check that every expected clip is stored or quarantined, tidy up, and seal the store.

        Finishing a finished store changes no byte. Raises `IncompleteStore` when clips are missing.
        """
        missing = [key for plan in self.plan() for key in plan.missing]
        if missing:
            raise IncompleteStore(
                f"{self.path}: {len(missing)} of {self.expected} clips are neither stored nor quarantined, "
                f"{missing[0]} first",
                hint="publish the shards that plan() names, then finish",
            )
        quarantined = self.quarantined
        summary = Summary(
            self.stored,
            len(quarantined),
            self.expected,
            len(self._indexes),
            self._indexes.size,
        )
        if not self._sealed:
            self._journals.clear()
            for leftover in (*orphans(self.folder, self._backend), *temp_files(self.folder, self._backend)):
                unpublish(leftover)
            repair_copies(self.folder, sorted(self._indexes))
            publish_bytes(self.folder.quarantine, render_quarantine(quarantined))
            seal_store(self.folder, self.recipe, summary, self._indexes, len(self.manifest.clips))
            self._sealed = True
        return summary

    def _unseal(self) -> None:
        if self._sealed:
            unpublish(self.folder.seal)
            self._sealed = False


def seal_store(
    folder: StoreFolder, recipe: Recipe, summary: Summary, indexes: Mapping[int, ShardIndex], clips: int
) -> None:
    """Seal a store when everything else is in place: bring the documents for other programs up to date, write the seal.

    `clips` is how many its manifest has.
    """
    documents = _update_documents(folder, recipe, indexes, clips)
    files = [folder.manifest, folder.quarantine, *map(folder.index, sorted(indexes)), *documents]
    seal = Seal(
        fingerprint=recipe.fingerprint,
        expected=summary.expected,
        stored=summary.stored,
        quarantined=summary.quarantined,
        shards=summary.shards,
        shard_bytes=summary.bytes,
        sha256={folder.name_of(path): file_sha256(path) for path in files},
    )
    publish_bytes(folder.seal, seal.render())


def _update_documents(
    folder: StoreFolder, recipe: Recipe, indexes: Mapping[int, ShardIndex], clips: int
) -> list[Path]:
    """Write the documents for other programs that are not as they should be; returns the paths of all."""
    if not indexes:
        return []
    layout = next(iter(indexes.values())).layout
    documents = backend_of(recipe).metadata(folder, recipe, layout, clips)
    for path, data in documents.items():
        if not path.is_file() or path.read_bytes() != data:
            publish_bytes(path, data)
    return list(documents)


def _listed(arrays: Iterable[object]) -> str:
    """Arrays of a layout, for an error."""
    return ", ".join(sorted(map(str, arrays))) or "fewer arrays"
