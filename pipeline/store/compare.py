"""In what two stores differ: recipe, clips, quarantine, and each array of each clip both hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.store.dtypes import floats
from caeav.pipeline.store.reader import StoreReader
from caeav.pipeline.store.recipe import recipe_differences
from caeav.pipeline.store.record import Quarantined, Record


@dataclass
class ArrayDifference:
    """How one array differs: in how many clips, by how much at most and where; `form`: what differs in its shape or
    dtype as read."""

    clips: int = 0
    largest: float = 0.0
    key: str = ""
    form: str = ""


@dataclass
class Differences:
    """`only_a`, `only_b`: keys stored in one alone; `arrays` and `facts` (clips a fact differs in) by name."""

    recipe: tuple[str, ...] = ()
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    quarantine: tuple[str, ...] = ()
    compared: int = 0
    arrays: dict[str, ArrayDifference] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)

    @property
    def same_content(self) -> bool:
        """Whether clips, arrays, facts and quarantine agree, whatever the recipes say."""
        return not (self.only_a or self.only_b or self.quarantine or self.arrays or self.facts)


def compare(
    a: StoreReader, b: StoreReader, progress: Callable[[int], object] = lambda _: None
) -> Differences:
    """Compare every record that both hold, as stored; `progress` is told a clip at a time."""
    found = Differences(
        recipe=tuple(recipe_differences(a.recipe.as_json(), b.recipe.as_json())),
        only_a=tuple(key for key in a.keys if key not in b),
        only_b=tuple(key for key in b.keys if key not in a),
        quarantine=_quarantine(a.quarantined, b.quarantined),
    )
    for key in a.keys:
        if key in b:
            compare_records(a.read_stored(key), b.read_stored(key), found)
            found.compared += 1
            progress(1)
    return found


def compare_records(a: Record, b: Record, found: Differences) -> None:
    """Add to `found` in what two records of one clip differ; other formats of numbers by the floats they give."""
    if not _identical(a.arrays, b.arrays):
        one, other = floats(a.arrays), floats(b.arrays)
        for name in sorted({*one, *other}):
            if name not in one or name not in other:
                _note(found, name, a.key, form=f"only in the {'first' if name in one else 'second'}")
            elif one[name].shape != other[name].shape:
                _note(found, name, a.key, form=f"{list(one[name].shape)} -> {list(other[name].shape)}")
            else:
                form = (
                    ""
                    if one[name].dtype == other[name].dtype
                    else f"{one[name].dtype} -> {other[name].dtype}"
                )
                difference = np.abs(one[name].astype(np.float64) - other[name].astype(np.float64))
                largest = float(np.max(difference, initial=0.0))
                if form or largest or one[name].tobytes() != other[name].tobytes():
                    _note(found, name, a.key, form=form, largest=largest)
    for name in sorted({*a.info, *b.info}):
        if a.info.get(name) != b.info.get(name):
            found.facts[name] = found.facts.get(name, 0) + 1


def _identical(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> bool:
    return {*a} == {*b} and all(
        x.dtype == b[name].dtype and x.shape == b[name].shape and x.tobytes() == b[name].tobytes()
        for name, x in a.items()
    )


def _note(found: Differences, name: str, key: str, *, form: str = "", largest: float = 0.0) -> None:
    entry = found.arrays.setdefault(name, ArrayDifference(key=key))
    entry.clips += 1
    entry.form = entry.form or form
    if largest > entry.largest:
        entry.largest, entry.key = largest, key


def _quarantine(a: tuple[Quarantined, ...], b: tuple[Quarantined, ...]) -> tuple[str, ...]:
    """Keys that only one has quarantined, or for another reason."""
    return tuple(sorted({entry.key for entry in {*a} ^ {*b}}))
