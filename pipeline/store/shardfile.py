"""One published shard, memory-mapped: a record by its row in the index, checked before it is handed out."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from caeav.pipeline.store.errors import DamagedShard, redo_hint
from caeav.pipeline.store.index import ShardIndex
from caeav.pipeline.store.payload import (
    MAX_INFO_BYTES,
    BadPayload,
    Bytes,
    crc32c,
    decode_arrays,
    decode_info,
)
from caeav.pipeline.store.record import Record
from caeav.pipeline.store.tarshard import EncodedRecord

MEMBER_ENDINGS = {"array": "safetensors", "info": "json"}


class ShardFile:
    """Maps the shard at once; a size other than the index says is an error. Arrays handed out keep the map alive."""

    def __init__(self, path: Path, index: ShardIndex) -> None:
        self.path = path
        self.index = index
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size != index.shard_bytes:
                    self._damaged(f"{size} bytes, the index says {index.shard_bytes}")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            self._damaged("the shard is missing")
        self.bytes: Bytes = np.frombuffer(self.map, np.uint8)

    def _damaged(self, what: str, key: str = "") -> NoReturn:
        where = f"{self.path}, key {key}" if key else str(self.path)
        raise DamagedShard(f"{where}: {what}", hint=redo_hint(self.path.parent.parent, self.index.number))

    def _part(self, row: int, part: str) -> Bytes:
        entry = self.index.entries[row]
        offset, size = int(entry[f"{part}_offset"]), int(entry[f"{part}_bytes"])
        return self.bytes[offset : offset + size]

    def damage(self, row: int, parts: tuple[str, ...] = ("array", "info")) -> str:
        """What is wrong with a record by its checksums; empty when nothing is."""
        entry = self.index.entries[row]
        for part in parts:
            name = MEMBER_ENDINGS[part]
            seen, wanted = crc32c([self._part(row, part)]), int(entry[f"{part}_crc32c"])
            if seen != wanted:
                return f"the {name} has crc32c {seen:08x}, the index says {wanted:08x}"
        return ""

    def record(self, row: int, *, check: bool = True) -> Record:
        """A record with arrays as read-only views into the map; raises `DamagedShard` naming shard and key."""
        key = self.index.keys[row]
        if check and (found := self.damage(row)):
            self._damaged(found, key)
        try:
            return Record(key, decode_arrays(self._part(row, "array")), self._info(row))
        except BadPayload as error:
            self._damaged(str(error), key)

    def info(self, row: int) -> dict[str, Any]:
        """A record's facts alone, checked; the arrays are not touched."""
        key = self.index.keys[row]
        if found := self.damage(row, ("info",)):
            self._damaged(found, key)
        try:
            return self._info(row)
        except BadPayload as error:
            self._damaged(str(error), key)

    def _info(self, row: int) -> dict[str, Any]:
        data = self._part(row, "info")
        if data.size > MAX_INFO_BYTES:
            raise BadPayload(f"facts of {data.size} bytes; at most {MAX_INFO_BYTES}")
        return decode_info(data.tobytes())

    def encoded(self, row: int) -> EncodedRecord:
        """A record's stored bytes, checked, to be copied into another shard."""
        key = self.index.keys[row]
        if found := self.damage(row):
            self._damaged(found, key)
        return EncodedRecord(key, [self._part(row, "array")], self._part(row, "info").tobytes())
