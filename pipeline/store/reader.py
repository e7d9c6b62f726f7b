"""Reading a store: records by key, memory-mapped, checked when they are first read in a process.

Opening compares everything but the content of the shards; a store that is not finished, or that holds anything but what
was written, is refused. Needs only numpy; arrays are read-only views that stay valid as long as they are held. A reader
that is sent to another process maps the shards anew there. Per clip it keeps the bytes of the key and about forty more;
indexes, and the rows of a large manifest, are read when they are needed.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError, did_you_mean
from caeav.manifests.core.util import some_of
from caeav.manifests.key_index import KeyIndex, Keys
from caeav.pipeline.store.backend import Backend, Shard, ShardIndex, backend_of
from caeav.pipeline.store.dtypes import floats
from caeav.pipeline.store.errors import DamagedShard, Problem, StoreError
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Quarantined, Record
from caeav.pipeline.store.state import StoreState, inspect

OPEN_FILES = 256
"""Files mapped at the same time: each map holds a file descriptor, and a process may often have only 1024."""
SEARCHED_KEYS = 20_000
"""So many keys are compared with one that is unknown."""
AHEAD = 32
AHEAD_BYTES = 128 << 20
"""Records fetched ahead of the one in use, at most, and about how many bytes of them."""
FETCHES = 8
"""Records that the disk is asked for at the same time where they do not follow each other."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Shape and dtype of one array of a record: `[T, L, C]` of a tap, `[W, C]` of a caption."""

    shape: tuple[int, ...]
    dtype: str


class Fetcher:
    """A thread that has records read from the disk, in the order in which they will be used.

    It only touches memory maps, so nothing but time depends on it: a caller that uses a record it could not fetch reads
    it from the disk, and meets the error. Nobody else may take records out of its shards meanwhile.
    """

    def __init__(self) -> None:
        self._wanted: SimpleQueue[tuple[Shard, int] | None] = SimpleQueue()
        self._closed = False
        self._thread = Thread(target=self._work, name="caeav-fetcher", daemon=True)
        self._thread.start()

    def ask(self, shard: Shard, row: int) -> None:
        """Fetch this record after those asked for before it."""
        self._wanted.put((shard, row))

    def close(self) -> None:
        """End the thread, whatever it has yet to fetch."""
        self._closed = True
        self._wanted.put(None)
        self._thread.join()

    def _work(self) -> None:
        asked: deque[tuple[Shard, int]] = deque()
        last: tuple[Shard, int] | None = None
        while True:
            while not asked or (len(asked) < FETCHES and not self._wanted.empty()):
                wanted = self._wanted.get()
                if wanted is None or self._closed:
                    return
                shard, row = wanted
                # the system itself reads ahead where records follow each other, in larger pages
                if row and last != (shard, row - 1):
                    with suppress(StoreError, OSError):
                        shard.prefetch(row)
                last = wanted
                asked.append(wanted)
            shard, row = asked.popleft()
            with suppress(StoreError, OSError):
                shard.fetch(row)


class ShardFiles:
    """Where the files of shards come from: here, from the store's folder, where they lie already.

    `url` is the store's address in an object store, and empty here; `remote/reading.py` has the other kind.
    """

    url = ""

    def open(self, backend: Backend, folder: StoreFolder, index: ShardIndex) -> Shard:
        """Open a shard, its files being there."""
        return backend.open(folder, index)

    def used(self, index: ShardIndex) -> None:
        """Note that a record of a shard is read."""

    def expect(self, numbers: Iterable[int]) -> None:
        """Records of these shards will be read, one for each number, in this order."""

    def soon(self, number: int) -> bool:
        """Whether a shard is at hand; if not, it is asked for."""
        return True

    def gone(self, shards: Mapping[int, Shard]) -> Sequence[int]:
        """Which of these open shards are at hand no longer and have to be let go."""
        return ()

    def renew(self, index: ShardIndex) -> bool:
        """Whether something damaged was put right, so that a record may be read again."""
        return False


