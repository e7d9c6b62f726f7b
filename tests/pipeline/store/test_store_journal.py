"""The journal keeps finished records of incomplete shards, and never returns a torn, damaged or foreign one."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caeav.manifests.core import atomic
from caeav.pipeline.store import (
    DamagedStore,
    Quarantined,
    Record,
    StoreReader,
    list_stores,
    open_for_writing,
    remove_store,
    repair,
    verify,
)
from caeav.pipeline.store.journal import kept_remarks, source_of
from caeav.pipeline.store.layout import (
    StoreFolder,
)
from caeav.pipeline.store.testing_data import Toy

KEYS = ("clip000", "clip001", "clip002")


@pytest.fixture
def started(toys: Toy) -> Toy:
    """Three of the four clips of the first shard are kept, and of the last shard one of two."""
    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest()) as writer:
        for key in (*KEYS, "clip009"):
            writer.keep(toys.record(key))
    return toys


def kept_records(toy: Toy, **recipe: object) -> dict[str, Record]:
    with open_for_writing(toy.dataset, toy.recipe(**recipe), toy.manifest()) as writer:
        return {key: record for plan in writer.plan() for key, record in writer.kept(plan.number).items()}


def journal_file(toy: Toy, number: int = 0) -> Path:
    return toy.folder / "journal" / f"{number:06d}.log"


def test_kept_records_are_used_and_the_bytes_are_those_of_an_undisturbed_run(started, contents):
    calm = started.at(started.stores.parent / "calm")
    calm.write()
    with open_for_writing(started.dataset, started.recipe(), started.manifest()) as writer:
        first, second, third = writer.plan()
        assert (first.kept, second.kept, third.kept) == (KEYS, (), ("clip009",))
        assert first.missing == (*KEYS, "clip003"), "kept is not stored"
        assert any("4 clips of 2 shards" in text for text in writer.remarks)
        assert all(map(started.same, writer.kept(0).values()))
        for plan in (first, second, third):
            made = {key: started.record(key) for key in plan.missing if key not in plan.kept}
            writer.publish(plan, made | writer.kept(plan.number))
            assert not journal_file(started, plan.number).exists()
        writer.finish()
    assert contents(started.folder) == contents(calm.folder)
    assert not (started.folder / "journal").exists()


def test_kept_records_are_read_back_byte_for_byte(toy):
    arrays = {
        "a": np.arange(5, dtype=np.int8),
        "b": np.zeros((0, 3), np.float16),
        "c": np.arange(6, dtype="u2").view("V2").reshape(2, 3),
        "d": np.float64(1.5).reshape(()),
    }
    record = Record("clip000", arrays, {"texts": {"visual": "ein Bär \ud800", "audio": ""}, "notes": []})
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        writer.keep(record)
    back = kept_records(toy)["clip000"]
    assert dict(back.info) == dict(record.info) and back.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back.arrays[name].dtype == array.dtype and back.arrays[name].tobytes() == array.tobytes()
        assert back.arrays[name].shape == array.shape


def test_readers_and_verify_do_not_count_kept_records_as_stored(started):
    reader = StoreReader.open(started.folder, allow_partial=True)
    assert len(reader) == 0 and len(reader.missing) == 10
    verified = verify(started.folder)
    assert not verified.problems and not verified.sound and verified.missing == 10
    assert any("4 clips" in text and "journal" in text for text in verified.remarks), verified.remarks
    (info,) = list_stores(started.stores)
    assert info.state == "partial" and info.bytes == sum(
        journal_file(started, n).stat().st_size for n in (0, 2)
    )
    remove_store(started.folder)
    assert not started.folder.exists()


def test_a_journal_torn_at_any_byte_keeps_its_whole_records(started, contents):
    calm = started.at(started.stores.parent / "calm")
    calm.write()
    data = journal_file(started).read_bytes()
    seen = set()
    rng = random.Random(0)
    for size in sorted(
        {0, 1, 63, 64, 65, 127, len(data) - 1, *(rng.randrange(len(data)) for _ in range(25))}
    ):
        journal_file(started).write_bytes(data[:size] + bytes(size % 3))
        back = kept_records(started)
        names = [key for key in KEYS if key in back]
        assert tuple(names) == KEYS[: len(names)], "records before the tear must stay"
        assert all(map(started.same, back.values()))
        seen.add(len(names))
        with open_for_writing(started.dataset, started.recipe(), started.manifest()) as writer:
            assert not any("torn" in text for text in writer.remarks), "the torn end must be removed"
            writer.keep(started.record("clip003"))
        assert {*names, "clip003"} <= kept_records(started).keys(), "records added after a tear must be found"
    assert seen == {0, 1, 2}
    started.write()
    assert contents(started.folder) == contents(calm.folder)


def test_a_flipped_bit_loses_only_its_record_and_is_never_returned(started):
    data = journal_file(started).read_bytes()
    rng = random.Random(1)
    lost = []
    for at in [*range(64), *(rng.randrange(len(data)) for _ in range(150))]:
        journal_file(started).write_bytes(
            data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        )
        with open_for_writing(started.dataset, started.recipe(), started.manifest()) as writer:
            back = writer.kept(0)
            said = [text for text in writer.remarks if "damaged" in text]
        assert all(map(started.same, back.values())) and set(back) <= {*KEYS}
        assert (len(back) < 3) == bool(said), f"bit {at}"
        assert len(back) < 3 or at >= 64
        lost.append(3 - len(back))
        shutil.rmtree(started.folder / "journal", ignore_errors=True)
        journal_file(started).parent.mkdir()
    assert 1 in lost and 3 in lost


def test_damage_that_comes_while_the_journal_is_open_is_an_error(started):
    with open_for_writing(started.dataset, started.recipe(), started.manifest()) as writer:
        data = journal_file(started).read_bytes()
        journal_file(started).write_bytes(data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
        with pytest.raises(DamagedStore, match=r"000000\.log: the record of clip002.*\n.*same command again"):
            writer.kept(0)


def test_a_kept_record_counts_only_for_its_recipe_shard_and_manifest_row(started):
    other = started.recipe(dtype="float32")
    with open_for_writing(started.dataset, other, started.manifest()) as writer:
        there = writer.path / "journal" / "000000.log"
        writer.keep(started.record("clip000"))
    shutil.copy(journal_file(started), there)
    assert kept_records(started, dtype="float32") == {}
    shutil.copy(journal_file(started), journal_file(started, 1))
    assert kept_records(started).keys() == {*KEYS, "clip009"} and not journal_file(started, 1).exists()
    (started.folder / "manifest.jsonl").unlink()  # it is written again, possibly with other content
    moved = started.manifest()
    first, *others = moved.clips
    moved = replace(moved, clips=(replace(first, start_s=1.0), *others))
    with open_for_writing(started.dataset, started.recipe(), moved) as writer:
        assert writer.plan()[0].kept == ("clip001", "clip002")


def test_growth_and_new_labels_keep_the_journal(started):
    with open_for_writing(started.dataset, started.recipe(), started.manifest(14, label="horn")) as writer:
        assert [plan.kept for plan in writer.plan()] == [KEYS, (), ("clip009",), ()]


def test_a_clip_that_is_quarantined_or_forgotten_is_made_again(started):
    with open_for_writing(started.dataset, started.recipe(), started.manifest()) as writer:
        writer.quarantine(Quarantined("clip001", "values", "not finite", 1))
        writer.forget(["clip002", "clip005"])
        assert writer.plan()[0].kept == ("clip000",)
    with open_for_writing(started.dataset, started.recipe(), started.manifest(), retry_failed=True) as writer:
        assert writer.plan()[0].kept == ("clip000",) and "clip001" in writer.plan()[0].missing
        writer.keep(started.record("clip001"))
    with open_for_writing(started.dataset, started.recipe(), started.manifest(), retry_failed=True) as writer:
        assert writer.plan()[0].kept == ("clip000", "clip001")


def test_quarantining_and_forgetting_are_synced_before_the_call_returns(
    started, monkeypatch: pytest.MonkeyPatch
):
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with open_for_writing(started.dataset, started.recipe(), started.manifest()) as writer:
        writer.keep(started.record("clip004"))
        assert "000001.log" not in synced and writer.unsynced
        writer.sync()
        assert synced[-2:] == ["000001.log", "journal"] and not writer.unsynced
        for work, name in (
            (lambda: writer.forget(["clip000"]), "000000.log"),
            (
                lambda: writer.quarantine(Quarantined("clip006", "decode", "no such file", 1)),
                "quarantine.jsonl",
            ),
        ):
            synced.clear()
            work()
            assert name in synced
    with open_for_writing(started.dataset, started.recipe(), started.manifest()) as writer:
        assert writer.unsynced, "the writer may have been killed before it synced"
        synced.clear()
        writer.sync()
        assert {"000000.log", "000001.log", "000002.log", "journal"} == {*synced} and not writer.unsynced


def test_keeping_removes_the_seal_and_refuses_clips_that_are_not_due(toy):
    toy.write(failing=["clip002"])
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), retry_failed=True) as writer:
        for key in ("clip001", "nobody"):
            with pytest.raises(ValueError, match="not due"):
                writer.keep(replace(toy.record("clip001"), key=key))
        writer.keep(toy.record("clip002"))
        assert not (toy.folder / "complete.json").exists()
        writer.quarantine(Quarantined("clip002", "values", "not finite", 1))
        with pytest.raises(ValueError, match="not due"):
            writer.keep(toy.record("clip002"))


def test_a_failed_write_to_the_journal_leaves_the_other_records(started, monkeypatch: pytest.MonkeyPatch):
    real = atomic.write_bytes

    def full(out, data) -> None:
        real(out, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    for key, number in (("clip003", 0), ("clip004", 1)):
        with open_for_writing(started.dataset, started.recipe(), started.manifest()) as writer:
            size = (
                journal_file(started, number).stat().st_size if journal_file(started, number).exists() else 0
            )
            with monkeypatch.context() as patched:
                patched.setattr(atomic, "write_bytes", full)
                with pytest.raises(OSError, match="No space"):
                    writer.keep(started.record(key))
            assert (journal_file(started, number).stat().st_size if size else 0) == size
            assert size or not journal_file(started, number).exists()
            writer.keep(started.record(key))
    assert kept_records(started).keys() == {*KEYS, "clip003", "clip004", "clip009"}


def test_a_journal_that_is_no_plain_file_is_refused(started):
    outside = started.stores.parent / "outside"
    journal_file(started).rename(outside)
    journal_file(started).symlink_to(outside)
    before = outside.read_bytes()
    with pytest.raises(DamagedStore, match="no plain file"):
        kept_records(started)
    journal_file(started).unlink()
    os.mkfifo(journal_file(started))
    with pytest.raises(DamagedStore, match="no plain file"):
        kept_records(started)
    assert outside.read_bytes() == before


def test_repair_keeps_the_journal_and_names_the_due_clips(started):
    done = repair(started.folder)
    assert set(done.due) == {f"clip00{n}" for n in (3, 4, 5, 6, 7, 8)} and not done.finished
    assert kept_records(started).keys() == {*KEYS, "clip009"}


def test_a_journal_left_in_a_finished_store_is_reported_and_removed(started):
    there = journal_file(started).read_bytes()
    started.write()
    journal_file(started).parent.mkdir()
    journal_file(started).write_bytes(there)
    assert [problem.where for problem in verify(started.folder).problems] == ["journal/000000.log"]
    started.write()
    assert verify(started.folder).sound


def test_publishing_a_shard_removes_only_its_journal(toy) -> None:
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        first, second, _ = writer.plan()
        for key in (*first.missing, second.missing[0]):
            writer.keep(toy.record(key))
        assert writer.unsynced
        writer.sync()
        assert not writer.unsynced
        writer.publish(first, writer.kept(0))
        assert [path.name for path in (toy.folder / "journal").iterdir()] == ["000001.log"]
        assert (writer.stored, writer.expected, {*writer.indexes}) == (4, 10, {0})
        assert writer.place("clip007") == 7
        with pytest.raises(KeyError):
            writer.place("nobody")
        assert writer.kept(0) == {} and {*writer.kept(1)} == {second.missing[0]}
        writer.forget([second.missing[0]])
        assert writer.kept(1) == {}
        assert [list(keys) for keys in writer.planned][2] == ["clip008", "clip009"]


def test_a_remade_clip_is_not_taken_from_a_journal(toy) -> None:
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        for key in ("clip001", "clip002"):
            writer.keep(toy.record(key))
        writer.remake(["clip001"])
        assert {*writer.kept(0)} == {"clip002"}
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        assert writer.plan()[0].kept == ("clip002",)


def test_the_source_digest_of_a_clip_covers_key_media_and_times(toy) -> None:
    clip = toy.manifest().clips[0]
    source = source_of(clip)
    assert len(source) == 32 and source_of(replace(clip, split="test", events=())) == source
    for other in ({"key": "x"}, {"media": "x.mp4"}, {"start_s": 1.0}, {"seconds": 9.0}):
        assert source_of(replace(clip, **other)) != source
    assert source_of(replace(clip, start_s=0, seconds=10)) == source, "integers and floats count as equal"


def test_a_journal_is_synced_with_its_folder_and_flushed_with_each_record(
    toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync_file, sync_folder = atomic.sync_file, atomic.sync_folder
    monkeypatch.setattr(atomic, "sync_file", lambda out: synced.append(Path(out.name).name) or sync_file(out))
    monkeypatch.setattr(atomic, "sync_folder", lambda path: synced.append(path.name) or sync_folder(path))
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        path = toy.folder / "journal" / "000000.log"
        sizes = []
        for key in ("clip000", "clip001", "clip001"):
            writer.keep(toy.record(key))
            sizes.append(path.stat().st_size)
        assert 0 < sizes[0] < sizes[1] == sizes[2], "a record is kept once and written immediately"
        synced.clear()
        writer.sync()
        writer.sync()
        assert synced == ["000000.log", "journal"]
        writer.keep(toy.record("clip002"))
        assert writer.unsynced
        writer.sync()
        assert synced == ["000000.log", "journal", "000000.log"]
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        assert writer.unsynced, "the writer may have been killed before it synced"
        assert writer.remarks == [
            "3 clips of 1 shard not complete yet were finished before and need not be made again"
        ]


def test_a_damaged_record_in_a_journal_is_not_counted_as_finished(toy) -> None:
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        for key in ("clip000", "clip001", "clip002"):
            writer.keep(toy.record(key))
        writer.forget(["clip001"])
    assert kept_remarks(StoreFolder(toy.folder)) == [
        "journal: 2 clips finished, in no shard yet; the next run takes them up"
    ]
    path = toy.folder / "journal" / "000000.log"
    data = bytearray(path.read_bytes())
    data[64 + 64] ^= 1  # in the first entry, behind the headers of file and entry
    path.write_bytes(data)
    assert kept_remarks(StoreFolder(toy.folder)) == [
        "journal: 1 clip finished, in no shard yet; the next run takes them up"
    ]
    assert verify(toy.folder).remarks == tuple(kept_remarks(StoreFolder(toy.folder)))
