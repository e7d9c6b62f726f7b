"""Creating, resuming, growing and finishing a store."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.store import (
    DamagedStore,
    IncompleteStore,
    Quarantined,
    Recipe,
    RecipeChanged,
    StoreBusy,
    StoreError,
    StoreReader,
    open_for_writing,
    remove_store,
    repair,
    verify,
)
from caeav.pipeline.store.lock import WriterLock


def test_everything_is_stored_or_quarantined(toy):
    summary = toy.write(failing=["clip002", "clip009"])
    assert (summary.stored, summary.quarantined, summary.expected, summary.shards) == (8, 2, 10, 3)
    reader = StoreReader.open(toy.folder)
    assert [q.key for q in reader.quarantined] == ["clip002", "clip009"]
    assert reader.keys == tuple(c.key for c in toy.manifest().clips if c.key not in ("clip002", "clip009"))
    assert all(toy.same(record) for record in reader)
    assert reader.array_specs()["visual.stage1"].shape == (10, 6, 8)
    assert reader.info("clip001")["audio_ok"] == [False] * 10
    assert reader.manifest.clips == toy.manifest().clips
    assert reader.manifest.media_root == ""
    with pytest.raises(StoreError, match=r"clip002.*quarantined.*decode: no such file"):
        reader.read("clip002")
    with pytest.raises(StoreError, match="not in its manifest"):
        reader.read("nobody")


def test_a_second_run_changes_no_file(toy):
    toy.write(failing=["clip002"])
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in toy.folder.rglob("*") if p.name != ".lock"}
    plans = []
    toy.write(seen=lambda w: plans.extend(w.plan()))
    after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in toy.folder.rglob("*") if p.name != ".lock"}
    assert plans == [] and after == before


def test_order_of_work_does_not_change_bytes(toy, contents):
    toy.write(failing=["clip001", "clip008"])
    other = toy.at(toy.stores.parent / "other")
    other.write(failing=["clip001", "clip008"], order=lambda plans: plans[::-1])
    assert contents(other.folder) == contents(toy.folder)


def test_a_shard_of_which_every_clip_fails_is_not_written(toy):
    toy.write(failing=["clip008", "clip009"])
    assert sorted(p.name for p in (toy.folder / "shards").iterdir()) == ["000000.tar", "000001.tar"]
    assert verify(toy.folder).sound


def test_a_store_whose_clips_all_failed_is_finished_and_empty(toy):
    summary = toy.write(failing=[c.key for c in toy.manifest().clips])
    assert (summary.stored, summary.quarantined) == (0, 10)
    reader = StoreReader.open(toy.folder)
    assert len(reader) == 0 and reader.array_specs() == {} and verify(toy.folder).sound


def test_an_unfinished_store_is_refused_with_a_next_step(toy):
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        plan = writer.plan()[1]
        writer.publish(plan, {key: toy.record(key) for key in plan.missing})
        with pytest.raises(IncompleteStore, match=r"6 of 10 clips .* clip000 first"):
            writer.finish()
        partial = StoreReader.open(toy.folder, allow_partial=True)
        assert partial.keys == plan.keys and len(partial.missing) == 6
        with pytest.raises(StoreError, match="not stored yet"):
            partial.read("clip000")
    with pytest.raises(
        IncompleteStore, match=r"6 of 10 clips.*clip000, clip001, clip002 and 3 more[\s\S]*caeav extract"
    ):
        StoreReader.open(toy.folder)
    assert not verify(toy.folder).sound and verify(toy.folder).problems == ()


def test_a_complete_store_without_its_seal_is_refused(toy):
    toy.write()
    (toy.folder / "complete.json").unlink()
    with pytest.raises(IncompleteStore, match="stopped before it closed"):
        StoreReader.open(toy.folder)


def test_a_failed_clip_is_tried_again_only_on_request(toy):
    toy.write(failing=["clip002", "clip003"])
    plans = []
    toy.write(seen=lambda w: plans.extend(w.plan()))
    assert plans == []
    toy.write(retry_failed=True, failing=["clip003"], seen=lambda w: plans.extend(w.plan()))
    assert [(p.number, p.missing) for p in plans] == [(0, ("clip002", "clip003"))]
    reader = StoreReader.open(toy.folder)
    assert [(q.key, q.attempts) for q in reader.quarantined] == [("clip003", 2)]
    assert toy.same(reader.read("clip002")) and verify(toy.folder).sound


def test_a_retry_gives_the_bytes_of_a_run_without_failures(toy, contents):
    toy.write(failing=["clip002", "clip008", "clip009"])
    toy.write(retry_failed=True)
    other = toy.at(toy.stores.parent / "other")
    other.write()
    assert contents(toy.folder) == contents(other.folder)


def test_quarantine_survives_a_crash_and_a_torn_line(toy):
    writer = open_for_writing(toy.dataset, toy.recipe(), toy.manifest())
    writer.quarantine(Quarantined("clip009", "decode", "first", 1))
    writer.quarantine(Quarantined("clip000", "decode", "second", 1))
    writer.close()
    path = toy.folder / "quarantine.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    said = []
    toy.write(seen=lambda w: said.extend([w.remarks, w.quarantined]))
    assert "torn" in said[0][0] and [q.key for q in said[1]] == ["clip009"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["key"] for line in lines] == ["clip009"] and verify(toy.folder).sound


def test_a_quarantine_line_of_a_clip_stored_since_is_dropped(toys, contents):
    """A run that retries clips leaves such lines when it is killed before it finishes the store."""
    calm = toys.at(toys.stores.parent / "calm")
    calm.write(failing=["clip009"])
    toys.write(failing=["clip002", "clip009"])
    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest(), retry_failed=True) as writer:
        for plan in writer.plan()[:1]:
            writer.publish(plan, {key: toys.record(key) for key in plan.missing})
    assert b"clip002" in (toys.folder / "quarantine.jsonl").read_bytes()
    reader = StoreReader.open(toys.folder, allow_partial=True)
    assert [entry.key for entry in reader.quarantined] == ["clip009"] and toys.same(reader.read("clip002"))
    assert verify(toys.folder).quarantined == 1
    summary = toys.write()
    assert (summary.stored, summary.quarantined, summary.expected) == (9, 1, 10)
    assert b"clip002" not in (toys.folder / "quarantine.jsonl").read_bytes()
    entry = StoreReader.open(toys.folder).quarantined[0]
    assert (entry.key, entry.attempts) == ("clip009", 1)
    assert contents(toys.folder) == contents(calm.folder)


def test_the_finished_quarantine_is_in_manifest_order(toy):
    toy.write(failing=["clip001", "clip005", "clip009"], order=lambda plans: plans[::-1])
    lines = (toy.folder / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == ["clip001", "clip005", "clip009"]


def test_growth_appends_clips_and_keeps_stored_shards(toy, contents):
    toy.write(failing=["clip004"])
    before = contents(toy.folder)
    plans, said = [], []
    toy.write(toy.manifest(15), seen=lambda w: (plans.extend(w.plan()), said.extend(w.remarks)))
    assert [(p.number, p.missing) for p in plans] == [
        (2, ("clip010", "clip011")),
        (3, ("clip012", "clip013", "clip014")),
    ]
    assert any("new clips: 5, clip010 first" in remark for remark in said)
    after = contents(toy.folder)
    for name in ("shards/000000.tar", "shards/000001.tar", "index/000000.idx", "recipe.json"):
        assert after[name] == before[name]
    other = toy.at(toy.stores.parent / "other")
    other.write(toy.manifest(15), failing=["clip004"])
    assert contents(other.folder) == after


def test_new_labels_do_not_touch_the_shards(toy):
    toy.write()
    shards = {p: p.stat().st_mtime_ns for p in toy.folder.glob("shards/*")}
    said = []
    toy.write(toy.manifest(label="horn"), seen=lambda w: said.extend([w.plan(), w.remarks]))
    assert said[0] == [] and "clips with new labels or splits: 10" in said[1][0]
    assert {p: p.stat().st_mtime_ns for p in toy.folder.glob("shards/*")} == shards
    assert StoreReader.open(toy.folder).manifest.clips[0].events[0].label == "horn"


def test_removed_clips_stay_stored_and_the_writers_manifest_knows_the_media_folder(toy):
    toy.write()
    said = []
    toy.write(toy.manifest(6), seen=lambda w: said.extend([w.remarks, w.manifest]))
    assert "stay stored in no split: 4" in said[0][0]
    assert said[1].media_root == "/somewhere" and len(said[1].clips) == 10
    assert len(StoreReader.open(toy.folder)) == 10


def test_another_number_of_segments_is_refused(toy):
    from dataclasses import replace

    toy.write()
    with pytest.raises(CaeavError, match="segments"):
        toy.write(replace(toy.manifest(), segments=5))


def test_another_recipe_in_the_folder_is_refused_naming_the_field(toy):
    toy.write()
    other = toy.recipe(dtype="float32")
    (toy.folder / "recipe.json").write_text(json.dumps(other.as_json(), indent=2, sort_keys=True) + "\n")
    with pytest.raises(RecipeChanged, match=r"fields\.dtype: 'float32' -> 'float16'"):
        toy.write()
    with pytest.raises(StoreError, match="another recipe's name"):
        StoreReader.open(toy.folder)


def test_tuples_in_a_recipe_equal_the_lists_read_back(toy):
    recipe = toy.recipe(taps=("a", "b"))
    toy.write(recipe=recipe)
    toy.write(recipe=recipe)
    assert StoreReader.open(toy.dataset / recipe.folder_name).recipe.fingerprint == recipe.fingerprint


@pytest.mark.parametrize("size", [0, -1, True, "64", 1 << 40])
def test_invalid_shard_sizes_are_refused(toy, size):
    with pytest.raises(StoreError, match="shard_clips"):
        toy.write(recipe=Recipe("tokens", "x", {"shard_clips": size}))


def test_a_second_writer_is_refused_naming_the_first(toy):
    with (
        open_for_writing(toy.dataset, toy.recipe(), toy.manifest()),
        pytest.raises(StoreBusy, match=f"pid {os.getpid()}"),
    ):
        open_for_writing(toy.dataset, toy.recipe(), toy.manifest())
    toy.write()
    assert (toy.folder / ".lock").read_bytes() == b""


def test_a_waiting_writer_names_the_first_and_continues_with_what_is_left(toy):
    first = open_for_writing(toy.dataset, toy.recipe(), toy.manifest())
    told = []

    def waiting(text):
        told.append(text)
        first.publish(first.plan()[0], {key: toy.record(key) for key in first.plan()[0].missing})
        first.close()

    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), waiting=waiting) as second:
        assert [plan.number for plan in second.plan()] == [1, 2]
    assert len(told) == 1 and f"pid {os.getpid()}; waiting" in told[0]


def test_a_writer_waiting_for_a_store_that_is_removed_creates_a_new_one(toy):
    toy.write()
    lock = WriterLock(toy.folder / ".lock")

    def waiting(_):
        shutil.rmtree(toy.folder)
        lock.release()

    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), waiting=waiting) as second:
        assert len(second.plan()) == 3
        with pytest.raises(StoreBusy):
            WriterLock(toy.folder / ".lock")


def test_a_lock_that_is_no_plain_file_is_refused_and_its_target_kept(toy, tmp_path):
    toy.write()
    precious, lock = tmp_path / "precious", toy.folder / ".lock"
    precious.write_text("mine")
    for make in (
        lambda: lock.symlink_to(precious),
        lambda: lock.symlink_to(tmp_path / "nowhere"),
        lambda: lock.mkdir(),
        lambda: os.mkfifo(lock),
    ):
        lock.rmdir() if lock.is_dir() else lock.unlink()
        make()
        for work in (toy.write, lambda: repair(toy.folder), lambda: remove_store(toy.folder)):
            with pytest.raises(DamagedStore, match=r"\.lock is no plain file"):
                work()
    assert precious.read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_a_forked_child_that_outlives_its_killed_parent_does_not_keep_the_lock(toy):
    writer = open_for_writing(toy.dataset, toy.recipe(), toy.manifest())
    end, hold = os.pipe()
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hold)
        os.write(tell, b"x")
        os.read(end, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        writer._lock.forget()  # as the kernel does for a killed process
        open_for_writing(toy.dataset, toy.recipe(), toy.manifest()).close()
    finally:
        os.close(hold)
        os.waitpid(child, 0)
        for fd in (end, ready, tell):
            os.close(fd)


def test_a_failed_opening_releases_the_lock(toy):
    toy.write()
    (toy.folder / "manifest.jsonl").write_text("{}\n")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"manifest\.jsonl"):
            toy.write()


def test_records_that_do_not_fit_the_plan_are_refused(toy):
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        first, second, _ = writer.plan()
        good = {key: toy.record(key) for key in first.missing}
        with pytest.raises(ValueError, match="lacks 1 records, 'clip003'"):
            writer.publish(first, {key: good[key] for key in first.missing[:3]})
        with pytest.raises(ValueError, match="not due in shard 1"):
            writer.publish(second, good)
        with pytest.raises(ValueError, match="given as 'clip001'"):
            writer.publish(first, good | {"clip001": good["clip000"]})
        assert not list(toy.folder.glob("shards/*"))
        writer.publish(first, good)
        with pytest.raises(ValueError, match="stored and cannot"):
            writer.quarantine(Quarantined("clip000", "decode", "late", 1))
        with pytest.raises(ValueError, match="not in the manifest"):
            writer.quarantine(Quarantined("nobody", "decode", "who", 1))


def test_an_error_while_encoding_leaves_no_file(toy):
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        plan = writer.plan()[0]
        records = {key: toy.record(key) for key in plan.missing}
        records["clip003"].info["bad"] = {1, 2}
        with pytest.raises(TypeError):
            writer.publish(plan, records)
    assert not [p for p in toy.folder.rglob("*") if "shards/" in str(p)]


def test_a_failed_rewrite_keeps_the_old_shard(toy):
    toy.write()
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(12)) as writer:
        plan = writer.plan()[0]
        records = {key: toy.record(key) for key in plan.missing}
        records["clip011"].info["bad"] = {1, 2}
        with pytest.raises(TypeError):
            writer.publish(plan, records)
        assert writer.plan() == [plan]
        writer.publish(plan, {key: toy.record(key) for key in plan.missing})
        writer.finish()
    assert all(toy.same(record) for record in StoreReader.open(toy.folder))


def test_damaged_records_of_a_shard_to_be_rewritten_are_made_again(toy, contents):
    toy.write()
    shard = toy.folder / "shards" / "000002.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    said = []
    toy.write(toy.manifest(12), seen=lambda w: said.extend([w.remarks, w.plan()]))
    assert any("clip008" in remark and "crc32c" in remark for remark in said[0])
    assert said[1][0].missing == ("clip008", "clip010", "clip011")
    other = toy.at(toy.stores.parent / "other")
    other.write(toy.manifest(12))
    assert contents(other.folder) == contents(toy.folder)
