"""Stores on disk: plain tar and safetensors that any reader can read, with bytes fixed by their content."""

from __future__ import annotations

import hashlib
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from caeav.manifests.clip import Clip, Manifest
from caeav.pipeline.store import Record, StoreReader, open_for_writing
from caeav.pipeline.store.payload import BadPayload, decode_arrays, encode_arrays
from caeav.pipeline.store.state import inspect


def test_the_webdataset_library_reads_the_shards(toy):
    webdataset = pytest.importorskip("webdataset", reason="the webdataset extra is not installed")
    from safetensors.numpy import load

    toy.write()
    urls = [str(p) for p in sorted((toy.folder / "shards").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [c.key for c in toy.manifest().clips]
    for sample in samples:
        arrays = load(sample["safetensors"])
        assert toy.same(Record(sample["__key__"], arrays, json.loads(sample["json"])))


def test_bytes_are_those_of_the_first_release(toy, contents):
    """Stores of earlier versions must resume unchanged: same recipe, same bytes."""
    toy.write(failing=["clip002"])
    digest = hashlib.sha256()
    for name, data in sorted(contents(toy.folder).items()):
        if name.startswith("spare/"):  # copies of indexes came later; earlier versions ignore them
            assert data == (toy.folder / name.replace("spare", "index")).read_bytes()
        elif name != ".lock":
            digest.update(name.encode() + b"\0" + data + b"\0")
    assert toy.folder.name == "tokens-classic-63252a57e587"
    assert digest.hexdigest() == "5b63f69762155359fedde6551212bca5abd4b27644aa483100cb930205b0a65a"


def test_tar_members_have_fixed_names_and_metadata(toy):
    toy.write()
    with tarfile.open(toy.folder / "shards" / "000000.tar") as tar:
        members = tar.getmembers()
    keys = [c.key for c in toy.manifest().clips[:4]]
    assert [m.name for m in members] == [f"{k}.{e}" for k in keys for e in ("safetensors", "json")]
    for m in members:
        assert (m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.isfile()) == (0, 0, 0, "", "", 0o644, True)


def test_the_longest_keys_are_stored_and_read(toy):
    keys = ["-" + "k" * 199, "_" * 120, "a"]
    manifest = Manifest("toy", 10, 1.0, (), tuple(Clip(k, f"{i}.mp4", 0, 10) for i, k in enumerate(keys)))
    toy.write(manifest)
    with tarfile.open(toy.folder / "shards" / "000000.tar") as tar:
        assert tar.getnames()[::2] == [f"{k}.safetensors" for k in keys]
    assert all(toy.same(record) for record in StoreReader.open(toy.folder))


def test_arrays_are_aligned_read_only_views(toy):
    toy.write()
    reader = StoreReader.open(toy.folder)
    for key in reader.keys:
        for array in reader.read(key).arrays.values():
            assert array.flags.aligned and not array.flags.writeable and not array.flags.owndata
    state = inspect(toy.folder)
    for number, index in state.indexes.items():
        data = (toy.folder / "shards" / f"{number:06d}.tar").read_bytes()
        for entry in index.entries:
            start = int(entry["array_offset"])
            header = int.from_bytes(data[start : start + 8], "little")
            assert start % 512 == 0 and (8 + header) % 64 == 0


def test_arrays_outlive_the_reader_and_readers_can_be_pickled(toy):
    toy.write()
    reader = StoreReader.open(toy.folder)
    reader.read("clip001")
    copy = pickle.loads(pickle.dumps(reader))
    record = copy.read("clip009")
    del copy, reader
    assert toy.same(record)


def test_many_shards_do_not_use_up_file_descriptors(toy, monkeypatch):
    monkeypatch.setattr("caeav.pipeline.store.reader.OPEN_FILES", 2)
    toy.write(toy.manifest(40))
    reader = StoreReader.open(toy.folder)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for key in sorted(reader.keys, key=lambda k: k[::-1]):
        assert toy.same(reader.read(key))
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 2


def test_bytes_do_not_depend_on_order_of_arrays_or_facts(toy, contents):
    toy.write()
    first = contents(toy.folder)
    other = toy.at(toy.stores.parent / "other")

    def reversed_record(key: str) -> Record:
        record = toy.record(key)
        return Record(key, dict(reversed(record.arrays.items())), dict(reversed(record.info.items())))

    with open_for_writing(other.dataset, toy.recipe(), toy.manifest()) as writer:
        for plan in reversed(writer.plan()):
            writer.publish(plan, {key: reversed_record(key) for key in reversed(plan.missing)})
        writer.finish()
    assert contents(other.folder) == first


@pytest.mark.parametrize(
    "dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", ">f4"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 5)])
def test_every_dtype_and_shape_is_read_back(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    odd = {"x": array, "y.turned": np.asfortranarray(array), "odd": np.ones(3, bool)}
    back = decode_arrays(np.concatenate(encode_arrays(odd)))
    for name, wanted in odd.items():
        assert back[name].shape == wanted.shape and back[name].dtype == wanted.dtype.newbyteorder("<")
        np.testing.assert_array_equal(back[name], wanted)


@pytest.mark.parametrize("bad", [np.array(["text"]), np.array([object()]), np.zeros(2, "c8")])
def test_unsupported_dtypes_are_refused(bad):
    with pytest.raises(TypeError, match="cannot be stored"):
        encode_arrays({"x": bad})


def safetensors(header: object, data: int = 16) -> np.ndarray:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return np.frombuffer(len(text).to_bytes(8, "little") + text + bytes(data), np.uint8)


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (np.zeros(3, np.uint8), "at least 8"),
        (np.frombuffer(b"\xff" * 8 + b"{}", np.uint8), "header of 18446744073709551615 bytes"),
        (safetensors(b"[" * 100_000), "not JSON"),
        (safetensors(b"[]"), "not an object"),
        (safetensors(b"\xff{}"), "not JSON"),
        (safetensors(entry(dtype="PICKLE")), "dtype"),
        (safetensors(entry(dtype=["F32"])), "dtype"),
        (safetensors(entry(shape=[-4])), "shape"),
        (safetensors(entry(shape=[True, 4])), "shape"),
        (safetensors(entry(shape="4")), "shape"),
        (safetensors(entry(shape=[1] * 40)), "shape"),
        (safetensors(entry(offsets=[0, 1 << 62])), "outside"),
        (safetensors(entry(offsets=[8, 4])), "outside"),
        (safetensors(entry(offsets=[0])), "outside"),
        (safetensors(entry(offsets=[0, 16.0])), "outside"),
        (safetensors(entry(shape=[1 << 40, 1 << 40])), "does not fill"),
        (safetensors(entry(shape=[2], offsets=[8, 16])), "hole"),
        (safetensors(entry(shape=[2], offsets=[0, 8])), "end at byte 8 of 16"),
        (safetensors({**entry(), "y": entry()["x"]}), "hole or overlap"),
    ],
)
def test_hostile_headers_are_refused(payload, says):
    with pytest.raises(BadPayload, match=says):
        decode_arrays(payload)
