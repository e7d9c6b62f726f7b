"""The WebDataset format: each shard is one plain tar, `shards/000000.tar`, with a binary index.

The tar holds `<key>.safetensors` then `<key>.json`, record after record; any tar or WebDataset reader streams it.
Times, owners and modes are fixed, so its bytes are a function of the records; a name too long for a ustar header gets
a pax one. No tar is ever parsed here: the function that writes the member headers also says, when a shard is verified,
what they must be.

The index says where each record lies and what its checksums are. It is little-endian, version 1: a header of 96 bytes
(magic, version, shard number, records, bytes of keys, bytes and sha256 of the shard, recipe fingerprint), an entry of
40 bytes per record, the keys end to end, and a sha256 of all that.
"""

from __future__ import annotations

import hashlib
import re
import struct
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.atomic import Output, Staging
from caeav.manifests.core.util import OnProgress
from caeav.manifests.key_index import Keys
from caeav.pipeline.store.backend import BadIndex, Damage, FileFacts, Shard, ShardIndex
from caeav.pipeline.store.formats.common import (
    MappedFile,
    join_keys,
    open_index,
    replace_shard,
    seal_index,
    split_keys,
)
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.payload import (
    MAX_INFO_BYTES,
    BadPayload,
    Bytes,
    crc32c,
    decode_arrays,
    decode_info,
    digest,
    encode_arrays,
    encode_info,
)
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Record

MAGIC = b"CAEAVIDX"
VERSION = 1
ENTRY = np.dtype(
    [
        ("array_offset", "<u8"),
        ("array_bytes", "<u8"),
        ("info_offset", "<u8"),
        ("info_bytes", "<u4"),
        ("array_crc32c", "<u4"),
        ("info_crc32c", "<u4"),
        ("key_end", "<u4"),
    ]
)
_HEADER = struct.Struct("<8sIIIIQ32s32s")
BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
ENDINGS = {"array": "safetensors", "info": "json"}
"""The two parts of a record in an index, and how their tar members end."""
_NUMBERED = re.compile(r"(\d{6,9})\.tar")


def tar_name(number: int) -> str:
    """Place of a shard relative to the store."""
    return f"shards/{number:06d}.tar"


@dataclass(frozen=True, eq=False)
class TarIndex:
    """`entries` has one row of dtype `ENTRY` per key, in the shard's order; digests are hex."""

    number: int
    fingerprint: str
    shard_bytes: int
    shard_sha256: str
    keys: Keys
    entries: NDArray[np.void]

    @property
    def files(self) -> tuple[FileFacts, ...]:
        """The one tar."""
        return (FileFacts(tar_name(self.number), self.shard_bytes, self.shard_sha256),)

    @property
    def layout(self) -> tuple[Any, ...]:
        """Nothing is common to the records: in a tar they may differ in their arrays."""
        return ()

    def encode(self) -> bytes:
        """See `ShardIndex.encode`."""
        entries = self.entries.copy()
        blob, entries["key_end"] = join_keys(self.keys)
        head = _HEADER.pack(
            MAGIC,
            VERSION,
            self.number,
            len(self.keys),
            len(blob),
            self.shard_bytes,
            bytes.fromhex(self.shard_sha256),
            bytes.fromhex(self.fingerprint),
        )
        return seal_index(head + entries.tobytes() + blob)


def decode_index(data: bytes) -> TarIndex:
    """The bytes of an index file -> index, every length checked before it is used; raises `BadIndex`."""
    body, head = open_index(data, _HEADER, MAGIC, VERSION)
    number, count, keys_bytes, shard_bytes, shard_sha256, fingerprint = head
    if len(body) != _HEADER.size + count * ENTRY.itemsize + keys_bytes:
        raise BadIndex(f"{count} records with {keys_bytes} bytes of keys do not fit {len(data)} bytes")
    entries = np.frombuffer(body, ENTRY, count, _HEADER.size)
    keys = split_keys(body[_HEADER.size + count * ENTRY.itemsize :], entries["key_end"])
    for part in ("array", "info") if count else ():
        size, offset = entries[f"{part}_bytes"], entries[f"{part}_offset"]
        if int(size.max()) > shard_bytes or (offset > np.uint64(shard_bytes) - size).any():
            raise BadIndex(f"a record lies outside the shard's {shard_bytes} bytes")
    return TarIndex(number, fingerprint.hex(), shard_bytes, shard_sha256.hex(), keys, entries)


