"""What is known of the media a store was made from, kept beside the store and never in it.

The bytes of a store are a function of manifest and recipe, whereas size, time and digest of a file are facts of one
machine on one day; so they lie in `media.<store>` beside the store's folder. The entry of a file is written before its
clips are decoded: a stored clip was made of the file its entry describes, or of a later one, which is then noticed.

The digest covers the length and the first and last 64 KiB: a file that is replaced, cut, appended to or encoded again
is noticed, a changed byte in the middle of a large one is not. Files of up to `WHOLE_BYTES` are digested as a whole
too, after they were decoded, while their pages are at hand. Where media are several files (a wav with its frames) both
digests cover all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np

from caeav.manifests.core.atomic import make_folder, publish_bytes, temp_path, unpublish

FORMAT = "caeav-media"
VERSION = 1
PREFIX = "media."
END_BYTES = 1 << 16
DIGEST_BYTES = 16
WHOLE_BYTES = 64 << 20
DOUBTFUL_S = 3.0
"""A file as young as this when it was looked at may still change within one tick of its file system's clock."""
UNSURE = 0
"""The stamp of such a file: next time digests are compared, not times."""
LET_GO = -1
"""The stamp of a file that is gone, as the user was told and accepted."""
NO_DIGEST = bytes(DIGEST_BYTES)
"""The digest of no file, where clips were made of several versions of one: they all have to be made again."""
AT_ONCE = 1024
MAX_THREADS = 8

Made = TypeVar("Made")
FilesOf = Callable[[str], Sequence[str]]
"""The path that a manifest names -> all files that these media consist of."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of the media of one name: bytes in all, a stamp of their time, the digest, and that of all bytes.

    A digest that was not taken is empty.
    """

    size: int
    stamp: int
    digest: bytes = b""
    whole: bytes = b""


@dataclass(frozen=True)
class MediaChange:
    """A stored clip whose media are not those it was made of: `changed`, `gone`, or `moved` to another name."""

    store: str
    key: str
    media: str
    what: Literal["changed", "gone", "moved"]
    detail: str

    def __str__(self) -> str:
        return f"{self.what} {self.key}: {self.detail}"


def record_path(store: Path) -> Path:
    """The record of the store in this folder."""
    return store.with_name(PREFIX + store.name)


def read_record(store: Path) -> dict[str, Facts] | None:
    """Media, as manifests name them -> what was seen of each; None without a record or with a damaged one."""
    try:
        data = record_path(store).read_bytes()
    except OSError:
        return None
    head, _, body = data.partition(b"\n")
    try:
        facts = json.loads(head)
        count, names = facts["files"], facts["names"]
        sound = (facts["format"], facts["version"]) == (FORMAT, VERSION) and facts["sha256"] == _sha256(body)
        if not sound or len(body) != names + count * (16 + 2 * DIGEST_BYTES):
            return None
        listed = body[:names].decode("utf-8", "surrogatepass").split("\0") if count else []
        numbers = np.frombuffer(body, "<i8", 2 * count, names).tolist()
    except (ValueError, KeyError, TypeError):
        return None
    if len(listed) != count:
        return None
    ends = range(names + 16 * count, len(body) + 1, DIGEST_BYTES)
    taken = [body[at : at + DIGEST_BYTES] for at in ends[:-1]]
    return {
        name: Facts(
            numbers[i], numbers[count + i], taken[i], taken[count + i].strip(b"\0") and taken[count + i]
        )
        for i, name in enumerate(listed)
    }


def write_record(store: Path, seen: Mapping[str, Facts]) -> None:
    """Publish the record of a store, unless it says the same already."""
    names = "\0".join(seen).encode("utf-8", "surrogatepass")
    numbers = np.array([[f.size for f in seen.values()], [f.stamp for f in seen.values()]], "<i8")
    taken = [f.digest for f in seen.values()] + [f.whole or NO_DIGEST for f in seen.values()]
    body = names + numbers.tobytes() + b"".join(taken)
    head = {"format": FORMAT, "version": VERSION, "files": len(seen), "names": len(names)}
    data = json.dumps({**head, "sha256": _sha256(body)}).encode() + b"\n" + body
    path = record_path(store)
    if path.is_file() and path.read_bytes() == data:
        unpublish(temp_path(path))  # of a process that was killed
        return
    make_folder(path.parent)
    publish_bytes(path, data)


