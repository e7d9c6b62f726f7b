"""A shard made apart from its store, by a process that does not hold the store's lock, for the one that does to adopt.

`<store>/staging/` is made and removed by the process that holds the lock. Whoever makes a shard there has a folder of
its own in it, which no other attempt at the same shard shares: two processes that make one shard write the same bytes
under two names, and the store takes one of them (`StoreWriter.adopt`). Nobody reads what lies there otherwise, and the
next writer removes what a killed one left.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from caeav.manifests.clip import Clip
from caeav.manifests.core import atomic
from caeav.pipeline.store.backend import ShardIndex, backend_of, with_kept
from caeav.pipeline.store.layout import StoreFolder, shard_clips
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.record import Quarantined, Record
from caeav.pipeline.store.writer import ShardPlan, StoreWriter

STAGING = "staging"
TOKEN = "token"  # noqa: S105 - a file's name
"""Tells who made the folder, so that a process on another machine knows that it sees this one."""


def open_staging(store: Path, token: str) -> None:
    """Make the empty staging folder of a store whose lock is held."""
    remove_staging(store)
    atomic.make_folder(store / STAGING)
    atomic.publish_text(store / STAGING / TOKEN, token)


def sees_staging(store: Path, token: str) -> bool:
    """Whether this process sees the staging folder that was made with this token."""
    try:
        return (store / STAGING / TOKEN).read_text(encoding="utf-8") == token
    except (OSError, UnicodeDecodeError):
        return False


def remove_staging(store: Path) -> None:
    """Remove what was staged, finished or not; the store's lock is held.

    A process that is still writing there keeps a folder alive at most until the next writer comes.
    """
    remove_tree(store / STAGING)


def remove_tree(folder: Path) -> None:
    """Remove a folder of staged files; what appears in it meanwhile stays."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for root, _, names in os.walk(folder, topdown=False):
        with suppress(FileNotFoundError):
            for name in names:
                atomic.remove(Path(root, name))
        with suppress(OSError):
            atomic.remove_folder(Path(root))


@dataclass(frozen=True)
class ShardOrder:
    """All that decides the bytes of one shard but its media: plain data, to be sent to another process.

    `planned`: the keys of the shard's places; `keys`: those it is to hold; `clips`: the rows of those that have to be
    made (key, media, start_s, seconds). `old` is the index of the shard that is there, whose records stay; `like` that
    of any shard of the store, whose layout must be kept. Both are empty when there is none.
    """

    number: int
    planned: Sequence[str]
    keys: Sequence[str]
    clips: Sequence[tuple[str, str, float, float]]
    old: bytes = b""
    like: bytes = b""

    @classmethod
    def of(cls, writer: StoreWriter, plan: ShardPlan) -> Self:
        """The order for a shard that a store needs."""
        other = next((n for n in writer.indexes if n != plan.number), None)
        old = writer.indexes.get(plan.number)
        return cls(
            plan.number,
            tuple(writer.planned[plan.number]),
            tuple(plan.keys),
            tuple(writer.clip(key).source() for key in plan.missing),
            old.encode() if old else b"",
            b"" if other is None else writer.indexes[other].encode(),
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        indexes = {name: base64.b64encode(getattr(self, name)).decode() for name in ("old", "like")}
        return {
            "number": self.number,
            "planned": list(self.planned),
            "keys": list(self.keys),
            "clips": [list(row) for row in self.clips],
            **indexes,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `as_json`."""
        indexes = {name: base64.b64decode(value[name]) for name in ("old", "like")}
        rows = [(key, media, start_s, seconds) for key, media, start_s, seconds in value["clips"]]
        return cls(value["number"], value["planned"], value["keys"], rows, **indexes)


class StagedShard:
    """Stands for the `StoreWriter` of `store` while one shard is made in `place`; with no order there is none to make.

    Afterwards `index` is that of the shard, None when none had to be written, and `quarantined` what was not made.
    """

    def __init__(self, store: StoreFolder, recipe: Recipe, order: ShardOrder | None, place: Path) -> None:
        self.recipe = recipe
        self.index: ShardIndex | None = None
        self.quarantined: list[Quarantined] = []
        self._store, self._order, self._folder = store, order, StoreFolder(place)
        self._backend = backend_of(recipe)
        self._clips = {row[0]: Clip(*row) for row in order.clips} if order else {}
        first = order.number * shard_clips(recipe) if order else 0
        self._places = {key: first + slot for slot, key in enumerate(order.planned)} if order else {}

    def plan(self) -> list[ShardPlan]:
        """The shard that was ordered."""
        return [ShardPlan(self._order.number, self._order.keys, tuple(self._clips))] if self._order else []

    def clip(self, key: str) -> Clip:
        """A clip that has to be made."""
        return self._clips[key]

    def place(self, key: str) -> int:
        """The row of a clip in the store's manifest."""
        return self._places[key]

    def quarantine(self, entry: Quarantined) -> None:
        """Note that a clip could not be processed; the holder of the lock records it."""
        self.quarantined.append(entry)

    def publish(self, plan: ShardPlan, records: Mapping[str, Record]) -> None:
        """Write the shard as `StoreWriter.publish` would, into this place.

        Raises `DamagedShard` for a record of the old shard, `StoreError` for one that does not fit the store's layout.
        """
        assert self._order is not None
        order, lost = self._order, {entry.key for entry in self.quarantined}
        old = self._backend.decode_index(order.old) if order.old else None
        like = self._backend.decode_index(order.like) if order.like else None
        keys = [key for key in order.keys if key not in lost]
        if not keys or (old and not records and tuple(keys) == tuple(old.keys)):
            return
        wanted = with_kept(self._backend, self._store, old, keys, records)
        self.index = self._backend.write(
            self._folder, order.number, self.recipe, order.planned, wanted, like.layout if like else None
        )

    def kept(self, number: int) -> dict[str, Record]:
        """Nothing: no journal is kept of a shard that is made in one go."""
        return {}

    def keep(self, record: Record) -> None:
        """Nothing is kept before the shard is whole."""

    def sync(self) -> None:
        """Nothing waits to be synced."""
