"""One published tar, memory-mapped: a record by its row in the index, checked before it is handed out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from caeav.pipeline.store.backend import Damage
from caeav.pipeline.store.check import digest
from caeav.pipeline.store.mapped_file import MappedFile
from caeav.pipeline.store.payload import (
    MAX_INFO_BYTES,
    BadPayload,
    Bytes,
    crc32c,
    decode_arrays,
    decode_info,
)
from caeav.pipeline.store.record import Record
from caeav.pipeline.store.webdataset.index import TarIndex
from caeav.pipeline.store.webdataset.tar import structure_differences

ENDINGS = {"array": "safetensors", "info": "json"}


class TarShard:
    """A `Shard`. Arrays handed out are views into the map."""

    def __init__(self, store: Path, index: TarIndex) -> None:
        self.index = index
        self._store = store
        self._mapped: MappedFile | None = None

    @property
    def _file(self) -> MappedFile:
        """Without a lock, which a process forked while another thread holds it would wait for for ever."""
        if self._mapped is None:
            self._mapped = MappedFile(self._store, self.index.files[0], self.index.number)
        return self._mapped

    def record(self, row: int, *, check: bool = True) -> Record:
        """See `Shard.record`."""
        if check:
            for part in ENDINGS:
                self._compare(row, part)
        try:
            return Record(self.index.keys[row], decode_arrays(self._part(row, "array")), self._info(row))
        except BadPayload as error:
            self._file.damaged(str(error), self.index.keys[row])

    def info(self, row: int) -> dict[str, Any]:
        """See `Shard.info`."""
        self._compare(row, "info")
        try:
            return self._info(row)
        except BadPayload as error:
            self._file.damaged(str(error), self.index.keys[row])

    def ahead(self, row: int) -> None:
        """See `Shard.ahead`."""
        self._file.ahead(self._span(row, "array")[0], self._span(row, "info")[1])

    def fetch(self, row: int) -> None:
        """See `Shard.fetch`."""
        self._file.fetch(self._span(row, "array")[0], self._span(row, "info")[1])

    def check(self, progress: Callable[[int], object]) -> Iterator[Damage]:
        """See `Shard.check`."""
        rows = range(len(self.index.keys))
        facts = self.index.files[0]
        places = [(row, part) for row in rows for part in ENDINGS]
        sha256, sums = digest(self._file.bytes, [self._span(*place) for place in places], progress)
        wrong = {
            row: what
            for (row, part), seen in zip(places, sums, strict=True)
            if (what := self._difference(row, part, seen))
        }
        for row in rows:
            what = wrong.get(row) or self._unreadable(row)
            if what:
                wrong[row] = what
                yield Damage(facts.name, what, self.index.keys[row])
        found = bool(wrong)
        for key, what in structure_differences(self._file.bytes, self.index):
            found = True
            yield Damage(facts.name, what, key)
        if not found and sha256 != facts.sha256:
            yield Damage(facts.name, f"sha256 is {sha256[:12]}..., the index says {facts.sha256[:12]}...")

    def _span(self, row: int, part: str) -> tuple[int, int]:
        entry = self.index.entries[row]
        start = int(entry[f"{part}_offset"])
        return start, start + int(entry[f"{part}_bytes"])

    def _part(self, row: int, part: str) -> Bytes:
        start, end = self._span(row, part)
        return self._file.bytes[start:end]

    def _difference(self, row: int, part: str, seen: int) -> str:
        wanted = int(self.index.entries[row][f"{part}_crc32c"])
        return (
            ""
            if seen == wanted
            else f"the {ENDINGS[part]} has crc32c {seen:08x}, the index says {wanted:08x}"
        )

    def _compare(self, row: int, part: str) -> None:
        if what := self._difference(row, part, crc32c([self._part(row, part)])):
            self._file.damaged(what, self.index.keys[row])

    def _unreadable(self, row: int) -> str:
        try:
            decode_arrays(self._part(row, "array"))
            self._info(row)
        except BadPayload as error:
            return str(error)
        return ""

    def _info(self, row: int) -> dict[str, Any]:
        data = self._part(row, "info")
        if data.size > MAX_INFO_BYTES:
            raise BadPayload(f"facts of {data.size} bytes; at most {MAX_INFO_BYTES}")
        return decode_info(data.tobytes())