def carry_record(sources: Sequence[Path], made: Path) -> None:
    """Give a store that was made of other stores the records of their media."""
    seen: dict[str, Facts] = {}
    for source in sources:
        for name, facts in (read_record(source) or {}).items():
            other = seen.setdefault(name, facts)
            if other.digest != facts.digest or (other.whole and facts.whole and other.whole != facts.whole):
                seen[name] = Facts(facts.size, UNSURE, NO_DIGEST)
    if seen:
        write_record(made, seen)


def read_records(dataset: Path) -> dict[str, Facts]:
    """What is recorded for any store in a data set's folder, without the files that a user gave up in one of them."""
    seen: dict[str, Facts] = {}
    gone: set[str] = set()
    for path in sorted(dataset.glob(f"{PREFIX}*")):
        record = read_record(dataset / path.name.removeprefix(PREFIX)) or {}
        gone |= {name for name, facts in record.items() if facts.stamp == LET_GO}
        seen |= record
    return {name: facts for name, facts in seen.items() if name not in gone}


def remove_record(store: Path) -> None:
    """Remove the record of a store, if there is one."""
    unpublish(record_path(store))


def look(root: Path, media: Sequence[str], files_of: FilesOf) -> dict[str, Facts | None]:
    """Size and stamp of each of the media below `root`, None for what is not a file there; nothing is read."""
    now = time.time()

    def one(name: str) -> Facts | None:
        return _look(os.path.join(root, name), files_of, now)  # noqa: PTH118 - of 100,000 files

    return dict(zip(media, _each(one, media), strict=True))


def digests(root: Path, media: Sequence[str], files_of: FilesOf) -> dict[str, bytes]:
    """The digest of each of the media below `root`; empty for what cannot be read."""

    def one(name: str) -> bytes:
        return _digest(files_of(os.path.join(root, name)))  # noqa: PTH118

    return dict(zip(media, _each(one, media), strict=True))


def _each(work: Callable[[str], Made], names: Sequence[str]) -> Iterable[Made]:
    """`work` of each name, in order; many names are shared out to threads, since the work is waiting for a disk."""
    if len(names) < AT_ONCE:
        return list(map(work, names))
    with ThreadPoolExecutor(MAX_THREADS) as threads:
        parts = [names[first : first + AT_ONCE] for first in range(0, len(names), AT_ONCE)]
        return [x for part in threads.map(lambda some: list(map(work, some)), parts) for x in part]


def _look(path: str, files_of: FilesOf, now: float) -> Facts | None:
    size, stamps, newest = 0, [], 0
    for file in files_of(path):
        try:
            found = os.stat(file)  # noqa: PTH116
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        size += found.st_size
        stamps.append((os.path.basename(file), found.st_size, found.st_mtime_ns))  # noqa: PTH119
        newest = max(newest, found.st_mtime_ns)
    if newest / 1e9 > now - DOUBTFUL_S:
        return Facts(size, UNSURE)
    if len(stamps) == 1:
        return Facts(size, stamps[0][2])
    whole = hashlib.blake2b(repr(stamps).encode("utf-8", "surrogatepass"), digest_size=7)
    return Facts(size, int.from_bytes(whole.digest(), "little") or 1)


def whole_digest(root: Path, name: str, files_of: FilesOf) -> bytes:
    """The digest of all bytes of one of the media; empty if it cannot be read or has more than `WHOLE_BYTES`."""
    try:
        files = [Path(path) for path in files_of(os.path.join(root, name))]  # noqa: PTH118
        if sum(path.stat().st_size for path in files) > WHOLE_BYTES:
            return b""
        return digest_of_files(path.read_bytes() for path in files)
    except OSError:
        return b""


def digest_of_files(contents: Iterable[bytes]) -> bytes:
    """The digest of all bytes of media: the content of each of their files."""
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for data in contents:
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.digest()


def ends_digest(files: Iterable[tuple[int, Callable[[int, int], bytes]]]) -> bytes:
    """The digest of media: of each of their files the size, and a function that reads from one byte to another."""
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for size, read in files:
        whole.update(size.to_bytes(8, "little"))
        whole.update(read(0, min(size, END_BYTES)))
        if size > END_BYTES:
            whole.update(read(max(END_BYTES, size - END_BYTES), size))
    return whole.digest()


def _digest(files: Sequence[str]) -> bytes:
    def opened() -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
        for path in files:
            with open(path, "rb") as file:  # noqa: PTH123
                yield os.fstat(file.fileno()).st_size, partial(_read, file)

    try:
        return ends_digest(opened())
    except OSError:
        return b""


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
