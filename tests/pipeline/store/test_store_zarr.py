"""The Zarr backend compared with the zarr library: what that reads, and records that Zarr cannot hold."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from store_files import forged_index

from caeav.pipeline.store import Record, StoreError, StoreReader, open_for_writing, verify
from caeav.pipeline.store.backend import BadIndex
from caeav.pipeline.store.dtypes import floats, stored
from caeav.pipeline.store.formats.common import MappedFile
from caeav.pipeline.store.formats.zarr_format import MAX_CLIP_BYTES, ArrayLayout, decode_index, documents
from caeav.pipeline.store.payload import MAX_INFO_BYTES
from caeav.pipeline.store.testing_data import Toy


@pytest.fixture
def toy(tmp_path) -> Toy:
    return Toy(tmp_path / "stores", "zarr")


def plain_group(toy: Toy):
    zarr = pytest.importorskip("zarr", reason="the zarr extra is not installed")
    return zarr.open_group(toy.folder / "shards.zarr", mode="r")


def test_the_zarr_library_reads_every_record(toy):
    toy.write(failing=["clip002"])
    group = plain_group(toy)
    assert {name for name, _ in group.arrays()} == {*toy.record("clip000").arrays, "key", "info"}
    keys, infos = group["key"][:], group["info"][:]
    assert [str(key) for key in keys] == [
        "" if clip.key == "clip002" else clip.key for clip in toy.manifest().clips
    ]
    for row, key in enumerate(keys):
        arrays = {name: group[name][row] for name in toy.record("clip000").arrays}
        if key:
            assert toy.same(Record(str(key), arrays, json.loads(str(infos[row]))))
        else:
            assert (
                infos[row] == ""
                and np.isnan(arrays["visual.stage1"]).all()
                and not arrays["audio.mask"].any()
            )


def test_each_array_has_one_chunk_per_clip_with_a_crc32c(toy):
    toy.write()
    array = plain_group(toy)["visual.stage1"]
    assert (array.shape, array.chunks, array.shards) == ((10, 10, 6, 8), (1, 10, 6, 8), (4, 10, 6, 8))
    codecs = json.loads((toy.folder / "shards.zarr" / "visual.stage1" / "zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs[0]["configuration"]["codecs"]] == ["bytes", "crc32c"]
    path = toy.folder / "shards.zarr" / "visual.stage1" / "c.0.0.0.0"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        plain_group(toy)["visual.stage1"][0]


def test_a_missing_shard_is_an_error_where_the_zarr_library_gives_fill_values(toy):
    toy.write()
    (toy.folder / "shards.zarr" / "audio.mask" / "c.1.0").unlink()
    assert not plain_group(toy)["audio.mask"][4:8].any()  # why stores are not read with the library
    with pytest.raises(StoreError, match=r"audio\.mask/c\.1\.0: the file is missing"):
        StoreReader.open(toy.folder)
    assert not verify(toy.folder).sound


def test_a_shard_that_vanishes_or_shrinks_behind_an_open_reader_is_an_error(toy):
    toy.write()
    reader = StoreReader.open(toy.folder)
    (toy.folder / "shards.zarr" / "audio.mask" / "c.1.0").unlink()
    with pytest.raises(StoreError, match=r"audio\.mask/c\.1\.0: the file is missing"):
        reader.read("clip005")
    path = toy.folder / "shards.zarr" / "visual.stage1" / "c.0.0.0.0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="its index says"):
        reader.read("clip000")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_the_zarr_library_reads_every_token_dtype(toy, dtype):
    tokens = np.random.default_rng(0).standard_normal((2, 4, 9, 16)).astype(np.float32)
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(2)) as writer:
        (plan,) = writer.plan()
        writer.publish(
            plan,
            {key: Record(key, stored({"a": x}, dtype)) for key, x in zip(plan.keys, tokens, strict=True)},
        )
        writer.finish()
    group = plain_group(toy)
    arrays = {name: array[1] for name, array in group.arrays() if name not in ("key", "info")}
    if group["a"].attrs.get("caeav") == {"dtype": "bfloat16"}:
        arrays["a"] = arrays["a"].view("V2")
    np.testing.assert_array_equal(
        floats(arrays)["a"], StoreReader.open(toy.folder).read("clip001").arrays["a"]
    )


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"visual.stage1": np.zeros((10, 6, 9), np.float16)}, r"F16 \[10, 6, 9\].* one shape for all clips"),
        ({"visual.stage1": np.zeros((10, 6, 8), np.float32)}, r"F32 \[10, 6, 8\].* one shape for all clips"),
        ({}, "has fewer arrays; the clips before it have visual.stage1"),
        ({"more": np.zeros(3, np.float32)}, "more F32"),
        ({"../evil": np.zeros(3, np.float32)}, "cannot be the name of an array"),
        ({"key": np.zeros(3, np.float32)}, "cannot be the name of an array"),
        ({"__x": np.zeros(3, np.float32)}, "cannot be the name of an array"),
        ({"visual.stage1": np.zeros((0, 3), np.float32)}, "no values"),
    ],
)
def test_records_that_no_zarr_array_can_hold_are_refused_with_a_next_step(toy, arrays, says):
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(2)) as writer:
        (plan,) = writer.plan()
        first = Record("clip000", {"visual.stage1": np.zeros((10, 6, 8), np.float16)})
        with pytest.raises(StoreError, match=rf"clip001[\s\S]*{says}[\s\S]*--backend webdataset"):
            writer.publish(plan, {"clip000": first, "clip001": Record("clip001", arrays)})
        assert not list(toy.folder.rglob("c.*"))


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (0, b"XXXX", "begins with"),
        (8, (2).to_bytes(4, "little"), "version 2"),
        (16, (0).to_bytes(4, "little"), "0 clips in 4 slots"),
        (16, (0xFFFFFFFF).to_bytes(4, "little"), "clips in 4 slots"),
        (20, (0xFFFFFFFF).to_bytes(4, "little"), "slots"),
        (24, (0xFFFFFFFF).to_bytes(4, "little"), "layout is not JSON"),
        (28, (0xFFFFFFFF).to_bytes(4, "little"), "do not fit"),
        (64, b'[["../", "F16", [1', "layout is not JSON"),
    ],
)
def test_hostile_indexes_are_refused(toy, at, value, says):
    toy.write()
    data = bytearray((toy.folder / "index" / "000001.idx").read_bytes())
    data[at : at + len(value)] = value
    with pytest.raises(BadIndex, match=says):
        decode_index(forged_index(bytes(data)))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"audio.mask", b"../../../x", "cannot be the name"),
        (b"audio.mask", b"visualmask", "not in order"),
        (b'"BOOL", [7]', b'"EVIL", [7]', "no dtype"),
        (b'"BOOL", [7]', b'"BOOL", [0]', "not a list of arrays"),
        (b'"BOOL", [7]', b'"BOOL", "7"', "not a list of arrays"),
        (b"[10, 6, 8]", b"[9999999999]"[:10], "not JSON|not a list"),
    ],
)
def test_hostile_layouts_are_refused(toy, old, new, says):
    toy.write()
    data = (toy.folder / "index" / "000001.idx").read_bytes()
    assert old in data and len(old) == len(new)
    with pytest.raises(BadIndex, match=says):
        decode_index(forged_index(data.replace(old, new)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: {"rows": with_slots(index, [0, 1, 2, 4])}, "ascending slots below 4"),
        (lambda index: {"rows": with_slots(index, [0, 2, 1, 3])}, "ascending slots below 4"),
        (lambda index: {"rows": with_slots(index, [0, 1, 1, 3])}, "ascending slots below 4"),
        (
            lambda index: {"rows": with_facts_of(index, MAX_INFO_BYTES + 1)},
            f"facts of {MAX_INFO_BYTES + 1} bytes",
        ),
        (lambda index: {"layout": huge(index.layout)}, "an array of a clip has more than"),
        (lambda index: {"layout": (index.layout[0], *index.layout[:-1])}, "an array twice"),
    ],
)
def test_an_index_with_impossible_content_is_refused(toy, change, says):
    toy.write()
    index = decode_index((toy.folder / "index" / "000001.idx").read_bytes())
    assert decode_index(index.encode()).files == index.files
    with pytest.raises(BadIndex, match=says):
        decode_index(replace(index, **change(index)).encode())


def with_slots(index, slots):
    rows = index.rows.copy()
    rows["slot"] = slots
    return rows


def with_facts_of(index, size):
    rows = index.rows.copy()
    rows["info_bytes"][1] = size
    return rows


def huge(layout):
    return (replace(layout[0], dtype="U8", shape=(1 << 20, (MAX_CLIP_BYTES >> 20) + 1)), *layout[1:])


def test_a_flipped_bit_of_an_index_is_found_by_its_checksum(toy):
    toy.write()
    data = bytearray((toy.folder / "index" / "000001.idx").read_bytes())
    data[-40] ^= 1
    with pytest.raises(BadIndex, match="its checksum does not fit its content"):
        decode_index(bytes(data))


def test_a_record_is_fetched_with_its_facts(toy, monkeypatch):
    toy.write()
    shard = StoreReader.open(toy.folder)._shard(0)
    fetched = []
    monkeypatch.setattr(MappedFile, "fetch", lambda self, start, end: fetched.append(self.facts.name))
    shard.fetch(1)
    names = [facts.name for facts in shard.index.files]
    assert fetched == [name for name in names if "/key/" not in name] and any("/info/" in n for n in fetched)


def test_the_fill_value_of_every_float_dtype_is_nan():
    """Otherwise a plain reader of the array would take a missing clip for silence."""
    for dtype in ("F64", "F32", "F16", "BF16"):
        found = documents((ArrayLayout("audio.a", dtype, (2,)),), 3, 2)
        fill = json.loads(found["shards.zarr/audio.a/zarr.json"])["fill_value"]
        assert fill == ("NaN" if dtype != "BF16" else 0x7FC0)
    assert np.isnan(np.array(0x7FC0 << 16, np.uint32).view(np.float32))


def test_an_index_that_declares_a_huge_array_is_refused(toy):
    toy.write()
    data = (toy.folder / "index" / "000001.idx").read_bytes()
    huge = data.replace(b"[10, 3, 4]", b"[99999999]")
    path = toy.folder / "index" / "000001.idx"
    path.write_bytes(forged_index(huge))
    (toy.folder / "complete.json").unlink()
    with pytest.raises(StoreError, match=r"audio\.stage1/c\.1[.\d]*: the file is missing|its index says 1"):
        StoreReader.open(toy.folder, allow_partial=True)
