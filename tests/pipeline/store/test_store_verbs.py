"""`caeav store convert|merge|diff|repair|gc`, as functions and as commands."""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from caeav.manifests.core.home import Home
from caeav.model.train.runs import RunError, referenced_stores
from caeav.pipeline.store import (
    IncompleteStore,
    Quarantined,
    Record,
    Reference,
    Slice,
    StoreBusy,
    StoreError,
    StoreReader,
    compare,
    convert,
    find_slices,
    idle_s,
    merge,
    open_for_writing,
    remove_store,
    repair,
    unreferenced,
    verify,
)
from caeav.pipeline.store.testing_data import Toy

FAILING = ("clip002", "clip013")


def write_slice(toy: Toy, number: int, count: int, manifest=None, finish: bool = True):
    part = Slice(number, count)
    with open_for_writing(toy.dataset, toy.recipe(), manifest or toy.manifest(18), part=part) as writer:
        for plan in writer.plan():
            for key in set(FAILING) & set(plan.missing):
                writer.quarantine(Quarantined(key, "decode", "no such file", 1))
            writer.publish(plan, {key: toy.record(key) for key in plan.missing if key not in FAILING})
        if finish:
            writer.finish()
        return writer.path


def test_merged_slices_are_the_store_of_one_run(toys, contents):
    whole = toys.at(toys.stores.parent / "whole")
    whole.write(toys.manifest(18), failing=FAILING)
    slices = [write_slice(toys, number, 3) for number in (1, 2, 3)]
    made = merge(slices[::-1])
    path, summary = made.path, made.summary
    assert path == toys.folder and (summary.stored, summary.quarantined) == (16, 2)
    assert contents(path) == contents(whole.folder)
    assert merge(slices).path == path and contents(path) == contents(whole.folder)


def test_a_merge_needs_every_slice_exactly_once(toy):
    first, second = (write_slice(toy, number, 3) for number in (1, 2))
    with pytest.raises(StoreError, match=r"1 of 3 slices of .* are missing: 3/3[\s\S]*--slice 3/3"):
        merge([first, second])
    third = write_slice(toy, 3, 3, finish=False)
    with pytest.raises(IncompleteStore):
        merge([first, second, third])
    third = write_slice(toy, 3, 3)
    with pytest.raises(StoreError, match=r"slice 2 of 3 .* is given twice"):
        merge([first, second, second, third])
    with pytest.raises(StoreError, match="is no slice of"):
        merge([first, second, write_slice(toy, 3, 4)])
    toy.write(toy.manifest(18), failing=FAILING)
    with pytest.raises(StoreError, match="is no slice of a store"):
        merge([first, toy.folder])
    with pytest.raises(StoreError, match="no slice is given"):
        merge([])


def test_a_merge_refuses_slices_of_different_data_and_damaged_ones(toy):
    slices = [write_slice(toy, number, 3) for number in (1, 2)]
    for other, what in ((toy.manifest(15), "other clips"), (toy.manifest(18, "horn"), "other labels")):
        third = write_slice(toy.at(toy.stores.parent / what), 3, 3, other)
        with pytest.raises(StoreError, match=what):
            merge([*slices, third])
    third = write_slice(toy, 3, 3)
    shard = third / "shards" / "000002.tar"
    data = bytearray(shard.read_bytes())
    data[900] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"000002\.tar, key clip008"):
        merge([*slices, third])
    with pytest.raises(IncompleteStore):  # nothing half made is taken for a store
        StoreReader.open(toy.folder)
    repair(third)
    write_slice(toy, 3, 3)
    assert merge([*slices, third]).summary.stored == 16


def test_a_merge_into_a_store_with_another_quarantine_is_refused(toy):
    slices = [write_slice(toy, number, 2) for number in (1, 2)]
    toy.write(toy.manifest(18), failing=["clip005", *FAILING])
    with pytest.raises(StoreError, match=r"does not hold what[\s\S]*clip005"):
        merge(slices)


def test_impossible_conversions_are_refused(toy):
    toy.write()
    with pytest.raises(StoreError, match="is a webdataset store already"):
        convert(toy.folder, "webdataset")
    with pytest.raises(StoreError, match=r"unknown store backend 'x'[\s\S]*webdataset, zarr"):
        convert(toy.folder, "x")
    with pytest.raises(StoreError, match="merge the slices first"):
        convert(write_slice(toy, 1, 2), "zarr")
    (toy.folder / "complete.json").unlink()
    with pytest.raises(IncompleteStore):
        convert(toy.folder, "zarr")


def test_an_interrupted_conversion_continues(toy, contents, monkeypatch):
    toy.write(failing=["clip002"])
    calm, _ = convert(toy.folder, "zarr")
    wanted = contents(calm)
    remove_store(calm)
    told = []

    def stopping(clips: int) -> None:
        told.append(clips)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(toy.folder, "zarr", stopping)
    assert len(StoreReader.open(calm, allow_partial=True)) == 7
    convert(toy.folder, "zarr")
    assert contents(calm) == wanted


