"""Every kind of damage is found, named and never returned as data."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace

import pytest
from store_files import forged_index

from caeav.pipeline.store import DamagedShard, DamagedStore, StoreError, StoreReader, list_stores, verify
from caeav.pipeline.store.backend import BadIndex
from caeav.pipeline.store.formats.webdataset import decode_index
from caeav.pipeline.store.layout import parse_seal
from caeav.pipeline.store.state import inspect

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


def test_damage_is_refused_at_every_read(toys):
    """A record that was refused once does not count as checked."""
    toys.write()
    reader = StoreReader.open(toys.folder)
    value = toys.record("clip005").arrays["visual.stage1"].tobytes()
    for file in [file for index in inspect(toys.folder).indexes.values() for file in index.files]:
        path = toys.folder / file.name
        path.write_bytes(path.read_bytes().replace(value, value[:9] + bytes([value[9] ^ 1]) + value[10:]))
    for _ in range(3):
        with pytest.raises(DamagedShard, match="clip005"):
            reader.read("clip005")
        assert toys.same(reader.read("clip004")) and toys.same(reader.read("clip006"))
    for keys in (["clip004", "clip005"], ["clip005"]):
        with pytest.raises(DamagedShard, match="clip005"):
            list(reader.read_each(keys))
    assert reader.info("clip005") == dict(toys.record("clip005").info), "its facts are sound"
    with pytest.raises(DamagedShard, match="clip005"):
        reader.read_stored("clip005")


def test_swapped_indexes_and_those_of_another_recipe_are_refused(toy, store):
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


def test_a_shard_that_the_manifest_does_not_plan_is_refused(toy):
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
def test_extracting_again_makes_exactly_what_is_missing(toy, store, contents, name, how):
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
    path.write_bytes(forged_index(bytes(data)))
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
            decode_index(forged_index(data.replace(b"clip004", bad)))
    with pytest.raises(BadIndex, match="distinct"):
        decode_index(forged_index(data.replace(b"clip004", b"clip005")))


@pytest.mark.parametrize("part", ["array", "info"])
def test_an_index_that_points_a_byte_beyond_its_shard_is_refused(store, part):
    index = decode_index((store / "index" / "000001.idx").read_bytes())
    entries = index.entries.copy()
    last = index.shard_bytes - int(entries[1][f"{part}_bytes"])
    entries[f"{part}_offset"][1] = last
    assert decode_index(replace(index, entries=entries).encode()).entries[1][f"{part}_offset"] == last
    entries[f"{part}_offset"][1] = last + 1
    with pytest.raises(BadIndex, match=f"outside the shard's {index.shard_bytes} bytes"):
        decode_index(replace(index, entries=entries).encode())


def test_a_huge_declared_header_is_refused_despite_a_matching_checksum(store):
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
    path.write_bytes(forged_index(body[:96] + entries.tobytes() + body[96 + entries.nbytes :]))
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


def test_a_seal_of_another_recipe_is_refused(toy, store):
    """Its digests may match, as in a store that was copied together from two of the same manifest."""
    seal = parse_seal((store / "complete.json").read_bytes(), store)
    other = replace(seal, fingerprint=toy.recipe(dtype="float32").fingerprint)
    (store / "complete.json").write_bytes(other.render())
    state = inspect(store)
    assert state.seal is None
    assert [(p.where, p.what) for p in state.problems] == [("complete.json", "belongs to another recipe")]
    with pytest.raises(DamagedStore, match="belongs to another recipe"):
        StoreReader.open(store)


@pytest.mark.parametrize("toys", ["zarr"], indirect=True)
def test_a_seal_that_names_other_documents_is_a_problem(toys):
    toys.write()
    seal = parse_seal((toys.folder / "complete.json").read_bytes(), toys.folder)
    name = next(name for name in seal.sha256 if not name.endswith((".jsonl", ".idx")))
    for named in ({**seal.sha256, name: "0" * 64}, {n: x for n, x in seal.sha256.items() if n != name}):
        (toys.folder / "complete.json").write_bytes(replace(seal, sha256=named).render())
        (problem,) = inspect(toys.folder).problems
        assert (problem.where, problem.what) == (
            "complete.json",
            "names other documents than belong to the shards",
        )