def member_header(name: str, size: int) -> bytes:
    """The tar header of a plain file: mode 0644, no times, no owners."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK_BYTES)


class _Digesting:
    """Counts and digests what is written to a file."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._sha256 = hashlib.sha256()
        self.position = 0

    def write(self, data: Bytes | bytes) -> None:
        view = data if isinstance(data, bytes) else data.data
        self._out.write(view)
        self._sha256.update(view)
        self.position += len(data)

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def write_shard(out: Output, records: Iterable[Record], number: int, fingerprint: str) -> TarIndex:
    """Write the records as one tar into `out`, in the order given, and return its index."""
    sink = _Digesting(out)
    keys: list[str] = []
    rows: list[tuple[int, ...]] = []
    for record in records:
        payload, info = encode_arrays(record.arrays), encode_info(record.info)
        array_bytes = sum(len(chunk) for chunk in payload)
        sink.write(member_header(f"{record.key}.safetensors", array_bytes))
        array_offset = sink.position
        for chunk in payload:
            sink.write(chunk)
        sink.write(_padding(array_bytes))
        sink.write(member_header(f"{record.key}.json", len(info)))
        info_offset = sink.position
        sink.write(info)
        sink.write(_padding(len(info)))
        keys.append(record.key)
        sums = crc32c(payload), crc32c([info])
        rows.append((array_offset, array_bytes, info_offset, len(info), *sums, 0))
    sink.write(END)
    return TarIndex(
        number, fingerprint, sink.position, sink.hexdigest(), Keys.of(keys), np.array(rows, dtype=ENTRY)
    )


def structure_differences(shard: Bytes, index: TarIndex) -> Iterator[tuple[str, str]]:
    """Key and fact for each place around the records where the tar is not what the index says; no key: its end."""
    position = 0
    for key, row in zip(index.keys, index.entries, strict=True):
        for kind, part in (("safetensors", "array"), ("json", "info")):
            size, offset = int(row[f"{part}_bytes"]), int(row[f"{part}_offset"])
            header = member_header(f"{key}.{kind}", size)
            if offset != position + len(header):
                yield (
                    key,
                    f"the index places the {kind} at byte {offset}, the tar at {position + len(header)}",
                )
                return
            if shard[position:offset].tobytes() != header:
                yield key, f"the tar header of the {kind} is not the one written"
            position = offset + size
            if shard[position : position + -size % BLOCK_BYTES].any():
                yield key, f"the padding after the {kind} is not zero"
            position += -size % BLOCK_BYTES
    if shard[position:].tobytes() != END:
        yield "", f"the archive's end at byte {position} is not the one written"


class TarShard:
    """A `Shard` in one mapped tar. The arrays of its records are views into the map."""

    def __init__(self, store: Path, index: TarIndex) -> None:
        self.index = index
        self._store = store
        self._mapped: MappedFile | None = None

    @property
    def _file(self) -> MappedFile:
        """Made without a lock: a process forked while another thread holds one would wait for it for ever."""
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

    def prefetch(self, row: int) -> None:
        """See `Shard.prefetch`."""
        self._file.prefetch(self._span(row, "array")[0], self._span(row, "info")[1])

    def fetch(self, row: int) -> None:
        """See `Shard.fetch`."""
        self._file.fetch(self._span(row, "array")[0], self._span(row, "info")[1])

    def check(self, progress: OnProgress) -> Iterator[Damage]:
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


class WebDataset:
    """The `Backend` of this format."""

    name = "webdataset"

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

        def write_files(staged: Staging) -> TarIndex:
            out = staged.file(folder.path / tar_name(number))
            return write_shard(out, records, number, recipe.fingerprint)

        return replace_shard(folder, number, (), write_files)

    def decode_index(self, data: bytes) -> ShardIndex:
        """See `Backend.decode_index`."""
        return decode_index(data)

    def open(self, folder: StoreFolder, index: ShardIndex) -> Shard:
        """See `Backend.open`."""
        if not isinstance(index, TarIndex):
            raise TypeError(f"{type(index).__name__} is no index of a tar")
        return TarShard(folder.path, index)

    def files(self, folder: StoreFolder) -> Mapping[int, Sequence[Path]]:
        """See `Backend.files`."""
        found = sorted((folder.path / "shards").glob("*.tar"))
        return {int(match[1]): [path] for path in found if (match := _NUMBERED.fullmatch(path.name))}

    def places(self, folder: StoreFolder) -> Sequence[Path]:
        """See `Backend.places`."""
        return [folder.path / "shards"]

    def metadata(
        self, folder: StoreFolder, recipe: Recipe, layout: tuple[Any, ...], clips: int
    ) -> Mapping[Path, bytes]:
        """None: a tar says all by itself."""
        return {}


WEBDATASET = WebDataset()
