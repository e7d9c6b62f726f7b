"""The slices of a store put together: their finished shards are adopted, not copied (`adopt.py`).

Only recipe, manifest, quarantine and seal are written, and the store is byte for byte the one that a single run makes.
A merge that breaks off anywhere is run again and goes on with the shards that are not there yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from caeav.manifests.core.util import OnProgress, ignore
from caeav.manifests.manifest import manifest_digest, source_digest
from caeav.pipeline.store.adopt import Adopted
from caeav.pipeline.store.contents import Differences, compare_records
from caeav.pipeline.store.errors import StoreError
from caeav.pipeline.store.layout import StoreFolder
from caeav.pipeline.store.media_record import carry_record
from caeav.pipeline.store.opening import open_for_writing
from caeav.pipeline.store.reader import StoreReader
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.state import StoreState, finished, inspect
from caeav.pipeline.store.writer import Summary

AT_ONCE = 64
"""Shards whose folders are synced together; a merge that breaks off reads so many again."""


@dataclass(frozen=True)
class Merged:
    """A merged store; `adopted` counts the files of shards that came now, not those that were there already."""

    path: Path
    summary: Summary
    adopted: Adopted = field(default_factory=Adopted)


def merge(slices: Sequence[Path], progress: OnProgress = ignore, *, check: bool = True) -> Merged:
    """Make the store whose slices are in these folders, beside the first; `progress` is told each stored clip.

    With `check` every byte that is taken over is read once and compared with its digest; without, sizes are compared,
    and indexes with the seals of the slices. Raises `StoreError` when a slice is missing, given twice, unfinished,
    damaged, or of another recipe or manifest, or when a store is there that holds something else.
    """
    paths = [path.resolve() for path in slices]
    parts = [Slice.of_folder(path.name) for path in paths]
    _check_slices(paths, parts)
    states = [finished(path) for path in paths]
    first = states[0]
    _check_manifests(states)
    by_number = {part.number: state for (_, part), state in zip(parts, states, strict=True)}
    made = StoreFolder(paths[0].parent / first.recipe.folder_name)
    was_there = made.recipe.is_file() and made.manifest.is_file()
    if was_there:
        _check_same(by_number, inspect(made.path))
    adopted = Adopted()
    with open_for_writing(made.path.parent, first.recipe, first.manifest) as writer:
        if not was_there:  # shards without a manifest
            _check_same(by_number, inspect(made.path))
        due = {key for plan in writer.plan() for key in plan.missing}
        for state in states:
            for entry in state.quarantined.values():
                if entry.key in due:
                    writer.quarantine(entry)
        wanted = {plan.number for plan in writer.plan()}
        progress(writer.stored - sum(map(writer.records, wanted)))
        for state in states:
            numbers = [number for number in state.indexes if number in wanted]
            for at in range(0, len(numbers), AT_ONCE):
                shards = [state.indexes[number] for number in numbers[at : at + AT_ONCE]]
                writer.adopt(state.folder, shards, adopted, check=check)
                progress(sum(len(index.keys) for index in shards))
        summary = writer.finish()
    carry_record(paths, made.path)
    return Merged(made.path, summary, adopted)


def _check_manifests(slices: Sequence[StoreState]) -> None:
    """Raise `StoreError` unless all slices were made for the same clips, labels and splits."""
    first, *others = slices
    for other in others:
        if _manifest_file(other) == _manifest_file(first):  # digesting the rows of many clips takes a while
            continue
        for what, digest in (("clips", source_digest), ("labels or splits", manifest_digest)):
            if digest(other.manifest) != digest(first.manifest):
                raise StoreError(
                    f"{other.folder.path} was made for other {what} than {first.folder.path}",
                    hint="run the command that made the slices again for each of them, with the data set as it is now",
                )


def _manifest_file(state: StoreState) -> str:
    """The sha256 of the manifest's file, as `inspect` compared it with the seal."""
    return state.seal.sha256["manifest.jsonl"] if state.seal else ""


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


def _check_same(slices: dict[int, StoreState], made: StoreState) -> None:
    """Raise `StoreError` when the store that is there holds or quarantines a clip otherwise than the slices do.

    Equal indexes mean equal shards. Where they differ, as after new clips, the records that are there are compared.
    """
    source = slices[1]
    wrong = {*made.manifest.keys} - {*source.manifest.keys}
    wrong |= {*made.quarantined} - {key for state in slices.values() for key in state.quarantined}
    for number, facts in made.indexes.facts.items():
        state = slices[number % len(slices) + 1]
        theirs = state.indexes.facts.get(number)
        if theirs is None or theirs.digest != facts.digest:
            wrong |= {*_differing(made, state, number)}
    if wrong:
        raise StoreError(
            f"{made.folder.path} does not hold what {source.folder.path} and the other slices hold: "
            f"{len(wrong)} differences, {min(wrong)} first",
            hint="`caeav store diff` shows them; if the store was made in another way, remove it and run this again",
        )


def _differing(made: StoreState, state: StoreState, number: int) -> Iterator[str]:
    """The clips of shard `number` of `made` that the slice lacks or holds otherwise."""
    ours, theirs = StoreReader(made), StoreReader(state)
    for key in made.indexes[number].keys:
        found = Differences()
        if key in theirs:
            compare_records(ours.read_stored(key), theirs.read_stored(key), found)
        if key not in theirs or found.arrays or found.facts:
            yield key
