"""Stores that no run refers to, and removing one: what `caeav store gc` offers.

Which stores are referred to is the caller's knowledge. A store that is being written is in use.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from caeav.manifests.core.atomic import TEMP_PREFIX, sync_folder, unpublish
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.find import StoreInfo, list_stores
from caeav.pipeline.store.layout import FOLDER_PATTERN, StoreFolder
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.media_record import remove_record


@dataclass(frozen=True, slots=True)
class Reference:
    """A store as something refers to it: by fingerprint, and the data set where that is known (else empty)."""

    dataset: str
    fingerprint: str

    def means(self, store: StoreInfo) -> bool:
        """Whether `store` is the one; slices are meant by nothing."""
        same_set = self.dataset in ("", store.dataset)
        return same_set and store.path.name.endswith(f"-{self.fingerprint[:12]}")


def unreferenced(stores: Path, used: Collection[Reference], dataset: str | None = None) -> list[StoreInfo]:
    """The stores (of `dataset`, or all) that none of `used` means, and what was left of some hardly begun."""
    return [
        info
        for info in (*list_stores(stores), *_begun(stores))
        if dataset in (None, info.dataset) and not any(reference.means(info) for reference in used)
    ]


def idle_s(path: Path) -> float:
    """Seconds since a store was last written, or opened for it; negative where clocks differ."""
    seen = [path, *path.iterdir()]
    return time.time() - max(each.lstat().st_mtime for each in seen)


def _begun(stores: Path) -> Iterator[StoreInfo]:
    """Folders whose writer was killed before it had written the recipe."""
    for path in sorted(stores.glob("*/*")):
        if _is_bare(path) and (match := FOLDER_PATTERN.fullmatch(path.name)):
            yield StoreInfo(path, path.parent.name, match[1], match[2], match[3], "partial")


def _is_bare(path: Path) -> bool:
    """Whether it is named as a store and holds a lock or temp files and nothing else."""
    named = FOLDER_PATTERN.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    return bool(named) and all(
        file.is_file() and (file.name == ".lock" or file.name.startswith(TEMP_PREFIX))
        for file in path.iterdir()
    )


def remove_store(path: Path) -> None:
    """Remove a store, its seal first, so that an interrupted removal leaves no store that seems whole.

    Raises `StoreBusy` when it is being written, `StoreError` when `path` is no store's folder.
    """
    folder = StoreFolder(path)
    if path.is_symlink() or not (folder.recipe.is_file() or _is_bare(path)):
        raise StoreError(f"{path} is no store's folder", hint="caeav store ls")
    lock = WriterLock(folder.lock)
    try:
        unpublish(folder.seal)
        shutil.rmtree(path)
        sync_folder(path.parent)
        remove_record(path)
    finally:
        lock.release()
