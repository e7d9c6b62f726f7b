"""What can be wrong with a store, as errors that a user can act on; each names file and key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.errors import CaeavError


class StoreError(CaeavError):
    """Any error about a store."""


class RecipeChanged(StoreError):
    """The folder holds a store of another recipe; the text names the fields that differ."""


class StoreBusy(StoreError):
    """Another process is writing this store."""


class IncompleteStore(StoreError):
    """Some expected clips are neither stored nor quarantined, or the store was never finished."""


class DamagedStore(StoreError):
    """A file of the store is not what was written."""


class DamagedShard(DamagedStore):
    """A shard or its index is not what was written; nothing of the named record is returned."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One damage: the file relative to the store, the fact, and the key if it is about one record.

    `shard` is the number of the shard that has to be made again, None if the damage is elsewhere; `rewritten` means
    that the next run that makes the store writes the file anew by itself.
    """

    where: str
    what: str
    key: str = ""
    shard: int | None = None
    rewritten: bool = False

    def __str__(self) -> str:
        return f"{self.where}{f' ({self.key})' if self.key else ''}: {self.what}"

    def error(self, folder: Path, more: int = 0) -> DamagedStore:
        """The problem as an error; `more` is how many others there are."""
        others = f" (and {more} more)" if more else ""
        text = f"{folder / self.where}{f', key {self.key}' if self.key else ''}: {self.what}{others}"
        kind = DamagedStore if self.shard is None else DamagedShard
        return kind(text, hint=repair_hint(folder))


def repair_hint(folder: Path) -> str:
    """How to make the damaged records again."""
    return (
        f"`caeav store verify {folder}` lists all damage, `caeav store repair {folder}` drops it; the command that "
        "made the store then makes exactly what is missing"
    )