def test_diff_finds_the_largest_difference(toy):
    toy.write(failing=["clip002"])
    other = toy.at(toy.stores.parent / "other")
    recipe = toy.recipe(note="b")
    with open_for_writing(other.dataset, recipe, toy.manifest()) as writer:
        writer.quarantine(Quarantined("clip009", "decode", "no such file", 1))
        for plan in writer.plan():
            records = {key: toy.record(key) for key in plan.missing}
            for key, by in (("clip004", 0.5), ("clip006", 2.0)):
                if key in records:
                    moved = np.array(records[key].arrays["audio.stage1"])
                    moved[3, 1, 2] += by
                    records[key] = replace(
                        records[key], arrays={**records[key].arrays, "audio.stage1": moved}
                    )
            if "clip005" in records:
                records["clip005"] = Record("clip005", toy.record("clip005").arrays, {"notes": []})
            writer.publish(plan, records)
        writer.finish()
    found = compare(StoreReader.open(toy.folder), StoreReader.open(writer.path))
    assert found.recipe == ("fields.note: '(absent)' -> 'b'",) and found.compared == 8
    assert (found.only_a, found.only_b) == (("clip009",), ("clip002",))
    assert found.quarantine == ("clip002", "clip009")
    (name, difference), *more = found.arrays.items()
    assert (name, difference.clips, difference.key, more) == ("audio.stage1", 2, "clip006", [])
    assert difference.largest == pytest.approx(2.0, abs=1e-6)
    assert found.facts == {"audio_ok": 1, "notes": 1} and not found.same_content


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_diff_exits_with_1_unless_the_content_is_the_same(toy, store_command, more):
    toy.write()
    same, fewer, other = (toy.at(toy.stores.parent / name) for name in ("same", "fewer", "other"))
    same.write()
    fewer.write(failing=["clip002"])
    with open_for_writing(other.dataset, toy.recipe(), toy.manifest()) as writer:
        for plan in writer.plan():
            records = {key: toy.record(key) for key in plan.missing}
            if "clip004" in records:
                arrays = dict(records["clip004"].arrays)
                arrays["audio.stage1"] = np.array(arrays["audio.stage1"]) + 1
                records["clip004"] = replace(records["clip004"], arrays=arrays)
            writer.publish(plan, records)
        writer.finish()
    ends = [
        store_command("diff", toy.folder, store, *more).exit_code
        for store in (same.folder, fewer.folder, other.folder)
    ]
    assert ends == [0, 1, 1]


def test_gc_lists_and_removes_what_no_run_refers_to(toy, store_command):
    home = Home(toy.stores.parent)
    toy.write()
    made, _ = convert(toy.folder, "zarr")
    assert [info.path for info in unreferenced(toy.stores, ())] == sorted([toy.folder, made])
    run = home.runs / "r"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    with pytest.raises(RunError, match="does not say which stores"):
        referenced_stores(home)
    fact = {"folder": f"stores/toy/{made.name}", "fingerprint": StoreReader.open(made).recipe.fingerprint}
    (run / "stores.json").write_text(json.dumps({"stores": [fact]}))
    assert referenced_stores(home) == {Reference("toy", fact["fingerprint"])}
    assert len(unreferenced(toy.stores, {Reference("elsewhere", fact["fingerprint"])}, "toy")) == 2
    new = store_command("gc", "--home", home.root, "--delete", "--yes")
    assert (
        "complete, spared" in new.stdout and "--recent takes them too" in new.output and toy.folder.exists()
    )
    (entry,) = json.loads(store_command("gc", "--home", home.root, "--delete", "--yes", "--json").stdout)
    assert (entry["path"], entry["spared"], entry["deleted"]) == (str(toy.folder), True, False)
    age(toy.folder, 25)
    dry = store_command("gc", "--home", home.root)
    assert toy.folder.name in dry.stdout and made.name not in dry.stdout and toy.folder.exists()
    assert "spared" not in dry.output and "--delete removes them" in dry.stdout
    nobody = store_command("gc", "--home", home.root, "--delete")
    assert "no terminal to answer on" in str(nobody.exception) and "--yes" in str(nobody.exception)
    assert nobody.exit_code and toy.folder.exists()
    gone = json.loads(store_command("gc", "--home", home.root, "--delete", "--yes", "--json").stdout)
    assert [entry["path"] for entry in gone] == [str(toy.folder)] and gone[0]["deleted"]
    assert not toy.folder.exists() and verify(made).sound


def age(folder: Path, hours: float) -> None:
    """Give the files of a store times of `hours` ago."""
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - hours * 3600,) * 2)


