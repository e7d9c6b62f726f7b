"""A store from elsewhere onto this machine's disk, the same bytes: files of shards, then indexes, the seal last.

Elsewhere is an object store, or a store that was packed for a hub (`package.py`).

Every file is compared with its digest as it comes, so nothing wrong is ever in place. A pull that breaks off is run
again and goes on with the shards that are not there yet.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.atomic import make_folder, publish_bytes, publishing, unpublish
from caeav.manifests.core.util import OnProgress, file_sha256, ignore
from caeav.pipeline.store.backend import BadIndex, FileFacts, ShardIndex, backend_of, temp_files
from caeav.pipeline.store.errors import DamagedStore, Problem, StoreError
from caeav.pipeline.store.journal import journal_files
from caeav.pipeline.store.layout import StoreFolder, parse_recipe, read_capped
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.remote.bucket import Bucket
from caeav.pipeline.store.remote.reading import Source, check_address, decode_seal, read_seal
from caeav.pipeline.store.spare import publish_index
from caeav.pipeline.store.state import inspect

SHARDS_AT_ONCE = 4


@dataclass(frozen=True)
class Pulled:
    """A store that is there now: how many shards came and were there already, and the bytes that came."""

    path: Path
    came: int
    there: int
    bytes: int


def pull(url: str, stores: Path, told: OnProgress = ignore) -> Pulled:
    """Make the finished store at an address below `stores`, in the folder of its data set.

    Raises `StoreError` where it is not finished, or where the folder holds something else or is being written.
    """
    bucket = Bucket(url)
    check_address(bucket.url)
    return take(
        bucket, read_seal(bucket), StoreFolder(stores / bucket.url.parent.name / bucket.url.name), told
    )


def take(source: Source, sealed: bytes, folder: StoreFolder, told: OnProgress) -> Pulled:
    """Make the store whose seal has the bytes `sealed` in `folder`; raises as `pull`."""
    seal = decode_seal(source, sealed)
    recipe_data = source.read("recipe.json")
    recipe = parse_recipe(recipe_data, folder.recipe)
    if recipe.fingerprint != seal.fingerprint:
        raise DamagedStore(
            f"{source.address()}: recipe and seal do not belong together", hint="publish it again"
        )
    backend = backend_of(recipe)
    make_folder(folder.path)
    lock = WriterLock(folder.lock)
    try:
        _check_free(folder, sealed, recipe_data)
        if folder.seal.is_file():
            state = inspect(folder.path)
            if not state.problems:
                return Pulled(folder.path, 0, len(state.indexes), 0)
            raise state.problems[0].error(folder.path, len(state.problems) - 1)
        for leftover in temp_files(folder, backend):
            unpublish(leftover)
        publish_bytes(folder.recipe, recipe_data)
        for name, sha256 in seal.sha256.items():
            if not name.startswith("index/"):
                path = folder.path / name
                make_folder(path.parent)
                publish_bytes(path, source.read_verified(name, sha256))

        def one(name: str) -> tuple[bool, int]:
            data = source.read_verified(name, seal.sha256[name])
            try:
                index = backend.decode_index(data)
            except BadIndex as error:
                raise Problem(name, str(error)).error(folder.path) from None
            came = _take(source, folder, index)
            size = sum(facts.bytes for facts in index.files)
            told(size)
            return came, size

        names = [name for name in seal.sha256 if name.startswith("index/")]
        with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="caeav-pull") as threads:
            taken = list(threads.map(one, names))
        publish_bytes(folder.seal, sealed)
    finally:
        lock.release()
    came = [size for new, size in taken if new]
    return Pulled(folder.path, len(came), len(taken) - len(came), sum(came))


def _check_free(folder: StoreFolder, sealed: bytes, recipe: bytes) -> None:
    """Raise `StoreError` unless the folder is empty, or holds this store or a part of it."""
    other = (
        "is being made here from media"
        if next(iter(journal_files(folder)), None)
        else "has another recipe"
        if folder.recipe.is_file() and read_capped(folder.recipe) != recipe
        else "is another state of this store"
        if folder.seal.is_file() and read_capped(folder.seal) != sealed
        else ""
    )
    if other:
        raise StoreError(
            f"{folder.path} {other}", hint="rename or remove it, or pull into another home: --home FOLDER"
        )


def _take(source: Source, folder: StoreFolder, index: ShardIndex) -> bool:
    """Bring one shard, its index last; whether it was not there already."""
    path = folder.index(index.number)
    if path.is_file():
        if read_capped(path) == index.encode():
            return False
        raise StoreError(
            f"{folder.path} holds another shard {index.number}", hint="rename or remove it and pull again"
        )
    for facts in index.files:
        there = folder.path / facts.name
        if not (
            there.is_file() and there.stat().st_size == facts.bytes and file_sha256(there) == facts.sha256
        ):
            _fetch(source, facts, there)
    publish_index(folder, index)
    return True


def _fetch(source: Source, facts: FileFacts, path: Path) -> None:
    with publishing(path) as out:

        def write(at: int, data: bytes) -> None:
            if at == 0:  # from the beginning, where bytes were wrong before
                out.rewind()
            out.write(data)

        source.fetch(facts.name, facts.bytes, facts.sha256, write)
