"""Looking at a published shard without reading it: is its index sound, does it belong here, does it fit the plan?"""

from __future__ import annotations

import errno
import hashlib
import stat
from dataclasses import dataclass
from typing import Any

from caeav.manifests.key_index import Keys
from caeav.pipeline.store.backend import Backend, BadIndex, ShardIndex
from caeav.pipeline.store.errors import DamagedStore, Problem
from caeav.pipeline.store.layout import Seal, StoreFolder, read_capped


@dataclass(frozen=True, slots=True)
class Sighted:
    """An index and the sha256 of its file."""

    index: ShardIndex
    digest: bytes


def sight(
    folder: StoreFolder, backend: Backend, number: int, fingerprint: str, seal: Seal | None
) -> Sighted | Problem:
    """Read the index of shard `number`; compare it with recipe and seal, and its files' sizes with what it says."""
    name = folder.index_name(number)
    try:
        data = read_capped(folder.index(number))
        index = backend.decode_index(data)
    except FileNotFoundError:
        return Problem(name, "vanished while it was read: the store is being written", shard=number)
    except (BadIndex, DamagedStore) as error:
        return Problem(name, getattr(error, "problem", str(error)), shard=number)
    digest = hashlib.sha256(data)
    if index.fingerprint != fingerprint:
        what = f"belongs to recipe {index.fingerprint[:12]}, not {fingerprint[:12]}"
    elif index.number != number:
        what = f"is the index of shard {index.number}"
    elif seal and seal.sha256.get(name) != digest.hexdigest():
        what = "not the index that was there when the store was finished: complete.json names another sha256"
    else:
        return _wrong_file(folder, index) or Sighted(index, digest.digest())
    return Problem(name, what, shard=number)


def _wrong_file(folder: StoreFolder, index: ShardIndex) -> Problem | None:
    for facts in index.files:
        try:
            there = (folder.path / facts.name).stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            there = None
        if there is None or not stat.S_ISREG(there.st_mode):
            return Problem(facts.name, "the file is missing", shard=index.number)
        if there.st_size != facts.bytes:
            what = f"{there.st_size} bytes, its index says {facts.bytes}"
            return Problem(facts.name, what, shard=index.number)
    return None


def misfit(found: Sighted, planned: Keys, layout: tuple[Any, ...] | None) -> Problem | None:
    """Its keys must be some of the planned ones in the planned order, its arrays those of the other shards."""
    index = found.index
    name = StoreFolder.index_name(index.number)
    if index.keys == planned or index.keys == _those_of(planned, index.keys):
        if layout in (None, index.layout):
            return None
        return Problem(name, "holds other arrays than the shards before it", shard=index.number)
    allowed = set(planned)
    stray = next((key for key in index.keys if key not in allowed), index.keys[0])
    return Problem(name, "holds clips that the manifest does not plan for this shard in this order", stray)


def _those_of(planned: Keys, held: Keys) -> tuple[str, ...]:
    """The planned keys that are held, in the planned order."""
    wanted = set(held)
    return tuple(key for key in planned if key in wanted)
