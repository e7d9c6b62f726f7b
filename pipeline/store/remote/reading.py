"""Reading a store in an object store: small files whole, shards through the cache on this machine's disk.

Opening takes the seal, then every small file that it names, each compared with its digest, and the sizes of all shards
from a listing. They stay in `<cache>/stores/<seal>/<data set>/<store>`, so that the next opening takes only the seal. A
shard's files are fetched when it is first read, or before, verified by the digests in its index, and mapped as those of
any store.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from caeav.manifests.core.atomic import make_folder
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import file_sha256
from caeav.manifests.keys import slug
from caeav.pipeline.store.backend import Backend, FileFacts, Shard, ShardIndex
from caeav.pipeline.store.errors import DamagedStore, IncompleteStore, StoreError
from caeav.pipeline.store.layout import (
    FOLDER_PATTERN,
    Seal,
    StoreFolder,
    parse_recipe,
    parse_seal,
)
from caeav.pipeline.store.reader import ShardFiles, StoreReader
from caeav.pipeline.store.remote.ahead import Ahead
from caeav.pipeline.store.remote.bucket import Bucket
from caeav.pipeline.store.remote.cache import TOUCH_S, ShardCache, cache_folder, cache_limit
from caeav.pipeline.store.remote.faults import ObjectGone, Patience
from caeav.pipeline.store.remote.url import Url
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.state import PublishedShards, StoreState, inspect

SHARDS_AHEAD = 4
"""Shards fetched ahead at the same time; each comes in parts too."""
AT_ONCE = 32
"""Small objects asked for at the same time."""


class RemoteFiles(ShardFiles):
    """The files of a store's shards, fetched from its address into the cache when they are needed.

    `room`: bytes that shards fetched ahead may take, half of the cache unless several stores share it.
    """

    def __init__(
        self, bucket: Bucket, folder: StoreFolder, indexes: PublishedShards, cache: ShardCache
    ) -> None:
        self.url = str(bucket.url)
        self.cache = cache
        self._bucket, self._folder, self._indexes = bucket, folder, indexes
        self._touched: dict[int, float] = {}
        self.ahead = self._new_ahead(cache.limit)

    def _new_ahead(self, room: int) -> Ahead:
        return Ahead(self._bring, lambda number: self._indexes.facts[number].size, room, SHARDS_AHEAD)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ahead": self.ahead.room, "_touched": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.ahead = self._new_ahead(state["ahead"])

    def open(self, backend: Backend, folder: StoreFolder, index: ShardIndex) -> Shard:
        """Open a shard, fetching what is not at hand; its files are mapped before others may take their room."""
        with self.cache.holding(index.files, self._fetch):
            for facts in index.files:
                _link(self.cache.path(facts), folder.path / facts.name)
            shard = backend.open(folder, index)
            shard.prefetch(0)
        self._touched[index.number] = time.monotonic()
        return shard

    def used(self, index: ShardIndex) -> None:
        """See `ShardFiles.used`."""
        self.ahead.read(index.number)
        now = time.monotonic()
        if now - self._touched.get(index.number, 0.0) > TOUCH_S:
            self._touched[index.number] = now
            self.cache.touch(index.files)

    def expect(self, numbers: Iterable[int]) -> None:
        """See `ShardFiles.expect`."""
        self.ahead.expect(numbers)

    def soon(self, number: int) -> bool:
        """See `ShardFiles.soon`."""
        if all(map(self.cache.has, self._indexes[number].files)):
            return True
        self.ahead.soon(number)
        return False

    def gone(self, shards: Mapping[int, Shard]) -> Sequence[int]:
        """See `ShardFiles.gone`."""
        return [n for n, shard in shards.items() if not all(map(self.cache.has, shard.index.files))]

    def renew(self, index: ShardIndex) -> bool:
        """See `ShardFiles.renew`: a file that was damaged on this machine's disk is fetched again."""
        return self.cache.drop_damaged(index.files)

    def _bring(self, number: int) -> None:
        self.cache.bring(self._indexes[number].files, self._fetch)

    def _fetch(self, facts: FileFacts, out: BinaryIO) -> None:
        def write(at: int, data: bytes) -> None:
            out.seek(at)
            out.write(data)

        self._bucket.fetch(facts.name, facts.bytes, facts.sha256, write)


def open_remote(url: str, home: Home, *, patience: Patience | None = None) -> StoreReader:
    """Open the finished store at an address; what comes from it is kept in `home`'s cache.

    Raises `IncompleteStore` for one that is being published, `DamagedStore` for one whose objects are not what was
    put there, `RemoteError` where they cannot be had, all naming the address.
    """
    bucket = Bucket(url, patience=patience)
    folder = mirror(bucket, cache_folder(home) / "stores")
    state = inspect_remote(bucket, folder)
    cache = ShardCache(cache_folder(home) / "shards", cache_limit())
    return StoreReader(state, RemoteFiles(bucket, folder, state.indexes, cache))