class StoreReader:
    """An open store: its `recipe`, `manifest` and `quarantined` clips, and the `keys` it holds, in manifest order."""

    def __init__(self, state: StoreState, files: ShardFiles | None = None) -> None:
        self.path = state.folder.path
        self.files = files or ShardFiles()
        self.recipe: Recipe = state.recipe
        self.manifest: Manifest = state.manifest
        self.quarantined: tuple[Quarantined, ...] = tuple(
            state.quarantined[key]
            for planned in (state.plan if state.quarantined else ())
            for key in planned
            if key in state.quarantined
        )
        self.missing: Keys = state.missing
        self.shard_bytes: int = state.shard_bytes
        self.remarks: tuple[str, ...] = state.remarks
        self._folder = state.folder
        self._backend = backend_of(state.recipe)
        self._indexes = state.indexes
        self._numbers = sorted(state.indexes)
        self._ends = np.cumsum([state.indexes.records(number) for number in self._numbers], dtype=np.int64)
        self.keys: Keys = self._stored_keys(state)
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._checked: dict[int, bytearray] = {}

    @classmethod
    def open(cls, folder: Path, *, allow_partial: bool = False) -> StoreReader:
        """Open a store; with `allow_partial` also one that is being written, as far as it is published.

        Raises `IncompleteStore` when clips are missing, and `DamagedStore` or `DamagedShard` when a file is not what
        was written, naming it and what to do.
        """
        state = inspect(Path(folder))
        if state.problems:
            raise state.problems[0].error(state.folder.path, len(state.problems) - 1)
        if not allow_partial and (state.missing or state.seal is None):
            raise state.incomplete()
        return cls(state)

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._places.get(key) is not None

    def __iter__(self) -> Iterator[Record]:
        return self.read_each(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_checked": {}}

    def read(self, key: str) -> Record:
        """The record of `key`, its tokens as floats; the first read in a process checks its checksums.

        Raises `DamagedShard` naming shard and key, `StoreError` for a key that is not stored, saying why.
        """
        return _as_floats(self.read_stored(key))

    def read_stored(self, key: str) -> Record:
        """The record of `key` with its arrays as they are stored (see `dtypes.py`); raises as `read`."""
        return self._record(key, prefetch=True)

    def read_each(self, keys: Sequence[str]) -> Iterator[Record]:
        """The records of `keys` in that order, while the next ones are read from the disk; raises as `read`.

        Records that are not in memory yet come clearly faster than with one `read` after the other.
        """
        record_bytes = max(1, self.shard_bytes // max(1, len(self)))
        depth = min(AHEAD, max(1, AHEAD_BYTES // record_bytes))
        with closing(Fetcher()) as fetcher:
            for at, key in enumerate(keys):
                new = keys[at + depth : at + depth + 1] if at else keys[: depth + 1]
                for shard, row in self._unread(new):
                    fetcher.ask(shard, row)
                yield _as_floats(self._record(key))

    @property
    def url(self) -> str:
        """The store's address in an object store; empty where it lies in a folder."""
        return self.files.url

    @property
    def where(self) -> str:
        """The store's address or folder, for messages."""
        return self.url or str(self.path)

    def expect(self, keys: Iterable[str]) -> None:
        """Say which records will be read next, in this order, so that their shards come ahead from an object store."""
        if self.url:
            places = (self._places.get(key) for key in keys)
            self.files.expect(self._shard_and_row(at)[0] for at in places if at is not None)

    def shards_of(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The number of the shard of each of `keys`; -1 for those that are not stored."""
        places = (self._places.get(key) for key in keys)
        numbers = (-1 if at is None else self._shard_and_row(at)[0] for at in places)
        return np.fromiter(numbers, np.int64, len(keys))

    def shard_sizes(self) -> Sequence[int]:
        """The bytes of each shard's files."""
        return [self._indexes.facts[number].size for number in self._numbers]

    def prefetch(self, keys: Iterable[str]) -> None:
        """Ask the system to read the records of `keys` soon, while others are in use; keys not stored are left out."""
        for shard, row in self._unread(keys):
            shard.prefetch(row)

    def _record(self, key: str, *, prefetch: bool = False) -> Record:
        number, row = self._place(key)
        shard = self._shard(number)
        try:
            return self._checked_record(shard, row, prefetch)
        except DamagedShard:
            self._shards.pop(number, None)
            if not self.files.renew(shard.index):
                raise
        return self._checked_record(self._shard(number), row, prefetch)

    def _checked_record(self, shard: Shard, row: int, prefetch: bool) -> Record:
        self.files.used(shard.index)
        checked = self._checked.setdefault(shard.index.number, bytearray(len(shard.index.keys)))
        if prefetch and not checked[row]:  # the disk can read on while the beginning is checked
            shard.prefetch(row)
        record = shard.record(row, check=not checked[row])
        checked[row] = 1
        return record

    def _unread(self, keys: Iterable[str]) -> Iterator[tuple[Shard, int]]:
        """Where the stored ones of `keys` lie that were not read yet."""
        for key in keys:
            at = self._places.get(key)
            if at is None:
                continue
            number, row = self._shard_and_row(at)
            unread = number not in self._checked or not self._checked[number][row]
            if unread and (number in self._shards or self.files.soon(number)):
                yield self._shard(number), row

    def info(self, key: str) -> dict[str, Any]:
        """The facts of `key` alone (`Record.info`), checked each time; raises as `read`."""
        number, row = self._place(key)
        return self._shard(number).info(row)

    def held(self) -> NDArray[np.bool_]:
        """Which clips of `manifest` are stored, in its order."""
        wanted = self.manifest.keys
        if self.keys == wanted:
            return np.ones(len(wanted), bool)
        return np.fromiter((key in self for key in wanted), bool, len(wanted))

    @cached_property
    def _places(self) -> KeyIndex:
        """Finds the row of a key in `keys`."""
        places = KeyIndex(self.keys)
        if (twice := places.duplicate()) is not None:
            raise Problem("manifest.jsonl", "two rows have this key", self.keys[twice]).error(self.path)
        return places

    def _stored_keys(self, state: StoreState) -> Keys:
        """The keys of all shards, in order; shared with the manifest when every clip is stored."""
        if int(self._ends[-1:].sum()) == len(self.manifest.clips):
            return self.manifest.keys
        return Keys.joined(
            state.plan[number]
            if state.indexes.records(number) == len(state.plan[number])
            else state.indexes[number].keys
            for number in self._numbers
        )

    def _place(self, key: str) -> tuple[int, int]:
        place = self._places.get(key)
        if place is None:
            raise self._not_stored(key)
        return self._shard_and_row(place)

    def _shard_and_row(self, place: int) -> tuple[int, int]:
        """The shard and row of the record in row `place` of `keys`."""
        at = int(np.searchsorted(self._ends, place, side="right"))
        return self._numbers[at], place - (int(self._ends[at - 1]) if at else 0)

    def _shard(self, number: int) -> Shard:
        if number in self._shards:
            self._shards.move_to_end(number)
            return self._shards[number]
        for other in self.files.gone(self._shards):
            del self._shards[other]
        index = self._indexes[number]
        shard = self.files.open(self._backend, self._folder, index)
        self._shards[number] = shard
        while len(self._shards) * len(index.files) > OPEN_FILES and len(self._shards) > 1:
            self._shards.popitem(last=False)
        return shard

    def _not_stored(self, key: str) -> CaeavError:
        for entry in self.quarantined:
            if entry.key == key:
                return StoreError(
                    f"clip {key!r} is quarantined in {self.where}: {entry.stage}: {entry.reason}",
                    hint="leave it out, or try it again with --retry-failed",
                )
        if key in self.missing:
            return StoreError(
                f"clip {key!r} is not in {self.where}: not stored yet", hint=f"caeav store show {self.path}"
            )
        near = did_you_mean(key, itertools.islice(self.keys, SEARCHED_KEYS))
        like = some_of([repr(known) for known in itertools.islice(self.keys, 3)])
        return StoreError(
            f"clip {key!r} is not in {self.where}: not in its manifest",
            hint=near or (f"its keys are like {like}" if like else f"caeav store show {self.path}"),
        )

    def array_specs(self) -> dict[str, ArraySpec]:
        """Name -> shape and dtype of the arrays in the first record; empty for an empty store."""
        if not self.keys:
            return {}
        arrays = self.read(self.keys[0]).arrays
        return {name: ArraySpec(array.shape, str(array.dtype)) for name, array in sorted(arrays.items())}


def _as_floats(record: Record) -> Record:
    return replace(record, arrays=floats(record.arrays))
