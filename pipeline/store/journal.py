"""Finished records of shards that are not complete yet, kept on the disk so that an interruption costs none of them.

`journal/<shard>.log` begins with a head of 64 bytes (magic, version, shard, recipe fingerprint, crc32c). An entry per
record follows, in the order in which they were finished: a head of 64 bytes (sizes, crc32c of what follows, digest of
the clip's source, crc32c of the head itself), the key, the facts, and the arrays as in a shard. An entry may also say
that a record no longer counts. Nothing is trusted unchecked: reading ends at the first broken head; what follows is cut
off and made again. A written record outlives the process at once, and a power cut from the next `sync` on. Readers of a
store never look here, and a journal is removed when its shard is published.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np

from caeav.manifests.clip import Clip
from caeav.manifests.core import atomic
from caeav.manifests.core.util import counted
from caeav.manifests.keys import KEY_PATTERN
from caeav.pipeline.store.errors import DamagedStore
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.payload import (
    ALIGNMENT,
    MAX_INFO_BYTES,
    BadPayload,
    Bytes,
    crc32c,
    decode_arrays,
    decode_info,
    encode_arrays,
    encode_info,
)
from caeav.pipeline.store.record import Record

MAGIC, VERSION = b"CAEAVJNL", 1
HEAD_BYTES = 64
MAX_KEY_BYTES = 1024
KEPT, DROPPED = 1, 2
_FILE = struct.Struct("<8sII32s12x")
_ENTRY = struct.Struct("<IIQII32s4x")  # what it is, bytes of key, arrays and facts, crc32c, source
_NUMBERED = re.compile(r"(\d{6,9})\.log")


def source_of(clip: Clip) -> bytes:
    """sha256 of what decides a clip's tokens: a record counts only for the manifest row it was made for."""
    key, media, start_s, seconds = clip.source()
    return hashlib.sha256(json.dumps([key, media, float(start_s), float(seconds)]).encode()).digest()


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where an entry lies, the sizes of its key, facts and arrays, and the digests they must have."""

    start: int
    key_bytes: int
    info_bytes: int
    array_bytes: int
    crc: int
    source: bytes

    @property
    def texts(self) -> int:
        """Bytes of key and facts, with the padding that aligns the arrays."""
        bare = self.key_bytes + self.info_bytes
        return bare + -bare % ALIGNMENT

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.start + HEAD_BYTES + self.texts + self.array_bytes + -self.array_bytes % ALIGNMENT


def _sealed(head: bytes) -> bytes:
    return head + crc32c([head]).to_bytes(4, "little")


def _entry_bytes(kind: int, key: str, source: bytes, record: Record | None) -> bytes:
    name = key.encode("ascii")
    info = encode_info(record.info) if record else b""
    arrays = encode_arrays(record.arrays) if record else []
    size = sum(len(chunk) for chunk in arrays)
    texts = name + info + bytes(-(len(name) + len(info)) % ALIGNMENT)
    crc = crc32c([texts, *arrays])
    head = _sealed(_ENTRY.pack(kind, len(name), size, len(info), crc, source))
    return b"".join([head, texts, *(chunk.data for chunk in arrays), bytes(-size % ALIGNMENT)])


@dataclass
class _Journal:
    """The journal of one shard: the entries that count, where its sound part ends, and the file while it is written to.

    `unsynced`: a power cut could take its last bytes; `listed`: its name in the folder is safe.
    """

    path: Path
    number: int
    entries: dict[str, _Entry] = field(default_factory=dict)
    end: int = 0
    file: BinaryIO | None = None
    unsynced: bool = False
    listed: bool = False


class Journals:
    """The journals of one store, for its only writer."""

    def __init__(self, folder: StoreFolder, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = bytes.fromhex(fingerprint)
        self._open: dict[int, _Journal] = {}

    def resume(self, wanted: Callable[[int], Mapping[str, bytes]]) -> list[str]:
        """Read what an earlier writer left; `wanted(shard)` gives the sources of the clips that are due in a shard.

        Removes what is torn, damaged or not due. Returns remarks on what was found.
        """
        remarks: list[str] = []
        found = 0
        for number, path in journal_files(self._folder):
            journal = _Journal(path, number)
            left = self._read(journal)
            sources = wanted(number)
            journal.entries = {
                key: entry for key, entry in journal.entries.items() if sources.get(key) == entry.source
            }
            if left:
                name = self._folder.name_of(path)
                remarks.append(
                    f"{name}: {counted(left, 'byte')} torn or damaged, left out; what was in them is made again"
                )
            if not journal.entries:
                atomic.unpublish(path)
                continue
            if path.stat().st_size > journal.end:
                atomic.cut_file(path, journal.end)
            journal.unsynced = True  # its writer may have been killed before it synced
            self._open[number] = journal
            found += len(journal.entries)
        if found:
            shards = counted(len(self._open), "shard")
            remarks.append(
                f"{counted(found, 'clip')} of {shards} not complete yet were finished before and need not be made again"
            )
        return remarks

    def keys(self, number: int) -> Collection[str]:
        """Keys of the kept records of a shard."""
        return self._open[number].entries.keys() if number in self._open else ()

    def read(self, number: int, key: str) -> Record:
        """A kept record, checked; raises `DamagedStore`."""
        journal = self._open[number]
        entry = journal.entries[key]
        begin, size = entry.start + HEAD_BYTES, entry.texts + entry.array_bytes
        data: Bytes = np.fromfile(journal.path, np.uint8, size, offset=begin)
        if data.size != size or crc32c([data]) != entry.crc:
            self._damaged(journal.path, f"the record of {key} is not the one written")
        info = data[entry.key_bytes : entry.key_bytes + entry.info_bytes].tobytes()
        try:
            return Record(key, decode_arrays(data[entry.texts :]), decode_info(info))
        except BadPayload as error:
            self._damaged(journal.path, f"the record of {key}: {error}")

    def add(self, number: int, record: Record, source: bytes) -> None:
        """Keep a finished record, unless one of its clip is kept already."""
        if record.key not in self.keys(number):
            data = _entry_bytes(KEPT, record.key, source, record)
            start = self._append(number, data)
            _, key_bytes, array_bytes, info_bytes, crc, _ = _ENTRY.unpack_from(data)
            entry = _Entry(start, key_bytes, info_bytes, array_bytes, crc, source)
            self._open[number].entries[record.key] = entry

    def forget(self, number: int, key: str) -> None:
        """Make a kept record, if there is one, count no longer, durably."""
        if key in self.keys(number):
            entry = self._open[number].entries.pop(key)
            self._append(number, _entry_bytes(DROPPED, key, entry.source, None))
            self._sync(self._open[number])

    def drop(self, number: int) -> None:
        """Remove a shard's journal."""
        journal = self._open.pop(number, None)
        if journal is not None:
            if journal.file is not None:
                journal.file.close()
            atomic.unpublish(journal.path)

    def clear(self) -> None:
        """Remove all journals: the store is finished."""
        for number in list(self._open):
            self.drop(number)
        for _, path in journal_files(self._folder):
            atomic.unpublish(path)
        if self._folder.journal.is_dir() and not any(self._folder.journal.iterdir()):
            atomic.remove_folder(self._folder.journal)

    @property
    def unsynced(self) -> bool:
        """Whether a power cut could lose a record."""
        return any(journal.unsynced for journal in self._open.values())

    def sync(self) -> None:
        """Have every kept record on the disk."""
        for journal in self._open.values():
            self._sync(journal)

    def close(self) -> None:
        """Close the files, which neither loses nor syncs anything."""
        for journal in self._open.values():
            if journal.file is not None:
                with suppress(OSError):  # each entry was flushed when it was written
                    journal.file.close()
                journal.file = None

    def _sync(self, journal: _Journal) -> None:
        if journal.unsynced:
            atomic.sync_file(self._opened(journal))
            if not journal.listed:
                atomic.sync_folder(journal.path.parent)
            journal.unsynced, journal.listed = False, True

    def _opened(self, journal: _Journal) -> BinaryIO:
        if journal.file is None:
            journal.file = journal.path.open("ab" if journal.end else "wb")
        return journal.file

    def _append(self, number: int, data: bytes) -> int:
        """Append an entry and return where it begins; one that cannot be written whole is removed again."""
        path = self._folder.journal / f"{number:06d}.log"
        journal = self._open.setdefault(number, _Journal(path, number))
        head = b""
        if not journal.end:
            atomic.make_folder(path.parent)
            head = _sealed(_FILE.pack(MAGIC, VERSION, number, self._fingerprint))
        try:
            file = self._opened(journal)
            atomic.write_bytes(file, head + data)
            file.flush()
        except BaseException:
            self._undo(journal)
            raise
        journal.unsynced = True
        start = journal.end + len(head)
        journal.end = start + len(data)
        return start

    def _undo(self, journal: _Journal) -> None:
        with suppress(OSError):
            if journal.file is not None:
                journal.file.close()
            if journal.end:
                atomic.cut_file(journal.path, journal.end)
            else:
                atomic.unpublish(journal.path)
        journal.file = None
        if not journal.end:
            self._open.pop(journal.number, None)

    def _read(self, journal: _Journal) -> int:
        """Find the entries that count; returns how many bytes are torn or damaged."""
        with _plain(journal.path) as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(HEAD_BYTES) != _sealed(
                _FILE.pack(MAGIC, VERSION, journal.number, self._fingerprint)
            ):
                return size
            journal.end = HEAD_BYTES
            damaged = 0
            for kind, key, entry, sound in _entries(file, size):
                journal.end = entry.end
                if kind == DROPPED or not sound:  # a damaged entry does not revive an older one
                    journal.entries.pop(key, None)
                    damaged += 0 if sound else entry.end - entry.start
                else:
                    journal.entries[key] = entry
            return damaged + size - journal.end

    def _damaged(self, path: Path, what: str) -> NoReturn:
        raise DamagedStore(
            f"{path}: {what}", hint="run the same command again: what is damaged is left out and made again"
        )


