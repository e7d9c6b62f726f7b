"""One modality of a store of tokens, where a run takes pictures from one store and sound from another."""

from __future__ import annotations

from dataclasses import replace

from caeav.pipeline.store import Recipe, Record, StoreReader

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
