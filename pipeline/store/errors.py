"""What can be wrong with a store, as errors a user can act on; each names the file and, where there is one, the key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.errors import CaeavError


class StoreError(CaeavError):
    """Anything about a store."""


class RecipeChanged(StoreError):
    """The folder holds a store made by another recipe; the text names the fields that differ."""


class StoreBusy(StoreError):
    """Another process is writing this store."""


class IncompleteStore(StoreError):
    """Some expected clips are neither stored nor quarantined, or the store was never finished."""


class DamagedStore(StoreError):
    """A file of the store is not what was written."""


class DamagedShard(DamagedStore):
    """A shard or its index is not what was written; nothing of the record named is returned."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One damage found: the file relative to the store, the key where one record is meant, and the fact.

    `shard` is the number of the shard that has to be made again, or None when the damage is elsewhere.
    """

    where: str
    what: str
    key: str = ""
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.where}{f' ({self.key})' if self.key else ''}: {self.what}"

    def error(self, folder: Path, more: int = 0) -> DamagedStore:
        """The problem as an error; `more` says how many others there are."""
        others = f" (and {more} more; `caeav store verify {folder}` lists them)" if more else ""
        text = f"{folder / self.where}{f', key {self.key}' if self.key else ''}: {self.what}{others}"
        if self.shard is None:
            hint = "put the file back from a copy, or remove it and run the command that made the store again"
            return DamagedStore(text, hint=hint)
        return DamagedShard(text, hint=redo_hint(folder, self.shard))


def redo_hint(folder: Path, number: int) -> str:
    """How to get one damaged shard made again."""
    return (
        f"run `caeav store verify {folder}` for the whole extent, remove {folder / 'index' / f'{number:06d}.idx'} "
        "and run the command that made the store again; it makes only what is missing"
    )
