"""A shard as a plain tar: `<key>.safetensors` then `<key>.json`, record after record.

Any tar or WebDataset reader streams it. Times, owners and modes are fixed and keys decide the order, so the
bytes are a function of the records; a name too long for a ustar header gets a pax one. The same function
that writes the member headers says, when a shard is verified, what they must be: no tar file is ever parsed.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from caeav.manifests.key_index import Keys
from caeav.manifests.core.atomic import Output
from caeav.pipeline.store.payload import Bytes, crc32c, encode_arrays, encode_info
from caeav.pipeline.store.record import Record
from caeav.pipeline.store.webdataset.index import ENTRY, TarIndex

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)


@dataclass(frozen=True)
class EncodedRecord:
    """One record as it lies in a shard: the array payload in chunks, and the facts."""

    key: str
    payload: list[Bytes]
    info: bytes

    @classmethod
    def of(cls, record: Record) -> EncodedRecord:
        """Encode a record; the same record always gives the same bytes."""
        return cls(record.key, encode_arrays(record.arrays), encode_info(record.info))


def member_header(name: str, size: int) -> bytes:
    """The tar header of a plain file: mode 0644, no times, no owners."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK_BYTES)


class _Digesting:
    """A file that counts and digests what is written to it."""

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
    for record in map(EncodedRecord.of, records):
        array_bytes = sum(len(chunk) for chunk in record.payload)
        sink.write(member_header(f"{record.key}.safetensors", array_bytes))
        array_offset = sink.position
        for chunk in record.payload:
            sink.write(chunk)
        sink.write(_padding(array_bytes))
        sink.write(member_header(f"{record.key}.json", len(record.info)))
        info_offset = sink.position
        sink.write(record.info)
        sink.write(_padding(len(record.info)))
        keys.append(record.key)
        sums = crc32c(record.payload), crc32c([record.info])
        rows.append((array_offset, array_bytes, info_offset, len(record.info), *sums, 0))
    sink.write(END)
    return TarIndex(
        number, fingerprint, sink.position, sink.hexdigest(), Keys.of(keys), np.array(rows, dtype=ENTRY)
    )


def structure_differences(shard: Bytes, index: TarIndex) -> Iterator[tuple[str, str]]:
    """Key and fact of each place where the tar around the records is not what the index says (empty key: the end)."""
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
