"""What a shard format has to offer, and the table of formats by name: the one seam between the store and its files.

The store plans, locks, resumes, quarantines, seals, compares and refuses; a backend turns the records of one
shard into files with an index, and the files back into records it has checked. The index is a backend's own
bytes, published after the files it describes: what has no index does not exist. `testing.py` has the tests that
every backend must pass.

What an interrupted writer may have left in a store's folder: shards without index, temp files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from caeav.manifests.core.atomic import TEMP_PREFIX
from caeav.manifests.core.registry import Registry
from caeav.manifests.key_index import Keys
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Record

DEFAULT_BACKEND = "webdataset"
BACKEND_FIELD = "backend"
"""Recipe field that names the backend; absent for the default one, so that older recipes keep their fingerprint."""


class BadIndex(ValueError):
    """Bytes that are not an index; the text says what was seen and what is allowed."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file of a shard as it was written: its place relative to the store, its size and sha256 (hex)."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Damage:
    """One fact about a shard that is not as written: the file's place in the store, and the key where one is meant."""

    where: str
    what: str
    key: str = ""


class ShardIndex(Protocol):
    """What is known of a published shard: which one, of which recipe, the keys in it in order, and its files.

    `layout` is compared between the shards of a store (equal for all) and handed to `Backend.metadata`.
    """

    @property
    def number(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def keys(self) -> Keys: ...
    @property
    def files(self) -> tuple[FileFacts, ...]: ...
    @property
    def layout(self) -> tuple[Any, ...]: ...
    def encode(self) -> bytes:
        """The index file's bytes, a function of the shard's."""


class Shard(Protocol):
    """A published shard, open for reading. Files are mapped when first needed; arrays keep their map alive."""

    @property
    def index(self) -> ShardIndex: ...
    def record(self, row: int, *, check: bool = True) -> Record:
        """The record in that row of the index, arrays as stored and read-only.

        Raises `DamagedShard` naming file and key; with `check` false only lengths are checked.
        """

    def info(self, row: int) -> dict[str, Any]:
        """A record's facts alone, checked; the arrays are not touched."""

    def prefetch(self, row: int) -> None:
        """Have a record read from the disk while others are used; a hint."""

    def fetch(self, row: int) -> None:
        """Have a record in memory before returning; a hint, given by another thread than the one that reads."""

    def check(self, progress: Callable[[int], object]) -> Iterator[Damage]:
        """Read every byte once and say all that is not as written; `progress` is told bytes as they are read."""


class Backend(Protocol):
    """One shard format; without state."""

    name: str

    def write(
        self,
        folder: StoreFolder,
        number: int,
        recipe: Recipe,
        planned: Sequence[str],
        records: Iterable[Record],
        layout: tuple[Any, ...] | None,
    ) -> ShardIndex:
        """Publish the records, some of the planned keys in their order, as shard `number`, then its index.

        Replaces the shard there may be: its index is removed before its first file is (`spare.withdraw_index`, and
        `spare.publish_index` at the end). `layout` is that of the
        store's other shards; raises `StoreError` for records that do not fit it. The bytes are a function of
        the arguments.
        """

    def decode_index(self, data: bytes) -> ShardIndex:
        """The bytes of an index file -> index, every length checked before it is used; raises `BadIndex`."""

    def open(self, folder: StoreFolder, index: ShardIndex) -> Shard:
        """A published shard; its files are only looked at when something is read."""

    def files(self, folder: StoreFolder) -> Mapping[int, Sequence[Path]]:
        """Files of shards by number as they lie on the disk, with an index or without."""

    def places(self, folder: StoreFolder) -> Sequence[Path]:
        """Folders that shards are written into, where an interrupted writer may leave temp files."""

    def metadata(
        self, folder: StoreFolder, recipe: Recipe, layout: tuple[Any, ...], clips: int
    ) -> Mapping[Path, bytes]:
        """Files beside the shards that other programs need, for `clips` clips; this program reads none of them."""


backends: Registry[Backend] = Registry("store backend")
backends.register_lazily("webdataset", "caeav.pipeline.store.formats.webdataset:WEBDATASET")
backends.register_lazily("zarr", "caeav.pipeline.store.formats.zarr:ZARR")


def backend_of(recipe: Recipe) -> Backend:
    """The backend a recipe asks for; raises `StoreError` for one that is not there."""
    name = recipe.fields.get(BACKEND_FIELD, DEFAULT_BACKEND)
    if not isinstance(name, str) or name not in backends:
        raise StoreError(
            f"the recipe names the store backend {name!r}",
            hint=f"choose one of: {', '.join(backends.names())}",
        )
    return backends[name]


def backend_field(name: str) -> dict[str, str]:
    """The recipe fields that choose a backend: none for the default one; raises `StoreError` for unknown names."""
    if name not in backends:
        raise StoreError(
            f"unknown store backend {name!r}", hint=f"choose one of: {', '.join(backends.names())}"
        )
    return {} if name == DEFAULT_BACKEND else {BACKEND_FIELD: name}


def orphans(folder: StoreFolder, backend: Backend) -> list[Path]:
    """Files of shards without index: they do not exist, whoever wrote them was interrupted."""
    indexed = set(folder.published())
    return [
        path for number, paths in backend.files(folder).items() if number not in indexed for path in paths
    ]


def temp_files(folder: StoreFolder, backend: Backend) -> list[Path]:
    """Temp files of an interrupted writer."""
    places = [folder.path, folder.path / "index", folder.path / "spare", *backend.places(folder)]
    return sorted({path for place in places for path in place.glob(f"{TEMP_PREFIX}*") if path.is_file()})
