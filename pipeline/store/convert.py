"""A store made from other stores instead of media: in another backend (`convert`), or from its slices (`merge`).

Both copy record by record, each checked when it is read, through the ordinary writer: after an interruption they go on,
and the bytes are those that extracting straight into the result would have given. At the end everything is read back
and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from caeav.manifests.manifest import manifest_digest, source_digest
from caeav.pipeline.store.backend import BACKEND_FIELD, backend_field
from caeav.pipeline.store.contents import compare
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.media_record import carry_record
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.reader import StoreReader
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.writer import Summary

Progress = Callable[[int], object]


def ignore(_: int) -> None:
    """Report no progress."""


def converted_recipe(recipe: Recipe, backend: str) -> Recipe:
    """The recipe of the same content in another backend; raises `StoreError` for an unknown backend."""
    kept = {name: value for name, value in recipe.fields.items() if name != BACKEND_FIELD}
    return replace(recipe, fields=kept | backend_field(backend))


def convert(source: Path, backend: str, progress: Progress = ignore) -> tuple[Path, Summary]:
    """Make the store of `source` in another backend, beside it; `progress` is told each clip twice.

    Raises `StoreError` when `source` has that backend already, is a slice, or something else lies there.
    """
    reader = StoreReader.open(source)
    if Slice.of_folder(source.resolve().name)[1] != Slice():
        raise StoreError(f"{source} is a slice", hint="merge the slices first: caeav store merge")
    recipe = converted_recipe(reader.recipe, backend)
    if recipe.fingerprint == reader.recipe.fingerprint:
        raise StoreError(f"{source} is a {backend} store already", hint="name another --backend")
    return _copy([reader], source.resolve().parent, recipe, progress)


def merge(slices: Sequence[Path], progress: Progress = ignore) -> tuple[Path, Summary]:
    """Make the store whose slices are in these folders, beside the first; `progress` is told each clip twice.

    Raises `StoreError` when a slice is missing, given twice, unfinished, or of another recipe or manifest.
    """
    paths = [path.resolve() for path in slices]
    parts = [Slice.of_folder(path.name) for path in paths]
    _check_slices(paths, parts)
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


def _check_slices(paths: Sequence[Path], parts: Sequence[tuple[str, Slice]]) -> None:
    """Raise `StoreError` unless these are all slices of one store, each given once."""
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
            hint="name one folder per slice; which of two is the right one cannot be told",
        )
    missing = sorted({*range(1, first.count + 1)} - {*numbers})
    if missing:
        named = ", ".join(f"{number}/{first.count}" for number in missing[:8])
        raise StoreError(
            f"{len(missing)} of {first.count} slices of {store} are missing: {named}",
            hint=f"make them with --slice {missing[0]}/{first.count}, or name their folders too",
        )


def _copy(
    sources: Sequence[StoreReader], folder: Path, recipe: Recipe, progress: Progress
) -> tuple[Path, Summary]:
    """Write what the sources hold into the store of `recipe` below `folder`, finish it and compare all of it."""
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
    _check_same(sources, made, progress)
    return writer.path, summary


def _check_same(sources: Sequence[StoreReader], made: StoreReader, progress: Progress) -> None:
    """Raise `StoreError` unless `made` holds everything in the sources as it was, and nothing else."""
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
            f"{made.path} does not hold what {sources[0].path} holds: {len(wrong)} differences, {min(wrong)} first",
            hint=f"`caeav store diff` shows them; if {made.path} was made in another way, remove it and run this again",
        )
