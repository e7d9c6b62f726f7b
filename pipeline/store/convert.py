"""A store made from another store instead of media: the same content in another backend.

It is copied record by record, each checked when it is read, through the ordinary writer: after an interruption it goes
on, and the bytes are those that extracting straight into the result would have given. At the end everything is read
back and compared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from caeav.manifests.core.util import OnProgress, ignore
from caeav.pipeline.store.backend import BACKEND_FIELD, backend_field
from caeav.pipeline.store.contents import compare
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.media_record import carry_record
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.reader import StoreReader
from caeav.pipeline.store.recipe import Recipe
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.writer import Summary


def converted_recipe(recipe: Recipe, backend: str) -> Recipe:
    """The recipe of the same content in another backend; raises `StoreError` for an unknown backend."""
    kept = {name: value for name, value in recipe.fields.items() if name != BACKEND_FIELD}
    return replace(recipe, fields=kept | backend_field(backend))


def convert(source: Path, backend: str, progress: OnProgress = ignore) -> tuple[Path, Summary]:
    """Make the store of `source` in another backend, beside it; `progress` is told each clip twice.

    Raises `StoreError` when `source` has that backend already, is a slice, or something else lies there.
    """
    reader = StoreReader.open(source)
    if Slice.of_folder(source.resolve().name)[1] != Slice():
        raise StoreError(f"{source} is a slice", hint="merge the slices first: caeav store merge")
    recipe = converted_recipe(reader.recipe, backend)
    if recipe.fingerprint == reader.recipe.fingerprint:
        raise StoreError(f"{source} is a {backend} store already", hint="name another --backend")
    return _copy(reader, source.resolve().parent, recipe, progress)


def _copy(source: StoreReader, folder: Path, recipe: Recipe, progress: OnProgress) -> tuple[Path, Summary]:
    """Write what `source` holds into the store of `recipe` below `folder`, finish it and compare all of it."""
    with open_for_writing(folder, recipe, source.manifest) as writer:
        due = {key for plan in writer.plan() for key in plan.missing}
        for entry in (entry for entry in source.quarantined if entry.key in due):
            writer.quarantine(entry)
        for plan in writer.plan():
            writer.publish(plan, {key: source.read_stored(key) for key in plan.missing})
            progress(len(plan.missing))
        summary = writer.finish()
    carry_record([source.path], writer.path)
    _check_same(source, StoreReader.open(writer.path), progress)
    return writer.path, summary


def _check_same(source: StoreReader, made: StoreReader, progress: OnProgress) -> None:
    """Raise `StoreError` unless `made` holds everything in `source` as it was, and nothing else."""
    found = compare(source, made, progress)
    wrong = {*found.only_a, *found.only_b}
    wrong |= {entry.key for entry in made.quarantined} ^ {entry.key for entry in source.quarantined}
    wrong |= {difference.key for difference in found.arrays.values()}
    if found.facts:
        wrong |= {f"(the facts {', '.join(found.facts)})"}
    if wrong:
        raise StoreError(
            f"{made.path} does not hold what {source.path} holds: {len(wrong)} differences, {min(wrong)} first",
            hint=f"`caeav store diff` shows them; if {made.path} was made in another way, remove it and run this again",
        )
