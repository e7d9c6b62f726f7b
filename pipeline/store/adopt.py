"""Taking over finished shards of another store without copying them: hard links, and copies only where there are none.

Two stores then share the bytes of a shard. That is safe because nothing writes into a published file: a shard that
changes is a new file that takes the old one's place in one store, and `repair`, which cuts files, copies a shared one
first (`atomic.resize_file`). What damages the disk under a shared file damages it in both stores.

Order on the disk: files of shards, their folders synced, their digests compared, then indexes, then the copies of
indexes. So a shard exists when all of it is there and right, and breaking off at any step leaves names that the next
attempt finds.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from caeav.manifests.core import atomic
from caeav.manifests.core.util import file_sha256, ignore, usable_cores
from caeav.pipeline.store.backend import Backend, FileFacts, ShardIndex
from caeav.pipeline.store.errors import DamagedStore, Problem
from caeav.pipeline.store.layout import StoreFolder, read_capped

NO_LINK = {
    errno.EXDEV: "other file system",
    errno.EMLINK: "too many links to one file",
    errno.EPERM: "hard links are not permitted there",
    errno.EOPNOTSUPP: "the file system has no hard links",
    errno.ENOSYS: "the file system has no hard links",
    errno.EINVAL: "the file system has no hard links",
}
"""Errors of `link` after which a copy may succeed, and what they mean."""
MAX_THREADS = 8


@dataclass
class Adopted:
    """How files came into a store: how many were linked, and copied by the reason why they could not be."""

    linked: int = 0
    copied: Counter[str] = field(default_factory=Counter)

    def add(self, why_copied: str) -> None:
        """Count a file; an empty reason means that it was linked."""
        if why_copied:
            self.copied[why_copied] += 1
        else:
            self.linked += 1


def adopt_shards(
    folder: StoreFolder,
    backend: Backend,
    source: StoreFolder,
    indexes: Sequence[ShardIndex],
    adopted: Adopted,
    *,
    check: bool = True,
) -> None:
    """Publish shards of `source` in `folder`, which has no index of them; files are counted in `adopted`.

    With `check` each file is read once and compared with the digest in its index; a copied one always is. Raises
    `DamagedShard` naming file and clip in `source`, `DamagedStore` when `source` is written meanwhile.
    """
    unread = []
    for index in indexes:
        for facts in index.files:
            why_copied, digest = _take(source.path / facts.name, folder.path / facts.name)
            adopted.add(why_copied)
            if (folder.path / facts.name).stat().st_size != facts.bytes or digest not in ("", facts.sha256):
                raise _damaged(source, backend, index, facts)
            if not digest:
                unread.append((index, facts))
    _sync(folder.path / facts.name for index in indexes for facts in index.files)
    if check:
        with ThreadPoolExecutor(min(MAX_THREADS, usable_cores())) as threads:
            digests = threads.map(lambda one: file_sha256(folder.path / one[1].name), unread)
            for (index, facts), digest in zip(unread, digests, strict=True):
                if digest != facts.sha256:
                    raise _damaged(source, backend, index, facts)
    for old, new in ((source.index, folder.index), (source.spare, folder.spare)):
        for index in indexes:
            _take_index(source, old(index.number), new(index.number), index.encode())
        _sync(new(index.number) for index in indexes)


def _take(old: Path, new: Path) -> tuple[str, str]:
    """Give `new` the bytes of `old` -> why it was copied, and the sha256 of a copy; both empty for a link."""
    old = old.resolve()  # the file itself: a link to a symbolic link would be one too
    if os.path.lexists(new):
        if not new.is_symlink() and new.samefile(old):
            return "", ""  # an attempt that broke off had linked it
        atomic.remove(new)
    atomic.make_folder(new.parent)
    try:
        atomic.link_file(old, new)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        return NO_LINK[error.errno], _copy(old, new)
    return "", ""


def _copy(old: Path, new: Path) -> str:
    """Copy a file durably -> its sha256 (hex)."""
    sha256 = hashlib.sha256()
    with old.open("rb") as file, atomic.publishing(new) as out:
        while data := file.read(atomic.COPY_BYTES):
            out.write(data)
            sha256.update(data)
    return sha256.hexdigest()


def _take_index(source: StoreFolder, old: Path, new: Path, wanted: bytes) -> None:
    """Give `new` the index `wanted`: that of `source` if it is this one, or else written anew."""
    try:
        same = read_capped(old) == wanted
    except (FileNotFoundError, DamagedStore):
        same = False
    if not same:  # a lost or damaged copy of the index
        atomic.publish_bytes(new, wanted)
        return
    _take(old, new)
    if read_capped(new) != wanted:
        atomic.remove(new)
        what = "not the index that was there when the store was opened: the store was written meanwhile"
        raise Problem(source.name_of(old), what).error(source.path)


def _damaged(source: StoreFolder, backend: Backend, index: ShardIndex, facts: FileFacts) -> DamagedStore:
    """The error for a file that is not what its index says, as exact as reading all of its shard makes it."""
    for found in backend.open(source, index).check(ignore):
        return Problem(found.where, found.what, found.key, index.number).error(source.path)
    what = "not the bytes that its index says: the store was written meanwhile"
    return Problem(facts.name, what, shard=index.number).error(source.path)


def _sync(paths: Iterable[Path]) -> None:
    for folder in dict.fromkeys(path.parent for path in paths):
        atomic.sync_folder(folder)