@pytest.mark.parametrize("answer", ["y\n", "n\n", "\n", ""])
def test_gc_asks_at_a_terminal(toy, store_command, answer, monkeypatch):
    toy.write()
    age(toy.folder, 25)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    said = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(
            "caeav.cli.console.sys",
            SimpleNamespace(stdin=Terminal(answer), stderr=said, stdout=io.StringIO()),
        )
        done = store_command("gc", "--home", toy.stores.parent, "--delete")
    assert "Remove 1 store, " in said.getvalue() and "[y/N]" in said.getvalue()
    assert toy.folder.exists() == (answer != "y\n")
    assert done.exit_code == (0 if answer == "y\n" else 1)


def test_gc_spares_recently_opened_stores_unless_recent_is_given(toy, store_command):
    toy.write()
    age(toy.folder, 25)
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()):
        pass
    assert idle_s(toy.folder) < 3600, "opening for writing counts as use"
    store_command("gc", "--home", toy.stores.parent, "--delete", "--yes")
    assert toy.folder.exists()
    store_command("gc", "--home", toy.stores.parent, "--delete", "--yes", "--recent")
    assert not toy.folder.exists()


def test_stores_being_written_and_other_folders_are_not_removed(toy, tmp_path):
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()), pytest.raises(StoreBusy):
        remove_store(toy.folder)
    assert toy.folder.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(toy.folder)
    for path in (tmp_path / "mine", link):
        with pytest.raises(StoreError, match="not the folder of a store"):
            remove_store(path)
    assert (tmp_path / "mine" / "thesis.txt").exists() and toy.folder.exists()


def test_repair_is_refused_while_the_store_is_written(toy):
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()), pytest.raises(StoreBusy):
        repair(toy.folder)


def test_the_commands_say_what_they_did(toys, store_command):
    toys.write(failing=["clip002"])
    other = "zarr" if toys.backend == "webdataset" else "webdataset"
    home = ("--home", toys.stores.parent)
    made = json.loads(store_command("convert", "toy", "--backend", other, "--json", *home).stdout)
    assert made["stored"] == 9
    same = store_command("diff", toys.folder, made["path"])
    assert same.exit_code == 0 and "the same content: 9 clips" in same.stdout and "backend" in same.stdout
    assert store_command("diff", toys.folder, made["path"], "--json").exit_code == 0
    (file,) = [f for f in toys.folder.rglob("*") if f.name in ("000001.tar", "c.1.0")]
    data = bytearray(file.read_bytes())
    data[700 if file.suffix == ".tar" else 3] ^= 1
    file.write_bytes(data)
    verified = store_command("verify", toys.folder)
    assert verified.exit_code == 1 and "caeav store repair" in verified.output
    mended = store_command("repair", toys.folder)
    assert mended.exit_code == 0 and "1 clip due: clip004" in mended.stdout
    assert "sound: nothing to repair" in store_command("repair", made["path"]).stdout
    for number in (1, 2):
        write_slice(toys.at(toys.stores.parent / "s" / "stores"), number, 2)
    sliced = ("--home", toys.stores.parent / "s")
    assert len(find_slices(toys.stores.parent / "s" / "stores", "toy", "classic")) == 2
    listed = store_command("ls", *sliced)
    assert "not merged yet, 2 slices (caeav store merge joins them): toy" in listed.output
    merged = store_command("merge", "toy", *sliced)
    assert "stored       16 of 18" in merged.stdout and "quarantined  2" in merged.stdout
    assert "every digest compared" in merged.stdout
    again = store_command("merge", "toy", "--no-check", *sliced)
    assert "sizes compared; `caeav store verify` reads them" in again.stdout
    told = json.loads(store_command("merge", "toy", "--no-check", "--json", *sliced).stdout)
    assert (told["linked"], told["copied"], told["checked"], told["stored"]) == (0, {}, False, 16)
    assert "slices" not in store_command("ls", *sliced).output  # they are merged already
    with pytest.raises(StoreError, match="make slices with"):
        find_slices(toys.stores, "toy")


def test_gc_offers_and_removes_what_a_writer_killed_at_once_left(toy):
    bare = toy.dataset / f"{toy.folder.name[:-4]}beef"
    bare.mkdir(parents=True)
    (bare / ".lock").write_bytes(b"4711")
    (bare / ".part-recipe.json").write_bytes(b"{")
    full = toy.dataset / f"{toy.folder.name[:-4]}f00d"
    full.mkdir()
    (full / "mine.txt").write_text("kept")
    assert [(info.path, info.state, info.clips) for info in unreferenced(toy.stores, [])] == [
        (bare, "partial", 0)
    ]
    remove_store(bare)
    assert not bare.exists()
    with pytest.raises(StoreError, match="not the folder of a store"):
        remove_store(full)
