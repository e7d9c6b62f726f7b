"""The published shards of a store, their indexes left on the disk: of each two numbers and a digest are kept.

An index is read again when its shard is, and must be the one that was seen at first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping
from typing import NamedTuple

from caeav.pipeline.store.backend import Backend, BadIndex, ShardIndex
from caeav.pipeline.store.errors import DamagedStore, Problem
from caeav.pipeline.store.layout import StoreFolder, read_capped


class ShardFacts(NamedTuple):
    """A shard at a glance: records, bytes of its files, and the sha256 of its index."""

    records: int
    size: int
    digest: bytes


class PublishedShards(MutableMapping[int, ShardIndex]):
    """Shard number -> index, read from the disk each time. Setting one takes note of what was published."""

    def __init__(self, folder: StoreFolder, backend: Backend) -> None:
        self.facts: dict[int, ShardFacts] = {}
        self._folder = folder
        self._backend = backend

    def __getitem__(self, number: int) -> ShardIndex:
        facts = self.facts[number]
        path = self._folder.index(number)
        try:
            data = read_capped(path)
            if hashlib.sha256(data).digest() == facts.digest:
                return self._backend.decode_index(data)
            what = "not the index that was there when the store was opened: the store was written meanwhile"
        except FileNotFoundError:
            what = "vanished since the store was opened: the store was written meanwhile"
        except (BadIndex, DamagedStore) as error:
            what = getattr(error, "problem", str(error))
        raise Problem(self._folder.name_of(path), what, shard=number).error(self._folder.path)

    def __setitem__(self, number: int, index: ShardIndex) -> None:
        self.note(index, hashlib.sha256(index.encode()).digest())

    def note(self, index: ShardIndex, digest: bytes) -> None:
        """Take note of an index whose file has this sha256."""
        size = sum(file.bytes for file in index.files)
        self.facts[index.number] = ShardFacts(len(index.keys), size, digest)

    def __delitem__(self, number: int) -> None:
        del self.facts[number]

    def __contains__(self, number: object) -> bool:
        return number in self.facts

    def __iter__(self) -> Iterator[int]:
        return iter(self.facts)

    def __len__(self) -> int:
        return len(self.facts)

    def records(self, number: int) -> int:
        """Records in a shard; 0 for one that is not published."""
        facts = self.facts.get(number)
        return facts.records if facts else 0

    @property
    def stored(self) -> int:
        """Records in all shards."""
        return sum(facts.records for facts in self.facts.values())

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(facts.size for facts in self.facts.values())
