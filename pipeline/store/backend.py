"""What a shard format must provide, and the registry of formats: the only seam between a store and its files.

The store plans, locks, resumes, quarantines, seals, compares and refuses. A backend turns the records of one shard
into files and an index, and reads records back, checked. The index is bytes of the backend's own, published after the
files it describes: a shard without an index does not exist. `testing.py` has the tests that every backend must pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from caeav.manifests.core.atomic import TEMP_PREFIX
from caeav.manifests.core.registry import Registry
from caeav.manifests.core.util import OnProgress
from caeav.manifests.key_index import Keys
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Record

DEFAULT_BACKEND = "webdataset"
BACKEND_FIELD = "backend"
"""Recipe field that names the backend; absent for the default, so that older recipes keep their fingerprint."""


class BadIndex(ValueError):
    """Bytes that are not an index; the text says what was seen and what is allowed."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file of a shard as it was written: its path relative to the store, its size and sha256 (hex)."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing in a shard that is not as written: the file's path in the store, the fact, and the key of a record."""

    where: str
    what: str
    key: str = ""


class ShardIndex(Protocol):
    """What is known of a published shard: its number, its recipe's fingerprint, its keys in order, and its files.

    `layout` must be equal for all shards of a store and is given to `Backend.metadata`.
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
        """The bytes of the index file, a function of the shard's."""


class Shard(Protocol):
    """A published shard, open for reading. Files are mapped when they are first needed; arrays keep their map alive."""

    @property
    def index(self) -> ShardIndex: ...
    def record(self, row: int, *, check: bool = True) -> Record:
        """The record in this row of the index, its arrays as stored and read-only.

        Raises `DamagedShard` naming file and key. Without `check` only lengths are checked.
        """

    def info(self, row: int) -> dict[str, Any]:
        """The facts of a record alone, checked; its arrays are not touched."""

    def prefetch(self, row: int) -> None:
        """Ask the system to read a record soon, while others are in use. Only a hint."""

    def fetch(self, row: int) -> None:
        """Have a record in memory before returning. Only a hint, from another thread than the one that reads."""

    def check(self, progress: OnProgress) -> Iterator[Damage]:
        """Read every byte once and report all that is not as written; `progress` is told bytes as they are read."""


class Backend(Protocol):
    """One shard format. It keeps no state."""

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
        """Publish `records` as shard `number`, then its index; their keys are some of those `planned`, in that order.

        A shard of that number is replaced, its index going first (`formats.common.replace_shard` does all that).
        `layout` is that of the store's other shards; raises `StoreError` for records that do not fit it. The bytes
        are a function of the arguments.
        """

    def decode_index(self, data: bytes) -> ShardIndex:
        """The bytes of an index file -> index, every length checked before it is used; raises `BadIndex`."""

    def open(self, folder: StoreFolder, index: ShardIndex) -> Shard:
        """Open a published shard; its files are first looked at when something is read."""

    def files(self, folder: StoreFolder) -> Mapping[int, Sequence[Path]]:
        """The files on the disk by shard number, whether or not the shard has an index."""

    def places(self, folder: StoreFolder) -> Sequence[Path]:
        """Folders that shards are written into, where an interrupted writer may have left temp files."""

    def metadata(
        self, folder: StoreFolder, recipe: Recipe, layout: tuple[Any, ...], clips: int
    ) -> Mapping[Path, bytes]:
        """Files beside the shards that other programs need, for `clips` clips; caeav reads none of them."""


backends: Registry[Backend] = Registry("store backend")
backends.register_lazily("webdataset", "caeav.pipeline.store.formats.webdataset:WEBDATASET")
backends.register_lazily("zarr", "caeav.pipeline.store.formats.zarr:ZARR")


def backend_name(recipe: Recipe) -> str:
    """The name of a recipe's backend, whether it is known here or not."""
    return str(recipe.fields.get(BACKEND_FIELD, DEFAULT_BACKEND))


def backend_of(recipe: Recipe) -> Backend:
    """The backend that a recipe names; raises `StoreError` for an unknown one."""
    name = recipe.fields.get(BACKEND_FIELD, DEFAULT_BACKEND)
    if not isinstance(name, str) or name not in backends:
        raise StoreError(
            f"the recipe names the store backend {name!r}",
            hint=f"choose one of: {', '.join(backends.names())}",
        )
    return backends[name]


def backend_field(name: str) -> dict[str, str]:
    """The recipe fields that choose a backend: none for the default; raises `StoreError` for an unknown name."""
    if name not in backends:
        raise StoreError(
            f"unknown store backend {name!r}", hint=f"choose one of: {', '.join(backends.names())}"
        )
    return {} if name == DEFAULT_BACKEND else {BACKEND_FIELD: name}


def with_kept(
    backend: Backend,
    folder: StoreFolder,
    old: ShardIndex | None,
    keys: Sequence[str],
    records: Mapping[str, Record],
) -> Iterator[Record]:
    """The records of `keys`: those given, and for the others those that the `old` shard in `folder` has, checked."""
    kept = {key: row for row, key in enumerate(old.keys)} if old else {}
    shard = backend.open(folder, old) if old else None
    for key in keys:
        if key in records:
            yield records[key]
        elif shard:
            yield shard.record(kept[key])


def orphans(folder: StoreFolder, backend: Backend) -> list[Path]:
    """Shard files without an index, which an interrupted writer left: they belong to no shard."""
    indexed = set(folder.published())
    return [
        path for number, paths in backend.files(folder).items() if number not in indexed for path in paths
    ]


def temp_files(folder: StoreFolder, backend: Backend) -> list[Path]:
    """Temp files that an interrupted writer left."""
    places = [folder.path, folder.path / "index", folder.path / "spare", *backend.places(folder)]
    return sorted({path for place in places for path in place.glob(f"{TEMP_PREFIX}*") if path.is_file()})
