"""The order in which shards, indexes, copies and the seal are written and removed, and which shards are rewritten."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from store_files import unfinished_store

from caeav.manifests.core import atomic
from caeav.pipeline.store import (
    Quarantined,
    Record,
    Slice,
    StoreReader,
    open_for_writing,
    remove_store,
    verify,
)
from caeav.pipeline.store.backend import backend_of
from caeav.pipeline.store.layout import (
    StoreFolder,
    numbered,
)
from caeav.pipeline.store.record import read_quarantine


def test_a_shard_whose_clips_fail_again_is_not_rewritten(toys) -> None:
    toys.write(failing=["clip002"])
    files = [
        path for path in toys.folder.rglob("*") if path.suffix in (".tar", ".idx") or path.name[:2] == "c."
    ]
    before = {path: path.stat().st_ino for path in files}
    toys.write(retry_failed=True, failing=["clip002"])
    assert {path: path.stat().st_ino for path in files} == before
    assert StoreReader.open(toys.folder).quarantined[0].attempts == 2


def test_remaking_removes_only_the_named_clips(toys) -> None:
    toys.write(failing=["clip001", "clip009"])
    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest()) as writer:
        assert writer.plan() == []
        writer.remake(["clip002", "clip008", "clip009"])
        assert not (toys.folder / "complete.json").exists()
        assert [(plan.number, plan.missing) for plan in writer.plan()] == [
            (0, ("clip002",)),
            (2, ("clip008", "clip009")),
        ]
        assert [entry.key for entry in writer.quarantined] == ["clip001"]
    quarantined, _ = read_quarantine(toys.folder / "quarantine.jsonl")
    assert {*quarantined} == {"clip001"}
    assert numbered(toys.folder / "index") == [0, 1], "shard 2 held only clip008"
    files = [path.name for number, paths in backend_of(toys.recipe()).files(StoreFolder(toys.folder)).items()
             for path in paths if number == 2]  # fmt: skip
    assert files == []
    reader = StoreReader.open(toys.folder, allow_partial=True)
    assert tuple(reader.keys) == ("clip000", "clip003", "clip004", "clip005", "clip006", "clip007")
    assert all(toys.same(record) for record in reader)


def test_the_seal_is_written_last_and_removed_first(toys, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    rename, remove = atomic.rename, atomic.remove
    monkeypatch.setattr(atomic, "rename", lambda old, new: steps.append(f"+{new.name}") or rename(old, new))
    monkeypatch.setattr(atomic, "remove", lambda path: steps.append(f"-{path.name}") or remove(path))
    toys.write()
    assert steps[-1] == "+complete.json"
    steps.clear()
    toys.write(toys.manifest(12))
    assert steps[0] == "-complete.json" and steps[-1] == "+complete.json"
    assert steps.index("-000002.idx") < steps.index("+000002.idx")
    steps.clear()
    monkeypatch.setattr(shutil, "rmtree", lambda path: steps.append("rmtree"))
    remove_store(toys.folder)
    assert steps == ["-complete.json", "rmtree"] and not (toys.folder / "complete.json").exists()


def test_a_shard_without_an_index_is_removed_on_finishing(toys) -> None:
    folder = unfinished_store(toys)
    (first, *_) = backend_of(toys.recipe()).files(StoreFolder(folder))[0]
    orphan = first.with_name(first.name.replace("000000", "000009").replace("c.0", "c.9"))
    orphan.write_bytes(b"x")
    toys.write()
    assert not orphan.exists() and first.exists() and verify(folder).sound


def test_a_clip_of_another_slice_is_not_due(toy) -> None:
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), part=Slice(2, 2)) as writer:
        assert writer.expected == 4 and [plan.number for plan in writer.plan()] == [1]
        with pytest.raises(ValueError, match="'clip000' is not due here"):
            writer.keep(toy.record("clip000"))
        with pytest.raises(ValueError, match="in another slice"):
            writer.quarantine(Quarantined("clip000", "decode", "x", 1))
        with pytest.raises(ValueError, match="'nobody' is not due here"):
            writer.keep(Record("nobody", {}, {}))


def test_an_index_is_written_before_its_copy_and_removed_after_it(
    toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    rename, remove = atomic.rename, atomic.remove

    def noted(sign: str, path: Path) -> None:
        if path.suffix == ".idx":
            steps.append(sign + path.parent.name)

    monkeypatch.setattr(atomic, "rename", lambda old, new: noted("+", new) or rename(old, new))
    monkeypatch.setattr(atomic, "remove", lambda path: noted("-", path) or remove(path))
    toy.write(toy.manifest(3))
    assert steps == ["+index", "+spare"]
    toy.write(toy.manifest(4))
    assert steps[2:] == ["-spare", "-index", "+index", "+spare"]


def test_a_failed_rewrite_on_a_full_disk_keeps_the_old_shard(toys, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.write()
    sync_file = atomic.sync_file

    def full(out: Any) -> None:
        if Path(out.name).suffix == ".tar" or Path(out.name).name.startswith(".part-c."):
            raise OSError(28, "No space left on device")
        sync_file(out)

    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest(12)) as writer:
        plan = writer.plan()[0]
        monkeypatch.setattr(atomic, "sync_file", full)
        with pytest.raises(OSError, match="No space left"):
            writer.publish(plan, {key: toys.record(key) for key in plan.missing})
        monkeypatch.setattr(atomic, "sync_file", sync_file)
    reader = StoreReader.open(toys.folder, allow_partial=True)
    assert len(reader) == 10 and all(toys.same(record) for record in reader)
