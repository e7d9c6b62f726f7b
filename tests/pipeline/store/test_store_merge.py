"""A merge adopts the shards of slices without copying them; the stores stay independent; interruptions do no harm."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from caeav.manifests.core import atomic
from caeav.pipeline.store import (
    DamagedStore,
    Quarantined,
    StoreError,
    StoreReader,
    adopt,
    merge,
    open_for_writing,
    repair,
    verify,
)
from caeav.pipeline.store.adopt import NO_LINK
from caeav.pipeline.store.media_record import Facts, read_record, write_record
from caeav.pipeline.store.testing_data import Toy, contents

CLIPS = 18
FAILING = ("clip002", "clip013")


def write_slices(toy: Toy, clips: int = CLIPS) -> list[Path]:
    return toy.write_slices(2, toy.manifest(clips), FAILING)


def shards(folder: Path) -> list[Path]:
    """The files that hold records."""
    return sorted(
        path for path in folder.glob("shards*/**/*") if path.suffix == ".tar" or path.name[:2] == "c."
    )


def bytes_of_one_run(toy: Toy) -> dict[str, bytes]:
    whole = toy.at(toy.stores.parent / "whole")
    whole.write(toy.manifest(CLIPS), failing=FAILING)
    return contents(whole.folder)


def test_a_merge_writes_no_byte_of_a_shard(toys: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = bytes_of_one_run(toys)
    slices = write_slices(toys)
    before = [contents(path) for path in slices]
    written: list[str] = []
    real = atomic.write_bytes

    def counting(out, data) -> None:
        written.append(Path(out.name).name.removeprefix(atomic.TEMP_PREFIX))
        real(out, data)

    monkeypatch.setattr(atomic, "write_bytes", counting)
    told: list[int] = []
    made = merge(slices, told.append)
    assert contents(made.path) == wanted and [contents(path) for path in slices] == before
    assert {*written} <= {"recipe.json", "manifest.jsonl", "quarantine.jsonl", "complete.json", "zarr.json"}
    files = shards(made.path)
    assert made.adopted.linked == len(files) >= 5 and not made.adopted.copied
    assert all(path.stat().st_nlink == 2 for path in files)
    assert sum(told) == made.summary.stored == CLIPS - len(FAILING)
    assert verify(made.path).sound


def test_a_store_outlives_its_slices(toys: Toy) -> None:
    slices = write_slices(toys)
    made = merge(slices)
    for path in slices:
        shutil.rmtree(path)
    assert verify(made.path).sound and contents(made.path) == bytes_of_one_run(toys)


@pytest.mark.parametrize("spoiled", ["cut", "grown", "flipped", "short"])
@pytest.mark.parametrize("side", ["store", "slice"])
def test_repairing_one_store_never_changes_the_other(toys: Toy, spoiled: str, side: str) -> None:
    """The damage is in bytes that both share; repair changes only one of them."""
    slices = write_slices(toys)
    made = merge(slices)
    mended, other = (made.path, slices[1]) if side == "store" else (slices[1], made.path)
    shared = next(path for path in shards(slices[1]) if path.name in ("000001.tar", "c.1.0.0.0"))
    data = shared.read_bytes()
    with shared.open("r+b") as out:
        if spoiled == "grown":
            out.seek(0, os.SEEK_END)
            out.write(b"more")
        elif spoiled == "flipped":
            out.seek(900)
            out.write(bytes([data[900] ^ 1]))
        else:
            out.truncate(len(data) - (700 if spoiled == "cut" else len(data) // 2))
    before = contents(other)
    done = repair(mended)
    assert done.said
    assert contents(other) == before
    assert not verify(mended).problems and verify(other).problems
    assert all(map(toys.same, StoreReader.open(mended, allow_partial=True)))


def test_resizing_copies_a_shared_file_first(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for size in (0, 3, 5, 9):
        mine.write_bytes(b"12345")
        theirs.unlink(missing_ok=True)
        os.link(mine, theirs)
        atomic.resize_file(mine, size)
        assert theirs.read_bytes() == b"12345"
        assert mine.read_bytes() == b"12345"[:size].ljust(size, b"\0")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "theirs"]
        number = mine.stat().st_ino
        if size != 5:
            atomic.resize_file(mine, 2)
            assert mine.stat().st_ino == number and mine.read_bytes() == b"12345\0\0"[:size][:2].ljust(
                2, b"\0"
            )


def test_a_slice_that_is_written_again_does_not_change_the_store(
    toys: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice that gets more clips writes its last shard again."""
    slices = write_slices(toys)
    made = merge(slices)
    before = contents(made.path)
    write_slices(toys, clips=CLIPS + 4)
    assert contents(made.path) == before and verify(made.path).sound
    steps: list[str] = []
    for name in ("link_file", "remove"):
        real = getattr(atomic, name)
        monkeypatch.setattr(atomic, name, lambda *p, real=real: (steps.append(p[-1].name), real(*p)))
    again = merge(slices)
    changed = [name for name in steps if name in ("000004.idx", "000004.tar", "c.4", "c.4.0.0.0")]
    assert changed[:2] == ["000004.idx"] * 2, (
        "the index and its copy are removed before the files of the shard"
    )
    assert again.summary.stored == CLIPS + 4 - len(FAILING)
    whole = toys.at(toys.stores.parent / "whole")
    whole.write(toys.manifest(CLIPS + 4), failing=FAILING)
    assert contents(again.path) == contents(whole.folder)


