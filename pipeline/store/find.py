"""Which stores there are, and which one is meant: by data set, kind, name or the first digits of a fingerprint.

Also which stores no run refers to, and removing one, for `caeav store gc`. What refers to a store is the caller's
knowledge; a store that is being written is in use.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from caeav.manifests.core.atomic import TEMP_PREFIX, sync_folder, unpublish
from caeav.pipeline.store.backend import backend_name
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.journal import journal_bytes
from caeav.pipeline.store.layout import (
    FOLDER_PATTERN,
    StoreFolder,
    parse_recipe,
    parse_seal,
    read_capped,
    render_recipe,
)
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.media_record import remove_record
from caeav.pipeline.store.recipe import COMMANDS, Recipe, StoreKind, makers, recipe_differences
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.state import inspect, read_recipe

MIN_PREFIX = 4


@dataclass(frozen=True)
class StoreInfo:
    """A store at a glance. For a damaged one `problem` says what is wrong, and all counts are zero."""

    path: Path
    dataset: str
    kind: str
    name: str
    fingerprint12: str
    state: Literal["complete", "partial", "damaged"]
    clips: int = 0
    quarantined: int = 0
    expected: int = 0
    bytes: int = 0
    problem: str = ""


def list_stores(stores: Path) -> list[StoreInfo]:
    """Every store below `<home>/stores`, sorted; a damaged one is listed as damaged and raises nothing."""
    found = []
    for recipe_file in sorted(stores.glob("*/*/recipe.json")):
        match = FOLDER_PATTERN.fullmatch(recipe_file.parent.name)
        if match:
            found.append(_info(recipe_file.parent, match[1], match[2], match[3]))
    return found


def list_slices(stores: Path) -> list[Path]:
    """The folders of all slices below `<home>/stores`, sorted; `list_stores` leaves them out."""
    folders = (recipe_file.parent for recipe_file in stores.glob("*/*.slice-*/recipe.json"))
    return sorted(folder for folder in folders if Slice.of_folder(folder.name)[1] != Slice())


def find_slices(stores: Path, dataset: str, name: str | None = None) -> list[Path]:
    """The folders of the slices of one store of `dataset` (called `name`), by number.

    Raises `StoreError` when there are none, or slices of several stores.
    """
    found: dict[tuple[str, int], list[tuple[int, Path]]] = {}
    for recipe_file in sorted(stores.glob(f"{dataset}/*.slice-*/recipe.json")):
        path = recipe_file.parent
        store, part = Slice.of_folder(path.name)
        match = FOLDER_PATTERN.fullmatch(store)
        if part != Slice() and match and name in (None, match[2], store, match[3][: len(name or "")]):
            found.setdefault((store, part.count), []).append((part.number, path))
    if len(found) == 1:
        return [path for _, path in sorted(next(iter(found.values())))]
    if not found:
        raise StoreError(
            f"no matching slice of a store of {dataset!r} is in {stores}",
            hint=f"make slices with `caeav extract --dataset {dataset} --slice 1/4` and so on",
        )
    named = "".join(f"\n    {store} cut into {count}" for store, count in found)
    raise StoreError(
        f"slices of {len(found)} stores of {dataset} in {stores} match; one store is needed:{named}",
        hint="name one by --store, or name the folders of the slices",
    )


def _info(path: Path, kind: str, name: str, fingerprint12: str) -> StoreInfo:
    folder = StoreFolder(path)
    dataset = path.parent.name
    try:
        read_recipe(folder)
        if folder.seal.is_file():  # written last and removed before any change: its counts hold
            seal = parse_seal(read_capped(folder.seal), folder.seal)
            counts = (seal.stored, seal.quarantined, seal.expected, seal.shard_bytes)
            return StoreInfo(path, dataset, kind, name, fingerprint12, "complete", *counts)
        state = inspect(path)
    except (StoreError, OSError) as error:
        problem = getattr(error, "problem", str(error))
        return StoreInfo(path, dataset, kind, name, fingerprint12, "damaged", problem=problem)
    if state.problems:
        problem = str(state.problems[0])
        return StoreInfo(path, dataset, kind, name, fingerprint12, "damaged", problem=problem)
    size = state.shard_bytes + journal_bytes(folder)
    counts = (state.stored, len(state.quarantined), len(state.manifest.clips), size)
    return StoreInfo(path, dataset, kind, name, fingerprint12, "partial", *counts)


def find_store(
    stores: Path,
    dataset: str,
    kind: StoreKind | None = None,
    name: str | None = None,
    *,
    by: str = "--store NAME",
) -> Path:
    """The one store of `dataset` and `kind` (None: either kind) below `stores`.

    `name` may be the store's name, its folder's name, or 4 or more first digits of its fingerprint; else the beginning
    of its name, of a backbone's or captioner's in it, or of its format. Raises `StoreError` listing the candidates when
    none or several match; `by` is how its reader can name one.
    """
    there = [info for info in list_stores(stores) if info.dataset == dataset and kind in (None, info.kind)]
    matching = _called(there, name)
    if len(matching) == 1:
        return matching[0].path
    command = COMMANDS[kind or "tokens"]
    asked = f"{f'{kind} ' if kind else ''}store of {dataset}" + (f" called {name!r}" if name else "")
    candidates = "".join(
        f"\n    {info.path.name} ({info.state}, {info.clips} clips)" for info in matching or there
    )
    if not matching:
        besides = f"; there are:{candidates}" if there else ""
        make = f"make one with `caeav {command} --dataset {dataset}`"
        raise StoreError(
            f"no {asked} in {stores}{besides}",
            hint=f"{make}, or name one that is there: {by}" if there else make,
        )
    raise StoreError(
        f"{len(matching)} stores match, one is needed ({asked}):{candidates}",
        hint=f"name one by its folder or by the first digits of its fingerprint: {by}",
    )


def _called(stores: Sequence[StoreInfo], name: str | None) -> list[StoreInfo]:
    """Those that `name` means: by a whole name if there are such, else by the beginning of a word."""
    if name is None:
        return list(stores)
    return [info for info in stores if _is_called(info, name)] or [
        info for info in stores if any(word.startswith(name.lower()) for word in _words(info))
    ]


def _is_called(info: StoreInfo, name: str) -> bool:
    by_fingerprint = len(name) >= MIN_PREFIX and info.fingerprint12.startswith(name[:12].lower())
    return name in (info.name, info.path.name) or by_fingerprint


def _words(info: StoreInfo) -> list[str]:
    """What a store may be called in short."""
    try:
        recipe = read_recipe(StoreFolder(info.path))
    except (StoreError, OSError):
        return [info.name.lower()]
    return [word.lower() for word in (info.name, *makers(recipe), backend_name(recipe))]


@dataclass(frozen=True)
class OtherRecipe:
    """A store of the same data set, kind and name with another recipe: `field: its value -> the one asked for`."""

    path: Path
    differences: tuple[str, ...]


def find_other_recipes(stores: Path, dataset: str, recipe: Recipe) -> list[OtherRecipe]:
    """Stores that a user who asked for `recipe` may have meant to continue, and how they differ from it."""
    found = []
    wanted = parse_recipe(render_recipe(recipe), Path("recipe.json")).as_json()
    for path in sorted((stores / dataset).glob(f"{recipe.kind}-{recipe.name}-*")):
        match = FOLDER_PATTERN.fullmatch(path.name)
        if not match or match[2] != recipe.name or path.name == recipe.folder_name:
            continue
        try:
            differences = recipe_differences(read_recipe(StoreFolder(path)).as_json(), wanted)
        except StoreError:
            continue  # a damaged recipe cannot be compared; `store ls` shows it
        found.append(OtherRecipe(path, tuple(differences)))
    return found


@dataclass(frozen=True, slots=True)
class Reference:
    """How something refers to a store: by its fingerprint, and by its data set where that is known (else empty)."""

    dataset: str
    fingerprint: str

    def means(self, store: StoreInfo) -> bool:
        """Whether it refers to `store`; nothing refers to a slice."""
        same_set = self.dataset in ("", store.dataset)
        return same_set and store.path.name.endswith(f"-{self.fingerprint[:12]}")


def unreferenced(stores: Path, used: Collection[Reference], dataset: str | None = None) -> list[StoreInfo]:
    """The stores (of `dataset`, or all) that none of `used` refers to, and the remains of those hardly begun."""
    return [
        info
        for info in (*list_stores(stores), *_begun(stores))
        if dataset in (None, info.dataset) and not any(reference.means(info) for reference in used)
    ]


def idle_s(path: Path) -> float:
    """Seconds since a store was last written or opened for writing; negative where clocks differ."""
    seen = [path, *path.iterdir()]
    return time.time() - max(each.lstat().st_mtime for each in seen)


def _begun(stores: Path) -> Iterator[StoreInfo]:
    """Folders whose writer was killed before it wrote the recipe."""
    for path in sorted(stores.glob("*/*")):
        if _is_bare(path) and (match := FOLDER_PATTERN.fullmatch(path.name)):
            yield StoreInfo(path, path.parent.name, match[1], match[2], match[3], "partial")


def _is_bare(path: Path) -> bool:
    """Whether a folder has a store's name and holds nothing but a lock or temp files."""
    named = FOLDER_PATTERN.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    return bool(named) and all(
        file.is_file() and (file.name == ".lock" or file.name.startswith(TEMP_PREFIX))
        for file in path.iterdir()
    )


def remove_store(path: Path) -> None:
    """Remove a store, its seal first, so that an interrupted removal leaves nothing that looks finished.

    Raises `StoreBusy` when it is being written, `StoreError` when `path` is not the folder of a store.
    """
    folder = StoreFolder(path)
    if path.is_symlink() or not (folder.recipe.is_file() or _is_bare(path)):
        raise StoreError(f"{path} is not the folder of a store", hint="caeav store ls")
    lock = WriterLock(folder.lock)
    try:
        unpublish(folder.seal)
        shutil.rmtree(path)
        sync_folder(path.parent)
        remove_record(path)
    finally:
        lock.release()
