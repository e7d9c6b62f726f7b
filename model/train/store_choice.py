"""Choosing the stores that a run joins: by name, as the only one there is, or one modality of a token store."""

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
from caeav.pipeline.store.recipe import COMMANDS, MODALITIES
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.state import read_recipe


class OneModality(StoreReader):
    """A token store read as if it held one modality; `recipe` is cut to it, `whole` is the full recipe."""

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
        """The record of `key` without other modalities; raises what the whole store raises."""
        record = super().read(key)
        arrays = {name: x for name, x in record.arrays.items() if name.startswith(f"{self.modality}.")}
        return replace(record, arrays=arrays)


def store_setting(store: StoreReader) -> str:
    """A joined store as `stores.tokens` names it: the folder's name or the address, with `:modality` where only one
    is read."""
    name = store.url or store.path.name
    return f"{name}:{store.modality}" if isinstance(store, OneModality) else name


def whole_fingerprint(store: StoreReader) -> str:
    """The fingerprint of the store on disk, whatever part of it is read."""
    return store.whole.fingerprint if isinstance(store, OneModality) else store.recipe.fingerprint


def choose_store(stores: Path, dataset: str, kind: StoreKind, name: str, by: str) -> tuple[Path, list[str]]:
    """The one store of `dataset` that `name` means (empty: the only one), and remarks about unfinished others.

    A finished store wins over unfinished ones; a damaged one has to be decided about by the user. `by` is the option
    that names a store, for messages. Raises `StoreError` when none or several fit.
    """
    found = [
        info
        for info in list_stores(stores)
        if (info.dataset, info.kind) == (dataset, kind) and name in ("", info.name)
    ]
    finished = [info for info in found if info.state == "complete"]
    unfinished = [info for info in found if info.state == "partial"]
    cure = f"with the same `caeav {COMMANDS[kind]}`, or delete its folder in {stores / dataset}"
    if len(finished) == 1 and len(found) == 1 + len(unfinished):
        return finished[0].path, [f"{_how_far(info)}, not used; finish it {cure}" for info in unfinished]
    if len(unfinished) > 1 and len(found) == len(unfinished):
        listed = "".join(f"\n    {_how_far(info)}" for info in unfinished)
        raise StoreError(f"no {kind} store of {dataset} is finished:{listed}", hint=f"finish one {cure}")
    if not found:
        _refuse_unmerged(stores, dataset, kind, name)
    if len(finished) > 1 and len(found) == len(finished) + len(unfinished):
        raise _several_fit(dataset, kind, finished, by)
    return find_store(stores, dataset, kind, name or None, by=by), []


def _refuse_unmerged(stores: Path, dataset: str, kind: str, name: str) -> None:
    """Raise `StoreError` where the store that is missing exists as slices that nobody has merged."""
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
            f"{store} exists as {count} of {part.count} slices, which are not merged",
            hint=f"caeav store merge {dataset}"
            + (
                ""
                if count == part.count
                else f", once all {part.count} slices exist (extract --slice I/{part.count})"
            ),
        )


def _several_fit(dataset: str, kind: str, fitting: list[StoreInfo], by: str) -> StoreError:
    """Lists the finished stores that fit, under names short enough to type, and says which was finished last."""
    option = by.partition("=")[0]
    names = {info.path: _short_name(info, fitting) for info in fitting}
    newest = max(fitting, key=lambda info: StoreFolder(info.path).seal.stat().st_mtime_ns)
    width = max(map(len, names.values()))
    lines = "".join(
        f"\n    {names[info.path]:<{width}}  {info.path.name}, {counted(info.clips, 'clip')}"
        for info in fitting
    )
    return StoreError(
        f"{len(fitting)} {kind} stores of {dataset} fit, one is needed:{lines}",
        hint=f"choose one; the one finished last: {option}={names[newest.path]}",
    )


def _short_name(info: StoreInfo, others: list[StoreInfo]) -> str:
    """The shortest name that fits this store alone: its name, else the start of its fingerprint, else its folder."""
    if [other.name for other in others].count(info.name) == 1:
        return info.name
    for digits in range(MIN_PREFIX, len(info.fingerprint12)):
        start = info.fingerprint12[:digits]
        if sum(other.fingerprint12.startswith(start) for other in others) == 1:
            return start
    return info.path.name


def join_setting(stores: Path, made: Path) -> str:
    """The value of `stores.tokens` that joins the store `made`, of one modality, with the newest that has the other.

    `OTHER` stands for a store that does not exist yet.
    """
    finished = [
        (info, set(MODALITIES) & read_recipe(StoreFolder(info.path)).fields.keys())
        for info in list_stores(stores)
        if (info.dataset, info.kind, info.state) == (made.parent.name, "tokens", "complete") and info.clips
    ]
    infos = [info for info, _ in finished]
    own = next((info, modalities) for info, modalities in finished if info.path == made)
    lacks = set(MODALITIES) - own[1]
    fitting = sorted(
        (pair for pair in finished if pair[0].path != made and lacks <= pair[1]),
        key=lambda pair: (pair[1] == lacks, StoreFolder(pair[0].path).seal.stat().st_mtime_ns),
    )
    if not fitting:
        return f"OTHER,{_short_name(own[0], infos)}"
    other, modalities = fitting[-1]
    only = "" if modalities == lacks else f":{min(lacks)}"
    return f"{_short_name(other, infos)}{only},{_short_name(own[0], infos)}"


def _how_far(info: StoreInfo) -> str:
    held = info.clips + info.quarantined
    return f"{info.path.name} is not finished ({held} of {counted(info.expected, 'clip')})"