@pytest.mark.parametrize("number", sorted(NO_LINK))
def test_without_hard_links_shards_are_copied_and_counted_by_reason(
    toys: Toy, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    slices = write_slices(toys)

    def refused(old: Path, new: Path) -> None:
        raise OSError(number, os.strerror(number), str(old), None, str(new))

    monkeypatch.setattr(atomic, "link_file", refused)
    made = merge(slices)
    files = shards(made.path)
    assert made.adopted.linked == 0 and dict(made.adopted.copied) == {NO_LINK[number]: len(files)}
    assert all(path.stat().st_nlink == 1 for path in files)
    assert contents(made.path) == bytes_of_one_run(toys)


def test_other_errors_of_linking_are_raised(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(old: Path, new: Path) -> None:
        raise OSError(errno.ENOSPC, "no room")

    slices = write_slices(toy)
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "link_file", full)
        with pytest.raises(OSError, match="no room"):
            merge(slices)
    assert merge(slices).adopted.linked == 5 and contents(toy.folder) == bytes_of_one_run(toy)


def test_shards_behind_symbolic_links_are_adopted_as_files(toy: Toy, tmp_path: Path) -> None:
    """The shards of a slice may lie on another file system: the store gets files, never links to them."""
    slices = write_slices(toy)
    elsewhere = tmp_path / "shards"
    shutil.move(slices[0] / "shards", elsewhere)
    (slices[0] / "shards").symlink_to(elsewhere)
    for path in (slices[1] / "shards").iterdir():
        shutil.move(path, tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    made = merge(slices)
    assert not any(path.is_symlink() for path in shards(made.path)) and len(shards(made.path)) == 5
    if tmp_path.stat().st_dev != toy.stores.stat().st_dev:
        assert dict(made.adopted.copied) == {"other file system": 5}
    assert contents(made.path) == bytes_of_one_run(toy)


@pytest.mark.parametrize("copied", [False, True])
def test_a_merge_finds_damage_that_does_not_change_sizes(
    toys: Toy, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    slices = write_slices(toys)
    path = next(path for path in shards(slices[0]) if path.name in ("000002.tar", "c.2.0.0.0"))
    key = "clip009" if path.name[:2] == "c." else "clip008"
    data = bytearray(path.read_bytes())
    data[900] ^= 1
    path.write_bytes(data)
    if copied:

        def refused(old: Path, new: Path) -> None:
            raise OSError(errno.EXDEV, "other")

        monkeypatch.setattr(atomic, "link_file", refused)
    with pytest.raises(DamagedStore, match=rf"{path.name}, key {key}: .*crc32c"):
        merge(slices)
    assert not (toys.folder / "index" / "000002.idx").exists()
    if not copied:
        assert merge(slices, check=False).summary.stored == 16
        assert [problem.key for problem in verify(toys.folder).problems] == [key]
        return
    with pytest.raises(DamagedStore, match=key):  # a copy is read, so it is compared
        merge(slices, check=False)


def test_a_damaged_copy_of_an_index_is_not_adopted(toy: Toy) -> None:
    slices = write_slices(toy)
    (slices[0] / "spare" / "000000.idx").write_bytes(b"x")
    (slices[1] / "spare" / "000001.idx").unlink()
    made = merge(slices)
    assert contents(made.path) == bytes_of_one_run(toy)


def test_an_index_that_changes_during_a_merge_is_an_error(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    slices = write_slices(toy)
    real = adopt.read_capped

    def racing(path: Path) -> bytes:
        data = real(path)
        if path == slices[1] / "index" / "000003.idx":
            path.unlink()
            path.write_bytes(b"another")
        return data

    monkeypatch.setattr(adopt, "read_capped", racing)
    with pytest.raises(DamagedStore, match=r"000003\.idx.*written meanwhile"):
        merge(slices)
    assert not (toy.folder / "index" / "000003.idx").exists()


def test_a_store_that_holds_other_records_is_refused_untouched(toys: Toy) -> None:
    slices = write_slices(toys)
    other = Toy(toys.stores, toys.backend)
    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest(CLIPS)) as writer:
        for plan in writer.plan():
            records = {key: other.record("clip000" if key == "clip005" else key) for key in plan.missing}
            writer.publish(plan, {key: type(r)(key, r.arrays, r.info) for key, r in records.items()})
        writer.finish()
    before = contents(toys.folder)
    with pytest.raises(StoreError, match=r"does not hold what .*: 3 differences, clip002 first"):
        merge(slices)
    assert contents(toys.folder) == before and verify(toys.folder).sound


def test_a_store_of_more_clips_is_refused_untouched(toy: Toy) -> None:
    slices = write_slices(toy)
    toy.write(toy.manifest(CLIPS + 1), failing=FAILING)
    before = contents(toy.folder)
    with pytest.raises(StoreError, match="1 differences, clip018 first"):
        merge(slices)
    assert contents(toy.folder) == before


def test_a_merge_completes_what_a_single_run_began(toys: Toy) -> None:
    """The run was stopped with a published shard and a journal of another."""
    slices = write_slices(toys)
    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest(CLIPS)) as writer:
        first, second, *_ = (plan for plan in writer.plan() if not {*FAILING} & {*plan.keys})
        writer.publish(first, {key: toys.record(key) for key in first.missing})
        writer.keep(toys.record(second.missing[0]))
        writer.sync()
    made = merge(slices)
    assert contents(made.path) == bytes_of_one_run(toys)


def test_a_merge_continues_a_store_without_its_manifest(toy: Toy) -> None:
    """The content of its shards is still compared."""
    slices = write_slices(toy)
    merge(slices)
    (toy.folder / "manifest.jsonl").unlink()
    told: list[int] = []
    assert merge(slices, told.append).adopted.linked == 0
    assert contents(toy.folder) == bytes_of_one_run(toy) and told == [16]
    shutil.rmtree(toy.folder)
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(CLIPS)) as writer:
        [first, *_] = writer.plan()
        record = toy.record("clip017")
        writer.quarantine(Quarantined("clip002", "decode", "no such file", 1))
        keys = [key for key in first.keys if key != "clip002"]
        writer.publish(first, {key: replace(record, key=key) for key in keys})
    (toy.folder / "manifest.jsonl").unlink()
    with pytest.raises(StoreError, match="3 differences, clip000 first"):
        merge(slices)


def test_a_merge_joins_the_media_records(toy: Toy) -> None:
    slices = write_slices(toy)
    for number, path in enumerate(slices):
        write_record(path, {f"media/{number}.mp4": Facts(10 + number, 7, bytes([number]) * 16)})
    made = merge(slices)
    assert {name: facts.size for name, facts in (read_record(made.path) or {}).items()} == {
        "media/0.mp4": 10,
        "media/1.mp4": 11,
    }


def test_a_shared_file_is_left_as_it_is_when_a_copy_has_no_room(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its shard is then made again; an unshared file is cut, which needs no room."""
    slices = write_slices(toy)
    merge(slices)
    alone = toy.at(toy.stores.parent / "alone")
    alone.write(toy.manifest(CLIPS), failing=FAILING)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    for path, due in ((slices[1], 4), (alone.folder, 0)):
        with (path / "shards" / "000001.tar").open("ab") as out:
            out.write(b"more")
        done = repair(path)
        assert len(done.due) == due, done.said