def _entries(file: BinaryIO, size: int) -> Iterator[tuple[int, str, _Entry, bool]]:
    """Kind, key, place and soundness of each entry, up to the first broken head."""
    position = HEAD_BYTES
    while position + HEAD_BYTES <= size:
        file.seek(position)
        head = file.read(HEAD_BYTES)
        if len(head) != HEAD_BYTES or _sealed(head[: _ENTRY.size]) != head:
            return
        kind, key_bytes, array_bytes, info_bytes, crc, source = _ENTRY.unpack_from(head)
        entry = _Entry(position, key_bytes, info_bytes, array_bytes, crc, source)
        allowed = kind in (KEPT, DROPPED) and key_bytes <= MAX_KEY_BYTES and info_bytes <= MAX_INFO_BYTES
        if not allowed or entry.end > size:
            return
        data = file.read(entry.texts + array_bytes)
        key = data[:key_bytes].decode("ascii", "replace")
        sound = crc32c([data]) == crc and KEY_PATTERN.fullmatch(key) is not None
        yield kind, key, entry, sound
        position = entry.end


def kept_remarks(folder: StoreFolder) -> list[str]:
    """Remarks about the journals of a store that is not finished."""
    kept: set[tuple[int, str]] = set()
    files = journal_files(folder)
    for number, path in files:
        with _plain(path) as file:
            for kind, key, _, sound in _entries(file, os.fstat(file.fileno()).st_size):
                (kept.add if kind == KEPT and sound else kept.discard)((number, key))
    if not kept:
        return []
    return [f"journal: {counted(len(kept), 'clip')} finished, in no shard yet; the next run takes them up"]


def _plain(path: Path) -> BinaryIO:
    """The file itself, opened; never what a link in a stranger's store points to."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise DamagedStore(f"{path} is no plain file", hint=f"remove {path}")
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def journal_files(folder: StoreFolder) -> list[tuple[int, Path]]:
    """The journals on the disk with their shards, ascending."""
    paths = folder.journal.iterdir() if folder.journal.is_dir() else ()
    found = ((match, path) for path in paths if (match := _NUMBERED.fullmatch(path.name)))
    return sorted((int(match[1]), path) for match, path in found)


def journal_bytes(folder: StoreFolder) -> int:
    """Bytes that journals take on the disk."""
    return sum(path.lstat().st_size for _, path in journal_files(folder))
