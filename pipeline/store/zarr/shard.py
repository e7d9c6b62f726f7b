"""One published shard of a Zarr store: a record by its row in the index, each chunk checked before it is handed out.

Chunks are read from memory maps by their places in the index, not through a Zarr library, which would take a
missing file for zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.store.backend import Damage
from caeav.pipeline.store.check import digest
from caeav.pipeline.store.errors import DamagedShard
from caeav.pipeline.store.mapped_file import MappedFile
from caeav.pipeline.store.payload import BadPayload, Bytes, crc32c, decode_info
from caeav.pipeline.store.record import Record
from caeav.pipeline.store.zarr.chunks import TEXT_HEAD_BYTES, offsets, structure_differences, text_chunk
from caeav.pipeline.store.zarr.index import ZarrIndex


class ZarrShard:
    """A `Shard`. Arrays handed out are views into the maps."""

    def __init__(self, store: Path, index: ZarrIndex) -> None:
        self.index = index
        self._store = store
        self._info = len(index.layout)
        # now, for `cached_property` has a lock, and a forked process would wait for its holder
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

    def ahead(self, row: int) -> None:
        """See `Shard.ahead`."""
        for place in range(self._info + 1):
            self._file(place).ahead(*self._span(place, row))

    def fetch(self, row: int) -> None:
        """See `Shard.fetch`."""
        for place in range(self._info + 1):
            self._file(place).fetch(*self._span(place, row))

    def check(self, progress: Callable[[int], object]) -> Iterator[Damage]:
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

    def _check_file(
        self, place: int, data: Bytes, wanted: str, progress: Callable[[int], object]
    ) -> Iterator[Damage]:
        """What is wrong with one file, its sha256 named only when nothing more exact can be."""
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
        """The crc32c a chunk must have; that of a key follows from the key."""
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
