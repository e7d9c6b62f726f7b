"""What `inspect` finds out about a store before a record is read, and how a writer uses it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from store_files import unfinished_store

from caeav.manifests.key_index import Keys
from caeav.pipeline.store import (
    ArrayDifference,
    DamagedShard,
    DamagedStore,
    Differences,
    IncompleteStore,
    Record,
    StoreError,
    StoreReader,
    find_other_recipes,
    open_for_writing,
    verify,
)
from caeav.pipeline.store.backend import backend_of
from caeav.pipeline.store.contents import compare_records
from caeav.pipeline.store.errors import Problem
from caeav.pipeline.store.formats.common import MappedFile
from caeav.pipeline.store.layout import (
    StoreFolder,
    parse_seal,
)
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.state import InspectedShard, inspect, inspect_shard, mismatch


def problem_of(toys, number=1, seal=None):
    """The problem that `inspect_shard` finds in a shard, or an empty text."""
    recipe = toys.recipe()
    found = inspect_shard(StoreFolder(toys.folder), backend_of(recipe), number, recipe.fingerprint, seal)
    return f"{found.where}: {found.what}" if isinstance(found, Problem) else ""


# One shard


def test_an_index_that_differs_from_the_seal_is_a_problem(toys):
    toys.write()
    seal = parse_seal((toys.folder / "complete.json").read_bytes(), toys.folder)
    assert problem_of(toys, seal=seal) == ""
    name = "index/000001.idx"
    other = replace(seal, sha256={**seal.sha256, name: "0" * 64})
    assert "complete.json names another sha256" in problem_of(toys, seal=other)
    assert problem_of(toys, 0, seal=other) == "", "the other indexes must be sound"


def test_an_index_removed_while_the_store_is_read_is_a_problem(toys):
    toys.write()
    (toys.folder / "index" / "000001.idx").unlink()
    assert problem_of(toys) == "index/000001.idx: vanished while it was read: the store is being written"


def test_a_folder_in_the_place_of_a_shard_counts_as_missing(toys):
    toys.write()
    facts = inspect(toys.folder).indexes[1].files[0]
    path = toys.folder / facts.name
    path.unlink()
    path.mkdir()
    assert problem_of(toys) == f"{facts.name}: the file is missing"


def test_an_input_output_error_is_raised_and_not_taken_for_damage(toys, monkeypatch):
    """Otherwise the next run would throw away shards on a disk that is temporarily unreadable."""
    toys.write()
    facts = inspect(toys.folder).indexes[1].files[0]
    real = os.stat

    def stat(path, *args, **kwargs):
        if str(path).endswith(facts.name):
            raise OSError(5, "Input/output error", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(OSError, match="Input/output error"):
        problem_of(toys)
    monkeypatch.undo()
    assert verify(toys.folder).sound


def test_keys_must_follow_the_plan_and_arrays_those_of_other_shards(toys):
    toys.write()
    state = inspect(toys.folder)
    found = InspectedShard(state.indexes[1], b"")
    keys = tuple(found.index.keys)
    assert mismatch(found, Keys.of(keys), None) is None
    assert mismatch(found, Keys.of((*keys, "later")), found.index.layout) is None
    turned = mismatch(found, Keys.of((*reversed(keys), "later")), None)
    assert turned is not None and (turned.key, turned.shard) == (keys[0], None)
    fewer = mismatch(found, Keys.of(keys[:-1]), None)
    assert fewer is not None and fewer.key == keys[-1]
    other = mismatch(found, Keys.of(keys), ("another",))
    assert other is not None and other.shard == 1 and "other arrays" in other.what


@pytest.mark.parametrize("change", [1, -1])
def test_a_file_of_another_size_is_not_mapped(toys, change):
    toys.write()
    facts = inspect(toys.folder).indexes[1].files[0]
    assert MappedFile(toys.folder, facts, 1).bytes.size == facts.bytes
    os.truncate(toys.folder / facts.name, facts.bytes + change)
    with pytest.raises(DamagedShard, match=f"{facts.bytes + change} bytes, its index says {facts.bytes}"):
        MappedFile(toys.folder, facts, 1)


# Opening for writing


def open_writer(toys, **how):
    return open_for_writing(toys.dataset, toys.recipe(), how.pop("manifest", toys.manifest()), **how)


def test_a_new_store_has_an_empty_quarantine_file(toys):
    with open_writer(toys) as writer:
        assert (toys.folder / "quarantine.jsonl").read_bytes() == b""
        assert not writer.remarks
    (toys.folder / "quarantine.jsonl").unlink()
    with open_writer(toys):
        assert (toys.folder / "quarantine.jsonl").read_bytes() == b""


def test_the_index_of_a_damaged_shard_is_removed_before_it_is_made_again(toys):
    toys.write()
    facts = inspect(toys.folder).indexes[1].files[0]
    os.truncate(toys.folder / facts.name, facts.bytes - 1)
    with open_writer(toys) as writer:
        assert not any((toys.folder / name / "000001.idx").exists() for name in ("index", "spare"))
        assert [plan.number for plan in writer.plan()] == [1]
        assert any("shard 1 is made again" in text for text in writer.remarks)


def test_the_clips_of_a_changed_quarantine_are_tried_again(toys):
    toys.write(failing=["clip002"])
    path = toys.folder / "quarantine.jsonl"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "reason": "another"}) + "\n")
    with open_writer(toys) as writer:
        assert [plan.missing for plan in writer.plan()] == [("clip002",)]
        assert any("its clips are tried again" in text for text in writer.remarks)


def test_opening_names_the_first_unplanned_shard_and_counts_the_others(toy):
    toy.write(toy.manifest(16))
    larger = toy.folder.with_name("larger")
    toy.folder.rename(larger)
    toy.write(toy.manifest(8))
    for number in (2, 3):
        for name in (f"index/{number:06d}.idx", f"shards/{number:06d}.tar"):
            shutil.copy(larger / name, toy.folder / name)
    (toy.folder / "complete.json").unlink()
    with pytest.raises(DamagedStore, match=r"000002\.idx.*\(and 1 more\)"):
        open_writer(toy, manifest=toy.manifest(8))


def test_a_run_without_labels_removes_labels_only_on_request(toys):
    labelled = toys.manifest()
    bare = replace(labelled, clips=tuple(replace(c, events=(), split="") for c in labelled.clips))
    toys.write()
    with pytest.raises(StoreError, match="none of them has any now") as refused:
        open_writer(toys, manifest=bare, relabel=False)
    assert "--relabel" in refused.value.hint
    assert StoreReader.open(toys.folder).manifest.clips[0].events, "the refusal must change nothing"
    with open_writer(toys, manifest=bare, relabel=True) as writer:
        assert any("clips with new labels" in text for text in writer.remarks)


def test_a_lock_file_removed_while_it_is_locked_is_refused(tmp_path, monkeypatch):
    """Otherwise two writers could each hold a file of that name."""
    path = tmp_path / ".lock"
    real = fcntl.flock

    def flock(fd, how):
        real(fd, how)
        path.unlink()
        path.touch()

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FileNotFoundError, match="removed while it was being locked"):
        WriterLock(path)
    monkeypatch.undo()
    WriterLock(path).release()


# Recipes


def test_a_recipe_of_another_schema_is_not_read(toys):
    toys.write()
    path = toys.folder / "recipe.json"
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 2'))
    with pytest.raises(StoreError, match=r"recipe\.json: schema 2; this program reads 1"):
        StoreReader.open(toys.folder)


def test_a_store_of_other_models_is_not_listed_as_another_recipe(toys):
    toys.write()
    toys.write(recipe=replace(toys.recipe(), name="classic-and-more"))
    recipe = toys.recipe(dtype="float32")
    assert [x.path for x in find_other_recipes(toys.dataset.parent, "toy", recipe)] == [toys.folder]


# Comparing


def test_the_first_differing_shape_is_reported():
    found = Differences()
    one, other = np.zeros(3, np.float32), np.zeros((3, 1), np.float32)
    compare_records(Record("a", {"x": one}), Record("a", {"x": other}), found)
    compare_records(Record("b", {"x": one}), Record("b", {"x": one + 2}), found)
    compare_records(Record("c", {"x": one}), Record("c", {"x": one.astype(np.float64)}), found)
    assert found.arrays == {"x": ArrayDifference(3, 2.0, "b", "[3] -> [3, 1]")}


def test_equal_bytes_of_another_dtype_differ():
    found = Differences()
    zeros = np.zeros(4, np.int16)
    compare_records(Record("a", {"x": zeros}), Record("a", {"x": zeros.view(np.uint16)}), found)
    assert found.arrays == {"x": ArrayDifference(1, 0.0, "a", "int16 -> uint16")}


@pytest.mark.parametrize("name", ["expected", "stored", "quarantined", "shards", "shard_bytes"])
def test_a_seal_with_a_wrong_count_is_refused_naming_the_field(toy, name: str) -> None:
    toy.write(failing=["clip002"])
    path = toy.folder / "complete.json"
    value = json.loads(path.read_text())
    seen = value[name]
    value[name] += 1
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    with pytest.raises(DamagedStore, match=rf"complete\.json: {name} is {seen}, the seal says {seen + 1}"):
        StoreReader.open(toy.folder)
    toy.write()
    assert verify(toy.folder).sound


def test_a_seal_counts_the_content_of_the_store(toy) -> None:
    summary = toy.write(failing=["clip002", "clip003"])
    seal = parse_seal((toy.folder / "complete.json").read_bytes(), toy.folder)
    size = sum(path.stat().st_size for path in toy.folder.glob("shards/*"))
    assert (seal.stored, seal.quarantined, seal.expected, seal.shards, seal.shard_bytes) == (
        8,
        2,
        10,
        3,
        size,
    )
    assert summary.bytes == size and seal.fingerprint == toy.recipe().fingerprint
    wanted = {"manifest.jsonl", "quarantine.jsonl", *(f"index/00000{n}.idx" for n in range(3))}
    assert {*seal.sha256} == wanted
    assert all(
        hashlib.sha256((toy.folder / name).read_bytes()).hexdigest() == seal.sha256[name] for name in wanted
    )
    verified = verify(toy.folder)
    assert (verified.stored, verified.quarantined, verified.shards, verified.bytes) == (8, 2, 3, size)
    assert (verified.missing, verified.finished, verified.sound) == (0, True, True)


def test_opening_an_unfinished_store_names_the_missing_clips(toy) -> None:
    folder = unfinished_store(toy, 7)
    with pytest.raises(IncompleteStore, match=r"3 of 7 clips .*: clip004, clip005, clip006") as caught:
        StoreReader.open(folder)
    assert " more" not in caught.value.problem and "caeav extract" in str(caught.value.hint)
    folder = unfinished_store(toy.at(toy.stores.parent / "more"), 8)
    with pytest.raises(IncompleteStore, match=r"4 of 8 clips .*: clip004, clip005, clip006 and 1 more"):
        StoreReader.open(folder)
    state = inspect(folder)
    captions = replace(state, recipe=replace(state.recipe, kind="captions"))
    assert "`caeav caption` again" in str(captions.incomplete().hint)
    assert (state.stored, state.expected, len(state.indexes)) == (4, 8, 1)
