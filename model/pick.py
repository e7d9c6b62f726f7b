"""One modality of a store of tokens, where a run takes pictures from one store and sound from another."""

from __future__ import annotations

from dataclasses import replace

from caeav.pipeline.store import Recipe, Record, StoreReader

SIDES = ("visual", "audio")


class PickedStore(StoreReader):
    """The store `whole` as if it held the taps of `side` alone; its recipe is cut accordingly."""

    def __init__(self, whole: StoreReader, side: str) -> None:
        self.__dict__.update(whole.__dict__)
        fields = {
            name: value for name, value in whole.recipe.fields.items() if name == side or name not in SIDES
        }
        self.recipe = Recipe(whole.recipe.kind, whole.recipe.name, fields)
        self._side = side

    def read(self, key: str) -> Record:
        """The record of `key`, other modalities left out; errors as of the whole store."""
        record = super().read(key)
        arrays = {name: x for name, x in record.arrays.items() if name.startswith(f"{self._side}.")}
        return replace(record, arrays=arrays)
