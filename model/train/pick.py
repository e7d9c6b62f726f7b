"""Which stores a run joins, and what of them: the one that is meant, or one modality of a store of tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from caeav.manifests.core.util import counted
from caeav.pipeline.store import (
    Recipe,
    Record,
    StoreError,
    StoreInfo,
    StoreKind,
    StoreReader,
    find_store,
    list_slices,
    list_stores,
)
from caeav.pipeline.store.find import MIN_PREFIX
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.recipe import MODALITIES
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.state import read_recipe

SEAL = "complete.json"


class PickedStore(StoreReader):
    """The store `whole` as if it held only the taps of `modality`; `recipe` is cut to them, `whole` the full one."""

    def __init__(self, whole: StoreReader, modality: str) -> None:
        self.__dict__.update(whole.__dict__)
        fields = {
            name: value
            for name, value in whole.recipe.fields.items()
            if name == modality or name not in MODALITIES
        }
        self.recipe = Recipe(whole.recipe.kind, whole.recipe.name, fields)
        self.modality, self.whole = modality, whole.recipe

    def read(self, key: str) -> Record:
        """The record of `key`, other modalities left out; errors as of the whole store."""
        record = super().read(key)
        arrays = {name: x for name, x in record.arrays.items() if name.startswith(f"{self.modality}.")}
        return replace(record, arrays=arrays)


def setting_of(store: StoreReader) -> str:
    """What `stores.tokens` calls a joined store: its folder's name, and the modality where it is taken alone."""
    return f"{store.path.name}:{store.modality}" if isinstance(store, PickedStore) else store.path.name


def fingerprint_of(store: StoreReader) -> str:
    """Of the store as it lies on the disk, whatever is taken of it."""
    return store.whole.fingerprint if isinstance(store, PickedStore) else store.recipe.fingerprint


def choose_store(stores: Path, dataset: str, kind: StoreKind, name: str, by: str) -> tuple[Path, list[str]]:
    """The one store meant by `name` (empty: the only one there is) below `stores`, and what to say about others.

    One that is finished is meant, not one that was only begun; a damaged one asks for a decision. Raises `StoreError`
    when none or several fit.
    """
    there = [
        info
        for info in list_stores(stores)
        if (info.dataset, info.kind) == (dataset, kind) and name in ("", info.name)
    ]
    finished = [info for info in there if info.state == "complete"]
    begun = [info for info in there if info.state == "partial"]
    command = "caption" if kind == "captions" else "extract"
    cure = f"by the `caeav {command}` that began it, or delete its folder in {stores / dataset}"
    if len(finished) == 1 and len(there) == 1 + len(begun):
        return finished[0].path, [f"{_unfinished(info)}, not used; finish it {cure}" for info in begun]
    if len(begun) > 1 and len(there) == len(begun):
        listed = "".join(f"\n    {_unfinished(info)}" for info in begun)
        raise StoreError(f"no store of {kind} of {dataset} is finished:{listed}", hint=f"finish one {cure}")
    if not there:
        _refuse_unmerged(stores, dataset, kind, name)
    if len(finished) > 1 and len(there) == len(finished) + len(begun):
        raise _undecided(dataset, kind, finished, by)
    return find_store(stores, dataset, kind, name or None, by=by), []


def _refuse_unmerged(stores: Path, dataset: str, kind: str, name: str) -> None:
    """Raise where a store that is not there was made in slices, which nobody has put together."""
    parts = [
        (path, store, part)
        for path in list_slices(stores)
        for store, part in [Slice.of_folder(path.name)]
        if path.parent.name == dataset and store.startswith(f"{kind}-{name}")
    ]
    if parts:
        _, store, part = parts[-1]
        count = sum(other == store for _, other, _ in parts)
        raise StoreError(
            f"the {kind} of {dataset} lie in {count} of {part.count} slices of {store}, which are not put together",
            hint=f"caeav store merge {dataset}"
            + (
                ""
                if count == part.count
                else f", when all {part.count} are made (extract --slice I/{part.count})"
            ),
        )


def _undecided(dataset: str, kind: str, fitting: list[StoreInfo], by: str) -> StoreError:
    """That several finished stores fit: which there are, by names that can be typed, and which was finished last."""
    option = by.partition("=")[0]
    shorts = {info.path: _short(info, fitting) for info in fitting}
    newest = max(fitting, key=lambda info: (info.path / SEAL).stat().st_mtime_ns)
    width = max(map(len, shorts.values()))
    lines = "".join(
        f"\n    {shorts[info.path]:<{width}}  {info.path.name}, {counted(info.clips, 'clip')}"
        for info in fitting
    )
    return StoreError(
        f"{len(fitting)} stores of {kind} of {dataset} fit, one is needed:{lines}",
        hint=f"name one; the one finished last is {option}={shorts[newest.path]}",
    )


def _short(info: StoreInfo, others: list[StoreInfo]) -> str:
    """The shortest that means this store alone: its name, or the first digits of its fingerprint."""
    if [other.name for other in others].count(info.name) == 1:
        return info.name
    for digits in range(MIN_PREFIX, len(info.fingerprint12)):
        start = info.fingerprint12[:digits]
        if sum(other.fingerprint12.startswith(start) for other in others) == 1:
            return start
    return info.path.name


def join_of(stores: Path, made: Path) -> str:
    """What `stores.tokens` may say to join a store of one modality with the one finished last that has the other.

    `OTHER` stands for a store that is yet to be made.
    """
    there = [
        (info, set(MODALITIES) & read_recipe(StoreFolder(info.path)).fields.keys())
        for info in list_stores(stores)
        if (info.dataset, info.kind, info.state) == (made.parent.name, "tokens", "complete") and info.clips
    ]
    infos = [info for info, _ in there]
    own = next((info, modalities) for info, modalities in there if info.path == made)
    lacks = set(MODALITIES) - own[1]
    fitting = sorted(
        (pair for pair in there if pair[0].path != made and lacks <= pair[1]),
        key=lambda pair: (pair[1] == lacks, (pair[0].path / SEAL).stat().st_mtime_ns),
    )
    if not fitting:
        return f"OTHER,{_short(own[0], infos)}"
    other, modalities = fitting[-1]
    only = "" if modalities == lacks else f":{min(lacks)}"
    return f"{_short(other, infos)}{only},{_short(own[0], infos)}"


def _unfinished(info: StoreInfo) -> str:
    held = info.clips + info.quarantined
    return f"{info.path.name} is not finished ({held} of {counted(info.expected, 'clip')})"
