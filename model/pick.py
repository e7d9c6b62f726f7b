"""Which stores a run joins, and what of them: the one that is meant, or one modality of a store of tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from caeav.manifests.wording import counted
from caeav.pipeline.store import (
    Recipe,
    Record,
    StoreError,
    StoreInfo,
    StoreKind,
    StoreReader,
    find_store,
    list_stores,
)

SIDES = ("visual", "audio")


class PickedStore(StoreReader):
    """The store `whole` as if it held the taps of `side` alone; `recipe` is cut accordingly, `whole` the full one."""

    def __init__(self, whole: StoreReader, side: str) -> None:
        self.__dict__.update(whole.__dict__)
        fields = {
            name: value for name, value in whole.recipe.fields.items() if name == side or name not in SIDES
        }
        self.recipe = Recipe(whole.recipe.kind, whole.recipe.name, fields)
        self.side, self.whole = side, whole.recipe

    def read(self, key: str) -> Record:
        """The record of `key`, other modalities left out; errors as of the whole store."""
        record = super().read(key)
        arrays = {name: x for name, x in record.arrays.items() if name.startswith(f"{self.side}.")}
        return replace(record, arrays=arrays)


def setting_of(store: StoreReader) -> str:
    """What `stores.tokens` calls a joined store: its folder's name, and the modality where it is taken alone."""
    return f"{store.path.name}:{store.side}" if isinstance(store, PickedStore) else store.path.name


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
    return find_store(stores, dataset, kind, name or None, by=by), []


def _unfinished(info: StoreInfo) -> str:
    held = info.clips + info.quarantined
    return f"{info.path.name} is not finished ({held} of {counted(info.expected, 'clip')})"
