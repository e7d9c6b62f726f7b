"""What a store holds, in numbers, and in what two stores differ: `caeav store show` and `caeav store diff`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.util import OnProgress, ignore
from caeav.pipeline.store.dtypes import floats
from caeav.pipeline.store.reader import ArraySpec, StoreReader
from caeav.pipeline.store.recipe import recipe_differences
from caeav.pipeline.store.record import Record


@dataclass(frozen=True)
class Description:
    """A store in numbers. `arrays` are those of the first record; `bytes` and `bytes_a_clip` are those of the shards.

    `quarantine` counts clips by stage and reason, `notes` clips by the code of a note, both most frequent first;
    `no_video` and `no_audio` count the clips without any segment of real frames or of real audio.
    """

    clips: int
    expected: int
    missing: int
    bytes: int
    bytes_a_clip: int
    arrays: Mapping[str, ArraySpec]
    quarantine: tuple[tuple[str, str, int], ...]
    notes: tuple[tuple[str, int], ...]
    no_video: int
    no_audio: int


def describe(reader: StoreReader) -> Description:
    """Describe an open store; reads the facts of every record, and arrays of the first one only."""
    notes: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    for key in reader.keys:
        info = reader.info(key)
        notes.update({_code(note) for note in info.get("notes", ())})
        empty.update(name for name in ("frames_ok", "audio_ok") if name in info and not any(info[name]))
    reasons = Counter((entry.stage, entry.reason) for entry in reader.quarantined)
    size = reader.shard_bytes
    return Description(
        clips=len(reader),
        expected=len(reader.manifest.clips),
        missing=len(reader.missing),
        bytes=size,
        bytes_a_clip=size // len(reader) if len(reader) else 0,
        arrays=reader.array_specs(),
        quarantine=tuple((stage, reason, n) for (stage, reason), n in reasons.most_common()),
        notes=tuple(notes.most_common()),
        no_video=empty["frames_ok"],
        no_audio=empty["audio_ok"],
    )


def _code(note: Any) -> str:
    return str(note["code"]) if isinstance(note, Mapping) and "code" in note else str(note)


@dataclass
class ArrayDifference:
    """How one array differs: in how many clips, by how much at most and in which clip; `form` is the first difference
    in shape or dtype as read."""

    clips: int = 0
    largest: float = 0.0
    key: str = ""
    form: str = ""


@dataclass
class Differences:
    """In what two stores differ. `only_a`, `only_b`: keys that one alone stores; `quarantine`: keys that only one has
    quarantined, or for another reason; `arrays` and `facts` (the number of clips that differ) by name."""

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


def compare(a: StoreReader, b: StoreReader, progress: OnProgress = ignore) -> Differences:
    """Compare every record that both stores hold, as stored; `progress` is told each clip."""
    found = Differences(
        recipe=tuple(recipe_differences(a.recipe.as_json(), b.recipe.as_json())),
        only_a=tuple(key for key in a.keys if key not in b),
        only_b=tuple(key for key in b.keys if key not in a),
        quarantine=tuple(sorted({entry.key for entry in {*a.quarantined} ^ {*b.quarantined}})),
    )
    for key in a.keys:
        if key in b:
            compare_records(a.read_stored(key), b.read_stored(key), found)
            found.compared += 1
            progress(1)
    return found


def compare_records(a: Record, b: Record, found: Differences) -> None:
    """Add to `found` how two records of a clip differ; number formats are compared by the floats they give."""
    if not same_arrays(a.arrays, b.arrays):
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


def same_arrays(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> bool:
    """Whether two sets of arrays agree in names, dtypes, shapes and bytes."""
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
