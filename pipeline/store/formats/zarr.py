"""The Zarr format: one sharded array per tap in `shards.zarr`, with a binary index for each shard.

Neither writing nor reading needs the zarr package; any Zarr v3 reader reads what is written. Chunks are read from
memory maps by their places in the index, since a Zarr library takes a missing file for fill values unless told not to
(`read_missing_chunks`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.atomic import Staging
from caeav.manifests.core.util import OnProgress
from caeav.manifests.key_index import Keys
from caeav.pipeline.store.backend import Damage, Shard, ShardIndex
from caeav.pipeline.store.errors import DamagedShard, StoreError
from caeav.pipeline.store.formats.common import MappedFile, replace_shard
from caeav.pipeline.store.formats.zarr_format import (
    GROUP,
    INFO,
    KEY,
    ROW,
    TEXT_HEAD_BYTES,
    ChunkWriter,
    Layout,
    UnfitArray,
    ZarrIndex,
    decode_index,
    documents,
    file_name,
    layout_of,
    offsets,
    structure_differences,
    text_chunk,
)
from caeav.pipeline.store.layout import StoreFolder, shard_clips
from caeav.pipeline.store.payload import (
    BadPayload,
    Bytes,
    crc32c,
    decode_info,
    digest,
    encode_info,
    little_endian,
)
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Record

_NUMBERED = re.compile(r"c\.(\d{1,9})(?:\.0)*")


class ZarrShard:
    """A `Shard` in one mapped file per array. The arrays of its records are views into the maps."""

    def __init__(self, store: Path, index: ZarrIndex) -> None:
        self.index = index
        self._store = store
        self._info = len(index.layout)
        # taken now: `cached_property` has a lock, and a forked process would wait for its holder
        self._facts = index.files
        self._files: dict[int, MappedFile] = {}
        self._begins: dict[int, NDArray[np.uint64]] = {}

    def record(self, row: int, *, check: bool = True) -> Record:
        """See `Shard.record`."""
        arrays: dict[str, NDArray[np.generic]] = {}
        for place, layout in enumerate(self.index.layout):
            chunk = self._chunk(place, row)
            if check:
                self._compare(place, row, crc32c([chunk]))
            arrays[layout.name] = chunk.view(layout.numpy).reshape(layout.shape)
        return Record(self.index.keys[row], arrays, self.info(row))

    def info(self, row: int) -> dict[str, Any]:
        """See `Shard.info`."""
        chunk = self._chunk(self._info, row)
        self._compare(self._info, row, crc32c([chunk]))
        try:
            return decode_info(chunk[TEXT_HEAD_BYTES:].tobytes())
        except BadPayload as error:
            self._file(self._info).damaged(str(error), self.index.keys[row])

    def prefetch(self, row: int) -> None:
        """See `Shard.prefetch`."""
        for place in range(self._info + 1):
            self._file(place).prefetch(*self._span(place, row))

    def fetch(self, row: int) -> None:
        """See `Shard.fetch`."""
        for place in range(self._info + 1):
            self._file(place).fetch(*self._span(place, row))

    def check(self, progress: OnProgress) -> Iterator[Damage]:
        """See `Shard.check`."""
        for place, facts in enumerate(self._facts):
            try:
                data = self._file(place).bytes
            except DamagedShard as error:
                yield Damage(facts.name, error.problem.partition(": ")[2])
                continue
            found = False
            for damage in self._check_file(place, data, facts.sha256, progress):
                found = True
                yield damage
            if place == self._info and not found:
                yield from self._unreadable()

    def _check_file(self, place: int, data: Bytes, wanted: str, progress: OnProgress) -> Iterator[Damage]:
        """What is wrong with one file; a wrong sha256 is reported only where nothing more exact was found."""
        name, keys = self._facts[place].name, self.index.keys
        rows = range(len(keys))
        seen, sums = digest(data, [self._span(place, row) for row in rows], progress)
        found = False
        for row in rows:
            if what := self._difference(place, row, sums[row]):
                found = True
                yield Damage(name, what, keys[row])
        slots, kept = self.index.rows["slot"], np.array([self._sum(place, row) for row in rows], np.uint32)
        for row, what in structure_differences(data, slots, self.index.sizes(place), kept, self.index.slots):
            found = True
            yield Damage(name, what, keys[row] if row >= 0 else "")
        if not found and seen != wanted:
            yield Damage(name, f"sha256 is {seen[:12]}..., the index says {wanted[:12]}...")

    def _unreadable(self) -> Iterator[Damage]:
        for row, key in enumerate(self.index.keys):
            chunk = self._chunk(self._info, row).tobytes()
            try:
                decode_info(chunk[TEXT_HEAD_BYTES:])
            except BadPayload as error:
                yield Damage(self._facts[self._info].name, str(error), key)

    def _file(self, place: int) -> MappedFile:
        if place not in self._files:
            self._files[place] = MappedFile(self._store, self._facts[place], self.index.number)
        return self._files[place]

    def _span(self, place: int, row: int) -> tuple[int, int]:
        if place not in self._begins:
            self._begins[place], _ = offsets(self.index.sizes(place))
        start = int(self._begins[place][row])
        return start, start + self._size(place, row)

    def _size(self, place: int, row: int) -> int:
        if place < self._info:
            return self.index.layout[place].bytes
        text = int(self.index.rows[row]["info_bytes"]) if place == self._info else len(self.index.keys[row])
        return TEXT_HEAD_BYTES + text

    def _chunk(self, place: int, row: int) -> Bytes:
        start, end = self._span(place, row)
        return self._file(place).bytes[start:end]

    def _sum(self, place: int, row: int) -> int:
        """The crc32c that a chunk must have; for a key it follows from the key."""
        if place < self._info:
            return int(self.index.sums[row, place])
        if place == self._info:
            return int(self.index.rows[row]["info_crc32c"])
        return crc32c([text_chunk(self.index.keys[row].encode())])

    def _difference(self, place: int, row: int, seen: int) -> str:
        wanted = self._sum(place, row)
        return "" if seen == wanted else f"the chunk has crc32c {seen:08x}, the index says {wanted:08x}"

    def _compare(self, place: int, row: int, seen: int) -> None:
        if what := self._difference(place, row, seen):
            self._file(place).damaged(what, self.index.keys[row])


def write_shard(
    store: Path,
    staged: Staging,
    number: int,
    fingerprint: str,
    slots: int,
    planned: Sequence[str],
    records: Iterable[Record],
    layout: Layout | None,
) -> ZarrIndex:
    """Stage the files of shard `number` and return its index.

    Without a `layout` the first record decides it; raises `StoreError` for a record that differs.
    """
    places = {key: slot for slot, key in enumerate(planned)}
    writers: list[ChunkWriter] = []
    keys: list[str] = []
    infos: list[int] = []
    for record in records:
        layout = _fitting(record, layout)
        if not writers:
            names = [(array.name, len(array.shape)) for array in layout] + [(INFO, 0), (KEY, 0)]
            writers = [ChunkWriter(staged.file(store / file_name(name, number, n))) for name, n in names]
        for writer, array in zip(writers[:-2], layout, strict=True):
            writer.add(little_endian(array.name, record.arrays[array.name]).reshape(-1).view(np.uint8))
        info = encode_info(record.info)
        infos.append(len(info))
        writers[-2].add(text_chunk(info))
        writers[-1].add(text_chunk(record.key.encode("ascii")))
        keys.append(record.key)
    if layout is None or not keys:
        raise ValueError("a shard holds at least one record")
    taken = [places[key] for key in keys]
    digests = tuple(writer.finish(taken, slots) for writer in writers)
    rows = np.zeros(len(keys), ROW)
    rows["slot"], rows["info_bytes"], rows["info_crc32c"] = taken, infos, writers[-2].sums
    sums = np.array([writer.sums for writer in writers[:-2]], np.uint32).T.reshape(len(keys), len(layout))
    return ZarrIndex(number, fingerprint, slots, layout, Keys.of(keys), rows, sums, digests)


def _fitting(record: Record, layout: Layout | None) -> Layout:
    try:
        own = layout_of(record.arrays)
    except UnfitArray as error:
        raise StoreError(
            f"clip {record.key!r}: {error}", hint="make the store with --backend webdataset"
        ) from error
    if layout is not None and own != layout:
        other, wanted = sorted({*own} - {*layout}, key=str), sorted({*layout} - {*own}, key=str)
        raise StoreError(
            f"clip {record.key!r} has {', '.join(map(str, other)) or 'fewer arrays'}; the clips before it have "
            f"{', '.join(map(str, wanted)) or 'fewer arrays'}, and a Zarr array has one shape for all clips",
            hint="make the store with --backend webdataset, which keeps arrays of any shape",
        )
    return own


class Zarr:
    """The `Backend` of this format."""

    name = "zarr"

    def write(
        self,
        folder: StoreFolder,
        number: int,
        recipe: Recipe,
        planned: Sequence[str],
        records: Iterable[Record],
        layout: tuple[Any, ...] | None,
    ) -> ShardIndex:
        """See `Backend.write`."""
        old = self.files(folder).get(number, ())

        def write_files(staged: Staging) -> ZarrIndex:
            return write_shard(
                folder.path, staged, number, recipe.fingerprint, shard_clips(recipe), planned, records, layout
            )

        return replace_shard(folder, number, old, write_files)

    def decode_index(self, data: bytes) -> ShardIndex:
        """See `Backend.decode_index`."""
        return decode_index(data)

    def open(self, folder: StoreFolder, index: ShardIndex) -> Shard:
        """See `Backend.open`."""
        if not isinstance(index, ZarrIndex):
            raise TypeError(f"{type(index).__name__} is no index of a Zarr shard")
        return ZarrShard(folder.path, index)

    def files(self, folder: StoreFolder) -> Mapping[int, Sequence[Path]]:
        """See `Backend.files`."""
        found: defaultdict[int, list[Path]] = defaultdict(list)
        for path in sorted((folder.path / GROUP).glob("*/c.*")):
            if match := _NUMBERED.fullmatch(path.name):
                found[int(match[1])].append(path)
        return found

    def places(self, folder: StoreFolder) -> Sequence[Path]:
        """See `Backend.places`."""
        group = folder.path / GROUP
        return [group, *sorted(path for path in group.glob("*") if path.is_dir())]

    def metadata(
        self, folder: StoreFolder, recipe: Recipe, layout: tuple[Any, ...], clips: int
    ) -> Mapping[Path, bytes]:
        """See `Backend.metadata`."""
        return {
            folder.path / name: data for name, data in documents(layout, clips, shard_clips(recipe)).items()
        }


ZARR = Zarr()
