"""A store made from stores instead of media: in another backend (`convert`), or from its slices (`merge`).

Both copy record by record, each checked when it is read, through the ordinary writer: interrupted they go on, and
the result has the bytes that extracting straight into it would have given. At the end everything is read back
and compared.

In what two stores differ: recipe, clips, quarantine, and each array of each clip both hold.

What a store holds, in numbers and words: `caeav store show`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.manifest import manifest_digest, source_digest
from caeav.pipeline.store.backend import BACKEND_FIELD, backend_field
from caeav.pipeline.store.dtypes import floats
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.media_record import carry_record
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.reader import ArraySpec, StoreReader
from caeav.pipeline.store.recipe import Recipe, recipe_differences
from caeav.pipeline.store.record import Quarantined, Record
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.writer import Summary


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


@dataclass(frozen=True)
class Description:
    """`arrays` are those of the first record; `bytes` and `bytes_a_clip` count what lies in the shards.

    `quarantine` counts clips by stage and reason, `notes` the clips that carry a note of that code, most
    frequent first; `no_video` and `no_audio` the clips of which no segment holds real pictures or sound.
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
    """Describe an open store; reads every record's facts, no arrays but the first record's."""
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


Told = Callable[[int], object]


def unheard(_: int) -> None:
    """Nobody is told."""


def converted_recipe(recipe: Recipe, backend: str) -> Recipe:
    """The recipe of the same content in another backend; raises `StoreError` for an unknown one."""
    kept = {name: value for name, value in recipe.fields.items() if name != BACKEND_FIELD}
    return replace(recipe, fields=kept | backend_field(backend))


def convert(source: Path, backend: str, progress: Told = unheard) -> tuple[Path, Summary]:
    """Make the store of `source` in another backend, beside it; `progress` is told clips, each twice.

    Raises `StoreError` where source and result are the same store, or something else lies there already.
    """
    reader = StoreReader.open(source)
    if Slice.of_folder(source.resolve().name)[1] != Slice():
        raise StoreError(f"{source} is a slice", hint="merge the slices first: caeav store merge")
    recipe = converted_recipe(reader.recipe, backend)
    if recipe.fingerprint == reader.recipe.fingerprint:
        raise StoreError(f"{source} is a {backend} store already", hint="name another --backend")
    return _copy([reader], source.resolve().parent, recipe, progress)


def merge(slices: Sequence[Path], progress: Told = unheard) -> tuple[Path, Summary]:
    """Make the store of which these folders are all the slices, beside the first; `progress` as for `convert`.

    Raises `StoreError` when a slice is missing, given twice, unfinished, or of another recipe or manifest.
    """
    paths = [path.resolve() for path in slices]
    parts = [Slice.of_folder(path.name) for path in paths]
    _all_slices(paths, parts)
    readers = [StoreReader.open(path) for path in paths]
    first = readers[0]
    for reader in readers[1:]:
        for what, digest in (("clips", source_digest), ("labels or splits", manifest_digest)):
            if digest(reader.manifest) != digest(first.manifest):
                raise StoreError(
                    f"{reader.path} was made for other {what} than {first.path}",
                    hint="run the command that made the slices again for each of them, with the data set as it is now",
                )
    return _copy(readers, paths[0].parent, first.recipe, progress)


def _all_slices(paths: Sequence[Path], parts: Sequence[tuple[str, Slice]]) -> None:
    """Each slice of one store, once."""
    if not paths:
        raise StoreError("no slice is given", hint="name the folders of all slices of a store")
    for path, (_, part) in zip(paths, parts, strict=True):
        if part == Slice():
            raise StoreError(f"{path} is no slice of a store", hint="slices end in .slice-<i>-of-<n>")
    store, first = parts[0]
    for path, (name, part) in zip(paths, parts, strict=True):
        if (name, part.count) != (store, first.count):
            raise StoreError(
                f"{path.name} is no slice of {store} cut into {first.count}",
                hint="merge the slices of one store that were cut alike",
            )
    numbers = [part.number for _, part in parts]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise StoreError(
            f"slice {twice[0]} of {first.count} of {store} is given twice",
            hint="name one folder a slice; two that differ cannot be told apart",
        )
    missing = sorted({*range(1, first.count + 1)} - {*numbers})
    if missing:
        named = ", ".join(f"{number}/{first.count}" for number in missing[:8])
        raise StoreError(
            f"{len(missing)} of {first.count} slices of {store} are missing: {named}",
            hint=f"make them with --slice {missing[0]}/{first.count}, or name their folders too",
        )


def _copy(
    sources: Sequence[StoreReader], folder: Path, recipe: Recipe, progress: Told
) -> tuple[Path, Summary]:
    """Write what the sources hold into the store of `recipe` below `folder`, finish it, compare all of it."""
    place = {key: reader for reader in sources for key in reader.keys}
    with open_for_writing(folder, recipe, sources[0].manifest) as writer:
        due = {key for plan in writer.plan() for key in plan.missing}
        for entry in (entry for reader in sources for entry in reader.quarantined if entry.key in due):
            writer.quarantine(entry)
        for plan in writer.plan():
            writer.publish(plan, {key: place[key].read_stored(key) for key in plan.missing})
            progress(len(plan.missing))
        summary = writer.finish()
    carry_record([source.path for source in sources], writer.path)
    made = StoreReader.open(writer.path)
    _same(sources, made, progress)
    return writer.path, summary


def _same(sources: Sequence[StoreReader], made: StoreReader, progress: Told) -> None:
    """Everything that was copied must be there as it was, and nothing else."""
    wrong = {key for key in made.keys if not any(key in reader for reader in sources)}
    wrong |= {entry.key for entry in made.quarantined} ^ {
        entry.key for reader in sources for entry in reader.quarantined
    }
    for reader in sources:
        found = compare(reader, made, progress)
        wrong |= {*found.only_a} | {difference.key for difference in found.arrays.values()}
        if found.facts:
            wrong |= {f"(the facts {', '.join(found.facts)})"}
    if wrong:
        raise StoreError(
            f"{made.path} holds something else than {sources[0].path}: {len(wrong)} differences, {min(wrong)} first",
            hint=f"`caeav store diff` shows them; remove {made.path} if it was made otherwise, and run this again",
        )
