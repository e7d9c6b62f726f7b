"""Every kind of damage is found, named and never handed out as data."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tracemalloc

import numpy as np
import pytest

from caeav.pipeline.store import DamagedShard, DamagedStore, StoreError, StoreReader, list_stores, verify
from caeav.pipeline.store.backend import BadIndex
from caeav.pipeline.store.webdataset.index import decode_index

FILES = (
    "recipe.json",
    "manifest.jsonl",
    "quarantine.jsonl",
    "complete.json",
    "index/000001.idx",
    "shards/000001.tar",
)


@pytest.fixture
def store(toy):
    toy.write(failing=["clip002"])
    return toy.folder


def flip(path, position, bit):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found_and_never_returned(toy, store, name):
    rng = random.Random(name)
    path = store / name
    size = path.stat().st_size
    positions = range(size) if size < 200 else sorted({0, size - 1, *rng.sample(range(size), 120)})
    for position in positions:
        bit = rng.randrange(8)
        flip(path, position, bit)
        report = verify(store)
        assert not report.sound, f"{name} byte {position} bit {bit}"
        try:
            reader = StoreReader.open(store)
        except StoreError:
            pass
        else:
            assert name.startswith("shards/"), f"{name} byte {position} bit {bit} opened"
            assert {problem.shard for problem in report.problems} == {1}
            for key in reader.keys:
                try:
                    assert toy.same(reader.read(key))
                except DamagedShard as error:
                    assert str(path) in str(error) and key in str(error) and "store repair" in str(error)
        flip(path, position, bit)
    assert verify(store).sound


def test_a_flip_in_a_payload_names_shard_and_key(toy, store):
    reader = StoreReader.open(store)
    shard = store / "shards" / "000001.tar"
    entry = reader._indexes[1].entries[2]
    flip(shard, int(entry["array_offset"]) + int(entry["array_bytes"]) - 1, 3)
    with pytest.raises(DamagedShard, match=r"000001\.tar, key clip006: the safetensors has crc32c"):
        reader.read("clip006")
    assert toy.same(reader.read("clip005"))
    flip(shard, int(entry["info_offset"]) + 3, 0)
    with pytest.raises(DamagedShard, match=r"key clip006: the json has crc32c"):
        reader.info("clip006")
    (problem,) = [p for p in verify(store).problems if p.key]
    assert (problem.where, problem.key, problem.shard) == ("shards/000001.tar", "clip006", 1)


def test_cutting_a_shard_anywhere_is_found_at_opening(store):
    path = store / "shards" / "000001.tar"
    data = path.read_bytes()
    for size in (0, 1, 511, 512, 700, 1024, len(data) // 2, len(data) - 1024, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(DamagedShard, match=rf"000001\.tar: {size} bytes, its index says {len(data)}"):
            StoreReader.open(store)
        assert not verify(store).sound
    path.write_bytes(data + bytes(512))
    with pytest.raises(DamagedShard, match=r"000001\.tar"):
        StoreReader.open(store)


@pytest.mark.parametrize("name", [n for n in FILES if not n.startswith("shards")])
def test_cutting_or_emptying_any_other_file_is_found_at_opening(store, name):
    data = (store / name).read_bytes()
    for size in sorted({0, 1, len(data) // 3, len(data) // 2, len(data) - 1} - {len(data)}):
        (store / name).write_bytes(data[:size])
        with pytest.raises(StoreError):
            StoreReader.open(store)
        assert not verify(store).sound


@pytest.mark.parametrize("name", [n for n in FILES if n != "recipe.json"])
def test_a_missing_file_is_found_at_opening(store, name):
    (store / name).unlink()
    with pytest.raises(StoreError):
        StoreReader.open(store)
    assert not verify(store).sound


def test_a_missing_recipe_means_no_store(store):
    (store / "recipe.json").unlink()
    with pytest.raises(StoreError, match="holds no store"):
        StoreReader.open(store)
    with pytest.raises(StoreError, match="holds no store"):
        verify(store)


def test_swapped_shards_are_never_read_as_each_other(store):
    a, b, spare = (store / "shards" / f"{name}.tar" for name in ("000000", "000001", "spare"))
    flipped = b.read_bytes()
    size = max(a.stat().st_size, len(flipped))
    a.rename(spare)
    b.rename(a)
    spare.rename(b)
    with pytest.raises(DamagedShard):
        StoreReader.open(store)
    for path in (a, b):  # also when their sizes happen to agree
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    assert {p.shard for p in verify(store).problems} == {0, 1}


def test_shards_of_one_size_swapped(toy):
    toy.write()
    a, b = (toy.folder / "shards" / f"00000{n}.tar" for n in (0, 1))
    first, second = a.read_bytes(), b.read_bytes()
    assert len(first) == len(second)
    a.write_bytes(second)
    b.write_bytes(first)
    reader = StoreReader.open(toy.folder)
    for key in reader.keys[:8]:
        with pytest.raises(DamagedShard, match=key):
            reader.read(key)
    assert {p.shard for p in verify(toy.folder).problems} == {0, 1}
    assert "clip000" in {p.key for p in verify(toy.folder).problems}


def test_indexes_swapped_or_of_another_recipe_are_refused(toy, store):
    a, b = (store / "index" / f"00000{n}.idx" for n in (0, 1))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    with pytest.raises(DamagedShard, match="is the index of shard 1"):
        StoreReader.open(store)
    a.write_bytes(first)
    b.write_bytes(second)
    other = toy.recipe(dtype="float32")
    toy.write(recipe=other)
    for place in ("shards/000001.tar", "index/000001.idx"):
        shutil.copy(toy.dataset / other.folder_name / place, store / place)
    with pytest.raises(DamagedShard, match="belongs to recipe"):
        StoreReader.open(store)


def test_an_index_older_than_its_shard_is_refused(toy, store):
    old = (store / "index" / "000000.idx").read_bytes()
    toy.write(retry_failed=True)
    (store / "index" / "000000.idx").write_bytes(old)
    with pytest.raises(DamagedShard, match=r"000000"):
        StoreReader.open(store)
    (store / "complete.json").unlink()
    with pytest.raises(DamagedShard, match=r"000000\.tar: \d+ bytes, its index says"):
        StoreReader.open(store, allow_partial=True)


def test_a_shard_in_the_place_of_another_is_no_shard_of_this_plan(toy):
    toy.write(toy.manifest(3))
    folder, bigger = toy.folder, toy.at(toy.stores.parent / "other")
    bigger.write(toy.manifest(8))
    (folder / "complete.json").unlink()
    for place in ("shards/000001.tar", "index/000001.idx"):
        shutil.copy(bigger.folder / place, folder / place)
    with pytest.raises(DamagedStore, match="does not plan for this shard"):
        StoreReader.open(folder, allow_partial=True)
    with pytest.raises(DamagedStore, match="does not plan for this shard"):
        toy.write(toy.manifest(3))


def test_a_renamed_folder_is_refused(store):
    moved = store.rename(store.with_name("tokens-classic-0123456789ab"))
    with pytest.raises(DamagedStore, match="rename the folder back"):
        StoreReader.open(moved)


def test_leftovers_in_a_finished_store_are_reported(store):
    (store / "shards" / ".part-000009.tar").write_bytes(b"x")
    (store / "shards" / "000009.tar").write_bytes(b"x")
    assert {p.where for p in verify(store).problems} == {"shards/.part-000009.tar", "shards/000009.tar"}


@pytest.mark.parametrize("name", [*FILES[2:], "manifest.jsonl"])
@pytest.mark.parametrize("how", ["remove", "cut"])
def test_extracting_again_fills_exactly_the_hole(toy, store, contents, name, how):
    wanted = contents(store)
    others = {p: p.stat().st_ino for p in store.glob("shards/*") if p.name != "000001.tar"}
    path = store / name
    if how == "cut" and name == "manifest.jsonl":
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(DamagedStore, match=r"remove .*manifest\.jsonl and extract again"):
            toy.write(failing=["clip002"])
        how = "remove"
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    said = []
    toy.write(failing=["clip002"], seen=lambda w: said.extend(w.remarks))
    assert contents(store) == wanted and verify(store).sound
    assert {p: p.stat().st_ino for p in others} == others
    if name != "manifest.jsonl" and (name, how) != ("complete.json", "remove"):
        assert any(name in remark for remark in said)


def craft(data: bytes) -> bytes:
    """An index with a checksum that fits, as an attacker would make it."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (12, (5).to_bytes(4, "little"), "shard 5"),
        (16, (0xFFFFFFFF).to_bytes(4, "little"), "do not fit"),
        (20, (0xFFFFFFFF).to_bytes(4, "little"), "do not fit"),
        (24, (1 << 63).to_bytes(8, "little"), "bytes, its index says"),
        (24, (100).to_bytes(8, "little"), "outside the shard"),
        (96, (0xFFFFFFFFFFFFFF00).to_bytes(8, "little"), "outside the shard"),
        (104, (0xFFFFFFFFFFFFFFFF).to_bytes(8, "little"), "outside the shard"),
        (112, (1 << 62).to_bytes(8, "little"), "outside the shard"),
        (120, (0xFFFFFFFF).to_bytes(4, "little"), "outside the shard"),
        (132, (0xFFFFFFFF).to_bytes(4, "little"), "key that is not allowed"),
        (132, (0).to_bytes(4, "little"), "key that is not allowed"),
        (8, (2).to_bytes(4, "little"), "version 2"),
        (0, b"XXXX", "begins with"),
    ],
)
def test_hostile_indexes_are_refused_without_allocating(store, at, value, says):
    path = store / "index" / "000001.idx"
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(craft(bytes(data)))
    (store / "complete.json").unlink()
    tracemalloc.start()
    with pytest.raises(DamagedShard, match=says):
        StoreReader.open(store, allow_partial=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_hostile_keys_in_an_index_are_refused(store):
    data = (store / "index" / "000001.idx").read_bytes()
    for bad in (b"../../x", b"clip/04", b"clip\x1b04", b"clip.04", b"cl\xff\xff004"):
        with pytest.raises(BadIndex, match="not allowed"):
            decode_index(craft(data.replace(b"clip004", bad)))
    with pytest.raises(BadIndex, match="distinct"):
        decode_index(craft(data.replace(b"clip004", b"clip005")))


def test_a_huge_declared_header_in_a_payload_with_a_fitting_checksum_is_refused(store):
    import google_crc32c

    path, shard = store / "index" / "000001.idx", store / "shards" / "000001.tar"
    index = decode_index(path.read_bytes())
    entries = index.entries.copy()
    start, size = int(entries[0]["array_offset"]), int(entries[0]["array_bytes"])
    data = bytearray(shard.read_bytes())
    data[start : start + 8] = (1 << 60).to_bytes(8, "little")
    shard.write_bytes(data)
    entries["array_crc32c"][0] = google_crc32c.value(bytes(data[start : start + size]))
    body = path.read_bytes()
    path.write_bytes(craft(body[:96] + entries.tobytes() + body[96 + entries.nbytes :]))
    (store / "complete.json").unlink()
    with pytest.raises(DamagedShard, match=f"key clip004: header of {1 << 60} bytes"):
        StoreReader.open(store, allow_partial=True).read("clip004")


@pytest.mark.parametrize(
    "sealed",
    [
        {"../../etc/passwd": "00"},
        {"index/x.idx": "00"},
        {"index/000007.idx": "00"},
        {"index/000001.idx": 5},
        [],
        None,
    ],
)
def test_hostile_seals_are_refused(store, sealed):
    value = json.loads((store / "complete.json").read_text())
    value["sha256"] = sealed if not isinstance(sealed, dict) else value["sha256"] | sealed
    (store / "complete.json").write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    with pytest.raises(StoreError):
        StoreReader.open(store)
    assert not verify(store).sound and list_stores(store.parent.parent)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"1", b'{"schema": 1}', b"\xff\xfe", b'{"a": 1e999}', b""])
def test_hostile_recipes_and_quarantines_are_refused(store, text):
    (store / "quarantine.jsonl").write_bytes(text + b"\n")
    with pytest.raises(StoreError, match=r"quarantine\.jsonl"):
        StoreReader.open(store)
    (store / "recipe.json").write_bytes(text)
    with pytest.raises(StoreError, match=r"recipe\.json"):
        StoreReader.open(store)
    assert not verify(store).sound
    assert [info.state for info in list_stores(store.parent.parent)] == ["damaged"]


def test_records_come_back_exactly(toy, store):
    reader = StoreReader.open(store)
    for key in np.random.default_rng(0).permutation(list(reader.keys) * 3):
        assert toy.same(reader.read(str(key)))
