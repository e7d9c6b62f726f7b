"""Opening a store for writing: its remarks, temp files of killed writers, locks, resuming."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from store_files import unfinished_store

from caeav.manifests.core.home import Home
from caeav.pipeline.extract.collect import open_stores
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.store import (
    Quarantined,
    Slice,
    StoreBusy,
    StoreError,
    StoreReader,
    open_for_writing,
    opening,
    verify,
)
from caeav.pipeline.store.backend import backend_of
from caeav.pipeline.store.layout import (
    StoreFolder,
)
from caeav.pipeline.store.lock import WriterLock


def test_opening_reports_new_relabelled_and_removed_clips_with_the_first_of_each(toy) -> None:
    toy.write()
    manifest = toy.manifest(12, "horn")
    said: list[str] = []
    toy.write(replace(manifest, clips=manifest.clips[1:]), seen=lambda w: said.extend(w.remarks))
    assert said == [
        "new clips: 2, clip010 first",
        "clips with new labels or splits: 9, clip001 first",
        "clips no longer in the data set, which stay stored in no split: 1, clip000 first",
    ]
    said.clear()
    toy.write(failing=["clip001"], recipe=toy.recipe(a=1))
    toy.write(retry_failed=True, recipe=toy.recipe(a=1), seen=lambda w: said.extend(w.remarks))
    assert said == ["quarantined clips tried again: 1"]


def test_temp_files_of_a_killed_writer_are_removed_on_opening_and_finishing(toys) -> None:
    folder = unfinished_store(toys)
    places = [
        folder,
        folder / "index",
        folder / "spare",
        *backend_of(toys.recipe()).places(StoreFolder(folder)),
    ]
    for place in places:
        (place / ".part-x").write_bytes(b"x")
    open_for_writing(toys.dataset, toys.recipe(), toys.manifest()).close()
    assert not list(folder.rglob(".part-*"))
    toys.write(seen=lambda _: [(place / ".part-x").write_bytes(b"x") for place in places])
    assert not list(folder.rglob(".part-*")) and verify(folder).sound


def test_the_damage_of_a_record_that_is_made_again_is_reported_once(toy) -> None:
    toy.write()
    entry = StoreReader.open(toy.folder)._indexes[2].entries[1]
    path = toy.folder / "shards" / "000002.tar"
    data = bytearray(path.read_bytes())
    data[int(entry["info_offset"])] ^= 1
    path.write_bytes(data)
    said: list[str] = []
    toy.write(toy.manifest(12), seen=lambda w: said.extend(w.remarks))
    (remark,) = [text for text in said if "made again" in text]
    assert remark.startswith("shard 2, clip009: the json has crc32c ") and remark.count("clip009") == 1


def test_stores_are_opened_by_name_and_returned_in_the_given_order(toy) -> None:
    recipes = sorted((toy.recipe(n=n) for n in range(3)), key=lambda recipe: recipe.folder_name, reverse=True)
    opened: list[str] = []

    def make(manifest: Any, **how: Any) -> list[Any]:
        opened.clear()
        with ExitStack() as stack:
            stores = open_stores(
                stack,
                RunContext(manifest, Home(toy.dataset.parent.parent), RunOptions(workers=1, **how)),
                [(recipe, lambda records, place: list(records)) for recipe in recipes],
                lambda writer: opened.append(writer.path.name),
            )
            assert [store.writer.recipe for store in stores] == recipes
            assert opened == sorted(opened), "so that no two runs wait for each other"
            for store in stores[:1]:
                for key in store.shard_of:
                    store.writer.quarantine(Quarantined(key, "decode", "x", 1))
            return [(len(store.shard_of), store.writer.path.name) for store in stores]

    names = [recipe.folder_name for recipe in recipes]
    assert make(toy.manifest()) == [(10, names[0]), (10, names[1]), (10, names[2])]
    assert [due for due, _ in make(toy.manifest())] == [0, 10, 10]
    assert [due for due, _ in make(toy.manifest(), retry_failed=True)] == [10, 10, 10]
    slices = make(toy.manifest(), part=Slice(2, 3))
    assert slices == [(4, f"{name}.slice-2-of-3") for name in names]
    bare = replace(toy.manifest(), clips=tuple(replace(c, events=(), split="") for c in toy.manifest().clips))
    with pytest.raises(StoreError, match="have labels or splits"):
        make(bare)
    assert make(bare, relabel=True)


def test_a_folder_removed_while_it_is_locked_is_created_again(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[BaseException] = [
        FileNotFoundError(2, "removed"),
        StoreBusy("held by 1"),
        StoreBusy("held by 1"),
        StoreBusy("held by 2"),
    ]

    def lock(path: Path) -> WriterLock:
        if answers:
            raise answers.pop(0)
        return WriterLock(path)

    monkeypatch.setattr(opening, "WriterLock", lock)
    monkeypatch.setattr(opening, "POLL_S", 0)
    told: list[str] = []
    open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), waiting=told.append).close()
    assert [text.partition(";")[0] for text in told] == ["held by 1", "held by 2"]


def test_a_finished_store_without_its_manifest_accepts_a_grown_one(toy) -> None:
    toy.write()
    (toy.folder / "manifest.jsonl").unlink()
    assert toy.write(toy.manifest(12)).stored == 12 and verify(toy.folder).sound
