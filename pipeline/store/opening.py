"""Opening a store for writing: create it, or resume what an earlier writer left, whatever state that is in.

What was found is in `StoreWriter.remarks`. Another recipe in the folder is refused, naming the fields that differ;
damaged shards become due again; nothing sound is ever thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from caeav.manifests.clip import Manifest
from caeav.manifests.core.atomic import make_folder, publish_bytes, unpublish
from caeav.manifests.manifest import write_manifest
from caeav.manifests.update import update_manifest
from caeav.pipeline.store.backend import backend_of, temp_files
from caeav.pipeline.store.errors import RecipeChanged, StoreBusy, StoreError
from caeav.pipeline.store.layout import StoreFolder, parse_recipe, read_capped, render_recipe
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.recipe import Recipe, recipe_differences
from caeav.pipeline.store.record import render_quarantine
from caeav.pipeline.store.slices import Slice
from caeav.pipeline.store.spare import restore_indexes, withdraw_index
from caeav.pipeline.store.staged import remove_staging
from caeav.pipeline.store.state import StoreState, inspect
from caeav.pipeline.store.writer import StoreWriter

POLL_S = 0.2


def open_for_writing(
    dataset_folder: Path,
    recipe: Recipe,
    manifest: Manifest,
    *,
    retry_failed: bool = False,
    part: Slice | None = None,
    waiting: Callable[[str], object] | None = None,
    relabel: bool = True,
) -> StoreWriter:
    """Create or resume the store of `recipe` below `dataset_folder` (`<home>/stores/<dataset>`), or a slice of it.

    The stored manifest takes over the labels of `manifest` and grows by its new clips; clips that `manifest` lacks
    stay, in no split, and published shards keep their place. Unless `relabel`, losing all labels is refused. With
    `retry_failed` quarantined clips are due again. While another process writes the store this waits, after telling
    `waiting` about it; without `waiting` it raises `StoreBusy`. Raises `RecipeChanged` when the folder holds another
    recipe, `DamagedStore` when its recipe or manifest cannot be read.
    """
    folder = StoreFolder(dataset_folder / (recipe.folder_name + (part or Slice()).suffix))
    wanted = parse_recipe(render_recipe(recipe), folder.recipe)  # as it reads back: lists, not tuples
    lock = _lock(folder, waiting)
    try:
        return _resume(folder, lock, wanted, manifest, retry_failed, relabel)
    except BaseException:
        lock.release()
        raise


def _lock(folder: StoreFolder, waiting: Callable[[str], object] | None) -> WriterLock:
    """The lock of the store's folder, which is made if it is not there."""
    told = ""
    while True:
        make_folder(folder.path)
        try:
            return WriterLock(folder.lock)
        except FileNotFoundError:  # the folder was removed in between
            continue
        except StoreBusy as busy:
            if waiting is None:
                raise
            if busy.problem != told:
                told = busy.problem
                waiting(f"{told}; waiting until it is done (Ctrl-C ends the wait)")
            time.sleep(POLL_S)


def _resume(
    folder: StoreFolder,
    lock: WriterLock,
    recipe: Recipe,
    manifest: Manifest,
    retry_failed: bool,
    relabel: bool,
) -> StoreWriter:
    for leftover in temp_files(folder, backend_of(recipe)):
        unpublish(leftover)
    remove_staging(folder.path)
    _write_or_check_recipe(folder, recipe)
    if not folder.manifest.is_file():
        unpublish(folder.seal)
        write_manifest(replace(manifest, media_root=""), folder.manifest)
    restored = restore_indexes(folder, backend_of(recipe), recipe.fingerprint)
    state = inspect(folder.path, manifest)
    remarks = [*restored, *state.remarks]
    indexes, quarantined = state.indexes, dict(state.quarantined)
    sealed = state.seal is not None
    for problem in state.problems:
        if problem.shard is None and not problem.rewritten:
            raise problem.error(folder.path, len(state.problems) - 1)
    if state.problems or state.remarks:
        unpublish(folder.seal)
        sealed = False
        remarks += _mend(folder, state)
        if state.problems:
            remarks.append(
                f"damage was found on opening; `caeav store verify {folder.path}` reads all of what is kept, "
                "`caeav store repair` drops what else is damaged"
            )
        if any(problem.where == "quarantine.jsonl" for problem in state.problems):
            quarantined = {}
        publish_bytes(folder.quarantine, render_quarantine(quarantined.values()))
    elif not folder.quarantine.is_file():
        publish_bytes(folder.quarantine, b"")
    grown, growth = update_manifest(state.manifest, manifest)
    if not relabel and growth.loses_labels(state.manifest, grown):
        raise StoreError(
            f"the clips of {manifest.dataset} have labels or splits in {folder.path.name}, none of them has any now",
            hint="give the labels they had: --labels FILE; or --relabel to take their labels away",
        )
    if replace(grown, media_root="") != state.manifest:
        unpublish(folder.seal)
        sealed = False
        write_manifest(replace(grown, media_root=""), folder.manifest)
    for keys, what in (
        (growth.added, "new clips"),
        (growth.relabelled, "clips with new labels or splits"),
        (growth.gone, "clips no longer in the data set, which stay stored in no split"),
    ):
        if keys:
            remarks.append(f"{what}: {len(keys)}, {keys[0]} first")
    earlier: dict[str, int] = {}
    if retry_failed and quarantined:
        remarks.append(f"quarantined clips tried again: {len(quarantined)}")
        earlier = {key: entry.attempts for key, entry in quarantined.items()}
        quarantined = {}
    writer = StoreWriter(folder, lock, recipe, grown, indexes, quarantined, earlier, sealed, remarks)
    writer.drop_damaged()
    writer.resume_journals()
    return writer


def _write_or_check_recipe(folder: StoreFolder, recipe: Recipe) -> None:
    """Write the recipe into a new folder; raises `RecipeChanged` when another one is there."""
    if not folder.recipe.is_file():
        publish_bytes(folder.recipe, render_recipe(recipe))
        return
    stored = parse_recipe(read_capped(folder.recipe), folder.recipe)
    differences = recipe_differences(stored.as_json(), recipe.as_json())
    if differences:
        raise RecipeChanged(
            f"{folder.path} was made by another recipe: {'; '.join(differences)}",
            hint=f"continue with the settings it was made with, or remove {folder.path} to start again",
        )


def _mend(folder: StoreFolder, state: StoreState) -> list[str]:
    """Withdraw damaged shards; returns remarks on what happens to each damage."""
    remarks = []
    for problem in state.problems:
        if problem.shard is not None:
            withdraw_index(folder, problem.shard)
            remarks.append(f"{problem}; shard {problem.shard} is made again")
        elif problem.where == "quarantine.jsonl":
            remarks.append(f"{problem}; its clips are tried again")
        else:
            remarks.append(f"{problem}; it is written anew")
    return remarks