def inspect_remote(bucket: Bucket, folder: StoreFolder) -> StoreState:
    """What `inspect` finds: small files in `folder`, shards in the object store. Raises `StoreError`."""
    there = bucket.list()

    def size_of(name: str) -> int | None:
        return there[name].size if name in there else None

    try:
        state = inspect(folder.path, size_of=size_of)
        if state.problems:
            raise state.problems[0].error(folder.path, len(state.problems) - 1)
    except StoreError as error:
        raise at_address(error, folder, bucket.url) from error
    if state.missing or state.seal is None:
        raise at_address(state.incomplete(), folder, bucket.url)
    return state


def at_address(error: StoreError, folder: StoreFolder, url: Url) -> StoreError:
    """An error about the files in `folder` as one about the store at an address."""
    return type(error)(
        error.problem.replace(str(folder.path), str(url)),
        hint=f"`caeav store verify {url}` lists all that is wrong; remove these objects there, then `caeav store push` "
        "from a sound store sends them again",
    )


def mirror(bucket: Bucket, folder: Path) -> StoreFolder:
    """Bring the small files of a finished store into a folder below `folder`; they are those that its seal names."""
    check_address(bucket.url)
    data = read_seal(bucket)
    place = folder / hashlib.sha256(data).hexdigest()[:16] / slug(bucket.url.parent.name)
    store = StoreFolder(place / bucket.url.name)
    seal = decode_seal(bucket, data)
    recipe = bucket.read("recipe.json")
    try:
        fingerprint = parse_recipe(recipe, store.recipe).fingerprint
    except DamagedStore as error:
        raise at_address(error, store, bucket.url) from None
    if fingerprint != seal.fingerprint:
        raise DamagedStore(
            f"{bucket.address('complete.json')}: belongs to another recipe",
            hint="publish it again: `caeav store push ... --replace`",
        )
    absent = [name for name, sha256 in seal.sha256.items() if not _holds(store.path / name, sha256)]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(
            threads.map(
                lambda name: _keep(store.path / name, bucket.read_verified(name, seal.sha256[name])), absent
            )
        )
    _keep(store.recipe, recipe)
    _keep(store.seal, data)
    return store


def check_address(url: Url) -> None:
    """Raises `StoreError` where an address does not end in the name of a store's folder."""
    if not FOLDER_PATTERN.fullmatch(Slice.of_folder(url.name)[0]):
        raise StoreError(
            f"{url} is not the address of a store: {url.name!r} is no store's name",
            hint=f"look which are there: caeav store ls {url}",
        )


def read_seal(bucket: Bucket) -> bytes:
    """The bytes of a store's seal; raises `IncompleteStore` where it has none yet, `StoreError` where no store is."""
    try:
        return bucket.read("complete.json")
    except ObjectGone:
        pass
    try:
        bucket.size("recipe.json")
    except ObjectGone:
        raise StoreError(
            f"{bucket.url} holds no store", hint=f"look which are there: caeav store ls {bucket.url.parent}"
        ) from None
    raise IncompleteStore(
        f"{bucket.url} is not finished: its seal is not there yet",
        hint="run the command that publishes it again; it goes on with what is missing",
    )


class Source(Protocol):
    """Where a store comes from; names are those of its files."""

    def address(self, name: str = "") -> str:
        """What messages call a file, or the whole."""
        ...

    def read(self, name: str) -> bytes:
        """A small file whole; raises `ObjectGone` where there is none."""
        ...

    def read_verified(self, name: str, sha256: str) -> bytes:
        """A small file of this sha256; raises `WrongBytes` for another one."""
        ...

    def fetch(self, name: str, size: int, sha256: str, write: Callable[[int, bytes], object]) -> None:
        """Give a file to `write(offset, bytes)` in order; raises `WrongBytes` unless length and sha256 are these."""
        ...


def decode_seal(source: Source, data: bytes) -> Seal:
    """The bytes of a seal -> seal; raises `DamagedStore` naming its address."""
    try:
        return parse_seal(data, Path("complete.json"))
    except DamagedStore:
        raise DamagedStore(
            f"{source.address('complete.json')}: not a seal as this program writes it",
            hint="publish it again: `caeav store push ... --replace`",
        ) from None


def share_room(readers: Sequence[StoreReader]) -> int:
    """Divide the cache among the remote ones of these readers by their bytes; returns its limit, 0 without any.

    Raises `CaeavError` where the cache cannot hold a shard of each.
    """
    remote = [(reader, files) for reader in readers if isinstance(files := reader.files, RemoteFiles)]
    if not remote:
        return 0
    cache = remote[0][1].cache
    cache.check(sum(max(reader.shard_sizes(), default=0) for reader, _ in remote))
    total = sum(reader.shard_bytes for reader, _ in remote)
    for reader, files in remote:
        files.ahead.room = max(1, cache.limit * reader.shard_bytes // max(1, total))
    return cache.limit


def _holds(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


def _keep(path: Path, data: bytes) -> None:
    """Give a file this content in one step. It is compared with its digest at every opening, so it may be lost."""
    make_folder(path.parent)
    temp = path.with_name(f".part-{os.getpid()}-{path.name}")
    temp.write_bytes(data)
    temp.replace(path)


def _link(target: Path, link: Path) -> None:
    """A symbolic link to a file of the cache, in the place where the store's folder has that file."""
    make_folder(link.parent)
    with suppress(FileExistsError):
        link.symlink_to(os.path.relpath(target, link.parent))
