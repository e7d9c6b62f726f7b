"""A slice of a store: every n-th shard of its plan, made apart from the others, for example by one job of an array.

A slice lies beside its store, as `<store's folder>.slice-2-of-4`. It has the same recipe and the whole manifest, but
holds, quarantines and waits for the clips of its own shards only. Merged, the slices are the store.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from caeav.manifests.key_index import Keys
from caeav.pipeline.store.errors import StoreError

MAX_SLICES = 100_000
_NAMED = re.compile(r"(.+)\.slice-(\d{1,6})-of-(\d{1,6})")
_ASKED = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Slice:
    """Part `number` of `count`, counted from 1; `Slice()` is the whole store."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MAX_SLICES:
            raise StoreError(
                f"there is no slice {self.number} of {self.count}",
                hint=f"slices are counted from 1: {min(self.number + 1, max(self.count, 1))}/{max(self.count, 1)}",
            )

    @classmethod
    def parse(cls, text: str) -> Slice:
        """`"2/4"` -> the second of four; raises `StoreError` for anything else."""
        match = _ASKED.fullmatch(text)
        if not match:
            raise StoreError(f"{text!r} is not a slice", hint="give number/count; the first of four is 1/4")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of_folder(cls, name: str) -> tuple[str, Slice]:
        """The name of a folder -> the name of its store, and which slice of that store it is."""
        match = _NAMED.fullmatch(name)
        if not match or not 1 <= int(match[2]) <= int(match[3]) <= MAX_SLICES:
            return name, cls()
        return match[1], cls(int(match[2]), int(match[3]))

    @property
    def suffix(self) -> str:
        """What follows the store's name in the name of this slice's folder; empty for the whole store."""
        return "" if self.count == 1 else f".slice-{self.number}-of-{self.count}"

    def holds(self, shard: int) -> bool:
        """Whether shard number `shard` belongs to this slice."""
        return shard % self.count == self.number - 1

    def plan(self, shards: Sequence[Keys]) -> list[Keys]:
        """The planned keys of each shard; none for the shards of other slices."""
        return [keys if self.holds(number) else keys[:0] for number, keys in enumerate(shards)]
