"""A second copy of each shard's index, in another folder: as long as one of the two is sound, no record is lost.

`spare/<shard>.idx` has the bytes of `index/<shard>.idx`, so the checksums of all records lie in two places. Nobody
reads it while the index is sound, the seal does not name it, and older stores have none. A copy is written after its
index and removed before it: a copy without index means that the index was lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from caeav.manifests.core.atomic import publish_bytes, unpublish
from caeav.pipeline.store.backend import Backend, BadIndex, ShardIndex
from caeav.pipeline.store.errors import DamagedStore
from caeav.pipeline.store.layout import Seal, StoreFolder, numbered, parse_seal, read_capped

STRAY = "does not belong to the finished store"


def publish_index(folder: StoreFolder, index: ShardIndex) -> None:
    """Publish the index of a shard whose files are in place: from now on the shard exists."""
    data = index.encode()
    publish_bytes(folder.index(index.number), data)
    publish_bytes(folder.spare(index.number), data)


def withdraw_index(folder: StoreFolder, number: int) -> None:
    """Remove the index of a shard, so that it exists no longer; its files are not touched."""
    unpublish(folder.spare(number))
    unpublish(folder.index(number))


def restore_indexes(folder: StoreFolder, backend: Backend, fingerprint: str) -> list[str]:
    """Replace each index that is lost or not what was written by its copy; returns remarks on what was done."""
    seal = _seal(folder)
    remarks = []
    for number in numbered(folder.path / "spare"):
        name = folder.index_name(number)
        if seal and name not in seal.sha256:
            continue
        wanted = seal.sha256[name] if seal else None
        problem = _problem(folder, backend, number, fingerprint, wanted, spare=False)
        if problem and not _problem(folder, backend, number, fingerprint, wanted, spare=True):
            publish_bytes(folder.index(number), read_capped(folder.spare(number)))
            remarks.append(f"{name}: {problem}; taken from its copy")
    return remarks


def repair_copies(folder: StoreFolder, numbers: list[int]) -> list[str]:
    """Write the copies that differ from their indexes and remove stray ones; returns remarks on what was wrong."""
    remarks = []
    for number in numbers:
        if problem := _copy_problem(folder, number):
            publish_bytes(folder.spare(number), read_capped(folder.index(number)))
            remarks.append(f"{folder.name_of(folder.spare(number))}: {problem}; written anew")
    for number in _strays(folder, numbers):
        unpublish(folder.spare(number))
        remarks.append(f"{folder.name_of(folder.spare(number))}: {STRAY}; removed")
    return remarks


def copy_problems(folder: StoreFolder, numbers: list[int]) -> Iterator[tuple[str, str]]:
    """Path and fact for each copy in a finished store that differs from its index; none if there are no copies."""
    there = (folder.path / "spare").is_dir()
    for number in numbers if there else ():
        if problem := _copy_problem(folder, number):
            yield folder.name_of(folder.spare(number)), problem
    for number in _strays(folder, numbers):
        yield folder.name_of(folder.spare(number)), STRAY


def _strays(folder: StoreFolder, numbers: list[int]) -> list[int]:
    return sorted({*numbered(folder.path / "spare")} - {*numbers})


def _copy_problem(folder: StoreFolder, number: int) -> str:
    try:
        same = read_capped(folder.spare(number)) == read_capped(folder.index(number))
    except FileNotFoundError:
        return "the copy of the index is missing"
    except DamagedStore as error:
        return error.problem
    return "" if same else "not the same as the index"


def _problem(
    folder: StoreFolder, backend: Backend, number: int, fingerprint: str, wanted: str | None, *, spare: bool
) -> str:
    """Why the index of shard `number`, or its copy, is not sound; empty if it is. `wanted`: the sha256 in the seal."""
    try:
        data = read_capped(folder.spare(number) if spare else folder.index(number))
        index = backend.decode_index(data)
    except FileNotFoundError:
        return "missing"
    except (BadIndex, DamagedStore) as error:
        return getattr(error, "problem", str(error))
    if (index.fingerprint, index.number) != (fingerprint, number):
        return "belongs to another shard"
    return "" if wanted in (None, hashlib.sha256(data).hexdigest()) else "not the index the seal names"


def _seal(folder: StoreFolder) -> Seal | None:
    try:
        return parse_seal(read_capped(folder.seal), folder.seal)
    except (FileNotFoundError, DamagedStore):
        return None
