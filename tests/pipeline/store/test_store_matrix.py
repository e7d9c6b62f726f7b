"""The damage matrix: every kind of damage to every kind of file, on real stores of both backends.

In each case `verify` names the damaged file, and opening either refuses the store or each record that is read is the
one that was written or an error naming file and key.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from caeav.manifests.clip import Manifest
from caeav.pipeline.store import (
    DamagedShard,
    DamagedStore,
    Record,
    StoreError,
    StoreReader,
    open_for_writing,
    repair,
    verify,
)
from caeav.pipeline.store.formats.zarr_format import ZarrIndex, offsets
from caeav.pipeline.store.state import inspect
from caeav.pipeline.store.testing_data import Toy

KINDS = ("recipe", "manifest", "quarantine", "seal", "index", "spare", "payload")
CASES = [*(("webdataset", kind) for kind in KINDS), *(("zarr", kind) for kind in (*KINDS, "document"))]
UNSEALED = [(backend, kind) for backend, kind in CASES if kind in ("index", "payload")]
"""In an unfinished store only files with their own checksum can be checked."""
FLIPS = 60


@pytest.fixture
def store(toys: Toy) -> Path:
    toys.write(failing=["clip002"])
    return toys.folder


def of_kind(folder: Path, kind: str) -> list[Path]:
    """The files of a kind; of indexes and payloads, those of the second shard."""
    single = {"recipe": "recipe.json", "manifest": "manifest.jsonl", "quarantine": "quarantine.jsonl"}
    single |= {"seal": "complete.json", "index": "index/000001.idx", "spare": "spare/000001.idx"}
    if kind in single:
        return [folder / single[kind]]
    if kind == "document":
        return sorted(folder.glob("shards.zarr/**/zarr.json"))
    return [folder / file.name for file in inspect(folder).indexes[1].files]


def assert_reported(toy: Toy, folder: Path, damaged: Path) -> None:
    name = damaged.relative_to(folder).as_posix()
    verified = verify(folder)
    assert not verified.sound, name
    named = "the recipe in it" if name == "recipe.json" else name
    assert any(named in str(problem) or name in str(problem) for problem in verified.problems), verified
    assert_refused_or_true(toy, folder, name)


def assert_refused_or_true(toy: Toy, folder: Path, name: str) -> None:
    """Opening fails with a next step, or every record is the one written or refused naming file and key."""
    try:
        reader = StoreReader.open(folder, allow_partial=not (folder / "complete.json").exists())
    except StoreError as error:
        assert str(folder) in str(error) and "next:" in str(error)
        return
    assert name.startswith(("shards", "spare")), f"{name} is damaged and the store opens"
    for key in reader.keys:
        for read in (reader.read, reader.info):
            try:
                back = read(key)
            except DamagedShard as error:
                assert name in str(error) and key in str(error) and "store repair" in str(error)
            else:
                assert toy.same(back) if isinstance(back, Record) else back == dict(toy.record(key).info)


@pytest.mark.parametrize(
    ("toys", "kind", "sealed"),
    [*((*case, True) for case in CASES), *((*case, False) for case in UNSEALED)],
    indirect=["toys"],
)
def test_a_flipped_bit_is_reported_and_never_read(toys: Toy, store: Path, kind: str, sealed: bool) -> None:
    if not sealed:
        (store / "complete.json").unlink()
    rng = random.Random(kind)
    files = of_kind(store, kind)
    for path in files:
        data = path.read_bytes()
        places = {0, len(data) - 1, *(rng.randrange(len(data)) for _ in range(FLIPS // len(files)))}
        for at in sorted(places):
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
            assert_reported(toys, store, path)
        path.write_bytes(data)
    assert verify(store).problems == ()


def cuts(folder: Path, path: Path) -> Iterator[int]:
    """Lengths to cut a file to: at and around each record, in headers, payloads and tables, at both ends."""
    size = path.stat().st_size
    yield from (0, 1, size // 3, size // 2, size - 20, size - 4, size - 1)
    index = inspect(folder).indexes.get(1)
    if isinstance(index, ZarrIndex):
        for place, file in enumerate(index.files):
            if folder / file.name == path:
                sizes = index.sizes(place)
                for begin, length in zip(offsets(sizes)[0].tolist(), sizes.tolist(), strict=True):
                    yield from (begin, begin + length // 2, begin + length, begin + length + 2)
    elif path.suffix == ".tar" and index is not None:
        for row in index.entries:
            begin, length = int(row["array_offset"]), int(row["array_bytes"])
            yield from (begin - 512, begin - 300, begin, begin + 20, begin + length // 2, begin + length)
            yield from (int(row["info_offset"]), int(row["info_offset"]) + 3)


@pytest.mark.parametrize(("toys", "kind"), CASES, indirect=["toys"])
def test_a_truncated_lengthened_or_missing_file_is_reported(toys: Toy, store: Path, kind: str) -> None:
    for path in of_kind(store, kind):
        data = path.read_bytes()
        for size in sorted({size for size in cuts(store, path) if 0 <= size < len(data)}):
            path.write_bytes(data[:size])
            assert_reported(toys, store, path)
        path.write_bytes(data + bytes(512))
        assert_reported(toys, store, path)
        path.unlink()
        if kind == "recipe":
            with pytest.raises(StoreError, match="holds no store"):
                StoreReader.open(store)
        elif kind == "seal":
            assert not verify(store).sound
            with pytest.raises(StoreError, match="stopped before it closed"):
                StoreReader.open(store)
        else:
            assert_reported(toys, store, path)
        path.write_bytes(data)
    assert verify(store).sound


@dataclass(frozen=True)
class Variant:
    """Another store of the same recipe whose records have the same shapes but other values."""

    toy: Toy

    def write(self, manifest: Manifest) -> Path:
        with open_for_writing(self.toy.dataset, self.toy.recipe(), manifest) as writer:
            for plan in writer.plan():
                writer.publish(plan, {key: self.record(key) for key in plan.missing})
            writer.finish()
        return self.toy.folder

    def record(self, key: str) -> Record:
        true = self.toy.record(key)
        return Record(key, {name: np.roll(x, 1) for name, x in true.arrays.items()}, true.info)


@pytest.mark.parametrize("sealed", [True, False], ids=["finished", "unfinished"])
@pytest.mark.parametrize("with_index", [True, False], ids=["with-its-index", "alone"])
@pytest.mark.parametrize("source", ["another-shard", "another-recipe"])
def test_a_shard_copied_over_another_is_reported(
    toys: Toy, source: str, with_index: bool, sealed: bool
) -> None:
    toys.write()
    other = toys.recipe(dtype="float32")
    toys.write(recipe=other)
    folder = toys.folder if source == "another-shard" else toys.dataset / other.folder_name
    number = 0 if source == "another-shard" else 1
    taken = [file.name for file in inspect(folder).indexes[number].files]
    placed = [file.name for file in inspect(toys.folder).indexes[1].files]
    if with_index:
        taken, placed = [*taken, f"index/00000{number}.idx"], [*placed, "index/000001.idx"]
    spoilt = {toys.folder / to: (folder / name).read_bytes() for name, to in zip(taken, placed, strict=True)}
    changed = any(path.read_bytes() != data for path, data in spoilt.items())
    for path, data in spoilt.items():
        path.write_bytes(data)
    if not sealed:
        (toys.folder / "complete.json").unlink()
    if source == "another-recipe" and not with_index:
        assert not changed  # the content is the same: only the index tells the recipes apart
        return
    assert verify(toys.folder).problems
    assert_refused_or_true(toys, toys.folder, "shards" if not with_index else "index")
    repair(toys.folder)
    toys.write()
    assert verify(toys.folder).sound and all(toys.same(record) for record in StoreReader.open(toys.folder))


@pytest.mark.parametrize("sealed", [True, False], ids=["finished", "unfinished"])
def test_an_index_older_than_its_shard_is_reported(toys: Toy, store: Path, sealed: bool) -> None:
    variant = Variant(toys.at(toys.stores.parent / "variant")).write(toys.manifest())
    toys.write(retry_failed=True)
    old = (store / "index" / "000001.idx").read_bytes()
    for file in inspect(variant).indexes[1].files:
        shutil.copy(variant / file.name, store / file.name)  # the same sizes, other values
    assert (store / "index" / "000001.idx").read_bytes() == old
    if not sealed:
        (store / "complete.json").unlink()
    problems = verify(store).problems
    assert {problem.shard for problem in problems} == {1}
    assert {problem.key for problem in problems} >= {"clip004", "clip005", "clip006", "clip007"}
    assert_refused_or_true(toys, store, "shards")
    reader = StoreReader.open(store, allow_partial=True)
    for key in ("clip004", "clip007"):
        with pytest.raises(DamagedShard, match=key):
            reader.read(key)


@pytest.mark.parametrize("sealed", [True, False], ids=["finished", "unfinished"])
def test_two_shards_with_the_same_keys_are_refused(toys: Toy, store: Path, sealed: bool) -> None:
    other = toys.at(toys.stores.parent / "other")
    clips = toys.manifest().clips
    turned = (*clips[4:8], *clips[:4], *clips[8:])
    other.write(Manifest("toy", 10, 1.0, ("bark",), turned, media_root="/somewhere"))
    for name in ["index/000001.idx", *(file.name for file in inspect(other.folder).indexes[1].files)]:
        shutil.copy(other.folder / name, store / name)  # clip000 to clip003, once more
    if not sealed:
        (store / "complete.json").unlink()
    assert not verify(store).sound and any(p.where == "index/000001.idx" for p in verify(store).problems)
    with pytest.raises(DamagedStore, match=r"000001\.idx"):
        StoreReader.open(store, allow_partial=True)
    repair(store)
    toys.write(failing=["clip002"])
    assert all(toys.same(record) for record in StoreReader.open(store))


def test_a_torn_last_line_is_an_error_in_a_manifest_and_a_remark_in_a_quarantine(
    toys: Toy, store: Path
) -> None:
    for name in ("manifest.jsonl", "quarantine.jsonl"):
        path = store / name
        data = path.read_bytes()
        path.write_bytes(data[:-9])
        with pytest.raises(StoreError, match=name.replace(".", r"\.")):
            StoreReader.open(store)
        path.write_bytes(data)
    (store / "complete.json").unlink()
    with (store / "quarantine.jsonl").open("ab") as out:
        out.write(b'{"key": "clip005", "stage": "dec')
    reader = StoreReader.open(store, allow_partial=True)
    assert any("torn" in remark for remark in reader.remarks)
    assert [entry.key for entry in reader.quarantined] == ["clip002"]
    path = store / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedStore, match="torn"):
        StoreReader.open(store, allow_partial=True)


@pytest.mark.parametrize(("toys", "kind"), [case for case in CASES if case[1] != "recipe"], indirect=["toys"])
def test_repair_drops_damage_and_the_next_run_makes_what_is_missing(
    toys: Toy, store: Path, contents, kind: str
) -> None:
    wanted = contents(store)
    for path in of_kind(store, kind):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 3] + b"\x00\xff" + data[len(data) // 3 + 2 :])
        done = repair(store)
        assert done.said and not verify(store).problems if kind != "manifest" else done.said
        again = repair(store) if kind != "manifest" else None
        assert again is None or (again.said == () and again.due == done.due)
        assert set(done.due) <= ({"clip002"} if kind == "quarantine" else {f"clip00{i}" for i in range(4, 8)})
        said: list[str] = []
        toys.write(failing=["clip002"], seen=lambda writer, said=said: said.extend(writer.remarks))
        assert contents(store) == wanted, path


def test_a_wrong_digest_in_the_seal_costs_no_shard(toys: Toy, store: Path, contents) -> None:
    wanted = contents(store)
    for name in ("index/000001.idx", "quarantine.jsonl"):
        seal = json.loads(wanted["complete.json"])
        digest = seal["sha256"][name]
        (store / "complete.json").write_bytes(
            wanted["complete.json"].replace(digest.encode(), digest[::-1].encode())
        )
        done = repair(store)
        assert done.due == (("clip002",) if name == "quarantine.jsonl" else ())
        planned: list[int] = []
        toys.write(failing=["clip002"], seen=lambda w, to=planned: to.extend(p.number for p in w.plan()))
        assert planned in ([], [0])
        assert contents(store) == wanted


def test_repair_drops_only_the_damaged_record(toys: Toy, store: Path) -> None:
    reader = StoreReader.open(store)
    wanted = reader.read("clip006").arrays["visual.stage1"].tobytes()
    del reader
    for file in inspect(store).indexes[1].files:
        path = store / file.name
        data = path.read_bytes()
        if wanted in data:
            at = data.index(wanted) + 5
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    done = repair(store)
    assert done.due == ("clip006",) and not done.finished
    assert any("clip006" in text and "crc32c" in text for text in done.said)
    plans = []
    toys.write(failing=["clip002"], seen=lambda writer: plans.extend(writer.plan()))
    assert [plan.missing for plan in plans] == [("clip006",)] and verify(store).sound


def test_repair_keeps_the_records_of_a_truncated_or_lengthened_file(
    toys: Toy, store: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    wanted = contents(store)
    for file in inspect(store).indexes[1].files:
        path = store / file.name
        data = path.read_bytes()
        path.write_bytes(data + b"more")
        done = repair(store)
        assert done.due == () and done.finished and verify(store).sound
        assert any(f"{len(data) + 4} bytes" in text for text in done.said)
        assert contents(store) == wanted
        path.write_bytes(data[: len(data) * 3 // 5])
        done = repair(store)
        assert done.due and set(done.due) < {"clip004", "clip005", "clip006", "clip007"}, (
            "the first record is intact"
        )
        assert any("what is left of it is kept" in text for text in done.said)
        assert not verify(store).problems
        toys.write(failing=["clip002"])
        assert contents(store) == wanted


def test_repair_does_not_lengthen_a_file_beyond_the_free_space(
    toys: Toy, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = inspect(store).indexes[1].files[0]
    path = store / file.name
    path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=file.bytes - 101))
    done = repair(store)
    assert len(done.due) == 4 and path.stat().st_size == 100


def test_a_run_over_damage_reports_it_and_names_the_verify_command(toys: Toy, store: Path) -> None:
    for folder in ("index", "spare"):
        (store / folder / "000001.idx").unlink()
    said: list[str] = []
    toys.write(failing=["clip002"], seen=lambda writer: said.extend(writer.remarks))
    assert any("index/000001.idx" in text and "made again" in text for text in said)
    assert any("caeav store verify" in text for text in said)
