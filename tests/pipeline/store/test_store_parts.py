"""The parts of a store alone, at their bounds: counts, caps, texts, and what is done once or twice."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google_crc32c
import numpy as np
import pytest

from caeav.manifests.core import atomic as publish
from caeav.manifests.core.home import Home
from caeav.manifests.keys import MAX_KEY_CHARS
from caeav.pipeline.extract.collect import open_stores
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.identity import listed
from caeav.pipeline.store import (
    DamagedShard,
    DamagedStore,
    IncompleteStore,
    Quarantined,
    Recipe,
    Record,
    Reference,
    Slice,
    StoreBusy,
    StoreError,
    StoreReader,
    convert,
    find_slices,
    find_store,
    list_stores,
    open_for_writing,
    opening,
    random_parts,
    remove_store,
    repair,
    verify,
)
from caeav.pipeline.store.backend import BadIndex, backend_field, backend_of
from caeav.pipeline.store.contents import Differences, compare_records, describe
from caeav.pipeline.store.convert import converted_recipe
from caeav.pipeline.store.dtypes import dtype_name, floats, stored
from caeav.pipeline.store.errors import Problem
from caeav.pipeline.store.find import idle_s, list_slices
from caeav.pipeline.store.formats.common import join_keys, split_keys
from caeav.pipeline.store.formats.webdataset import structure_differences as structure_of_tar
from caeav.pipeline.store.formats.zarr_format import structure_differences as structure_of_zarr
from caeav.pipeline.store.journal import kept_remarks, source_of
from caeav.pipeline.store.layout import (
    MAX_SHARD_CLIPS,
    StoreFolder,
    numbered,
    parse_seal,
    read_capped,
    shard_clips,
)
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.media_record import Facts, MediaChange, read_record, write_record
from caeav.pipeline.store.payload import (
    MAX_HEADER_BYTES,
    MAX_INFO_BYTES,
    READ_BYTES,
    BadPayload,
    crc32c,
    decode_arrays,
    digest,
    encode_arrays,
    encode_info,
)
from caeav.pipeline.store.recipe import recipe_differences
from caeav.pipeline.store.record import append_quarantine, read_quarantine
from caeav.pipeline.store.state import inspect
from caeav.pipeline.store.testing_data import Toy
from caeav.pipeline.store.verify import Report


def unfinished(toy, clips: int = 10, shards: int = 1) -> Path:
    """A store of which so many shards are written."""
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(clips)) as writer:
        for plan in writer.plan()[:shards]:
            writer.publish(plan, {key: toy.record(key) for key in plan.missing})
    return toy.folder


# Checksums and payloads


def test_checksums_are_those_of_all_bytes_whatever_blocks_they_are_read_in() -> None:
    data = np.frombuffer(np.random.default_rng(0).bytes(2 * READ_BYTES + 777), np.uint8)
    whole = google_crc32c.value(data.tobytes())
    assert crc32c([data]) == whole
    assert crc32c([data[:1000], data[1000:].tobytes()]) == whole and crc32c([]) == 0
    told: list[int] = []
    spans = [(3, 10), (10, 10), (100, READ_BYTES + 150), (2 * READ_BYTES, data.size)]
    sha256, sums = digest(data, spans, told.append)
    assert sha256 == hashlib.sha256(data).hexdigest() and sum(told) == data.size
    assert sums == [google_crc32c.value(data[a:b].tobytes()) for a, b in spans]


def test_facts_and_headers_have_a_largest_size() -> None:
    bare = len(encode_info({"a": ""}))
    assert len(encode_info({"a": "x" * (MAX_INFO_BYTES - bare)})) == MAX_INFO_BYTES
    with pytest.raises(ValueError, match=f"facts of {MAX_INFO_BYTES + 1} bytes; at most {MAX_INFO_BYTES}"):
        encode_info({"a": "x" * (MAX_INFO_BYTES - bare + 1)})
    with pytest.raises(ValueError, match="Out of range"):
        encode_info({"a": float("nan")})
    with pytest.raises(ValueError, match=f"at most {MAX_HEADER_BYTES}"):
        encode_arrays({"x" * MAX_HEADER_BYTES: np.zeros(1, np.int8)})


def test_arrays_lie_by_size_of_their_values_and_then_by_name_behind_an_aligned_header() -> None:
    arrays = {"b": np.arange(3, dtype=np.int8), "c": np.zeros(2, "<f8"), "a": np.ones(5, np.int8)}
    chunks = encode_arrays(arrays)
    assert sum(map(len, chunks[:1])) % 64 == 0
    header = json.loads(chunks[0][8:].tobytes())
    assert [(name, row["data_offsets"]) for name, row in header.items()] == [
        ("c", [0, 16]),
        ("a", [16, 21]),
        ("b", [21, 24]),
    ]
    read = decode_arrays(np.concatenate(chunks))
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
    for size in (0, 7):
        with pytest.raises(BadPayload, match=f"{size} bytes, at least 8"):
            decode_arrays(np.zeros(size, np.uint8))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "I8", "shape": [1] * 17, "data_offsets": [0, 1]}, "no proper shape"),
        ({"dtype": "I8", "shape": [-1], "data_offsets": [0, 1]}, "no proper shape"),
        ({"dtype": "I8", "shape": [True], "data_offsets": [0, 1]}, "no proper shape"),
        ({"dtype": "I8", "shape": [1], "data_offsets": [0, 2]}, "outside the 1 bytes"),
        ({"dtype": "I8", "shape": [1], "data_offsets": [1, 0]}, "outside the 1 bytes"),
        ({"dtype": "I8", "shape": [1], "data_offsets": [0, 1, 1]}, "outside the 1 bytes"),
        ({"dtype": "I16", "shape": [1], "data_offsets": [0, 1]}, "does not fill 1 bytes"),
        ({"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}, "arrays end at byte 0 of 1"),
        ({"dtype": "I8", "shape": [0], "data_offsets": [1, 1]}, "hole or overlap at byte 0"),
        ({"dtype": "C8", "shape": [1], "data_offsets": [0, 1]}, "no dtype out of"),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(entry: dict[str, Any], says: str) -> None:
    head = json.dumps({"x": entry}).encode()
    data = np.frombuffer(len(head).to_bytes(8, "little") + head + b"\0", np.uint8)
    with pytest.raises(BadPayload, match=says):
        decode_arrays(data)
    most = {"dtype": "I8", "shape": [1] * 16, "data_offsets": [0, 1]}
    head = json.dumps({"__metadata__": {"a": "b"}, "x": most}).encode()
    read = decode_arrays(np.frombuffer(len(head).to_bytes(8, "little") + head + b"\5", np.uint8))
    assert {*read} == {"x"} and read["x"].shape == (1,) * 16 and read["x"].item() == 5


def test_keys_come_back_and_the_longest_allowed_is_allowed() -> None:
    keys = ["a", "b" * MAX_KEY_CHARS, "c-1"]
    blob, ends = join_keys(keys)
    assert tuple(split_keys(blob, ends)) == tuple(keys)
    with pytest.raises(BadIndex, match="one without characters, too long"):
        split_keys(b"b" * (MAX_KEY_CHARS + 1), np.array([MAX_KEY_CHARS + 1], np.uint32))
    with pytest.raises(BadIndex, match="not one list"):
        split_keys(b"ab", np.array([1], np.uint32))
    with pytest.raises(BadIndex, match="not one list"):
        split_keys(b"a", np.array([], np.uint32))
    with pytest.raises(BadIndex, match="distinct"):
        split_keys(b"aa", np.array([1, 2], np.uint32))
    assert len(split_keys(b"", np.array([], np.uint32))) == 0


# Formats of numbers


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000, 0x7FFFFFFF], np.uint32)
    kept = stored({"x": bits.view(np.float32)}, "bfloat16")["x"]
    assert kept.view("<u2").tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF82, 0x7FC0]
    assert dtype_name(kept) == "bfloat16" and dtype_name(np.zeros(1, np.int8)) == "int8"


def test_int8_has_a_scale_a_channel_and_steps_of_both_signs() -> None:
    array = np.array([[127.0, -254.0, 0.0], [-63.4, 1.0, 0.0]], np.float32)
    kept = stored({"x": array}, "int8")
    assert kept["x"].tolist() == [[127, -127, 0], [-63, 0, 0]]
    assert kept["x.scale"].tolist() == [1.0, 2.0, 0.0]
    read = floats(kept)
    assert {*read} == {"x"} and read["x"].dtype == np.float16
    assert read["x"].tolist() == [[127.0, -254.0, 0.0], [-63.0, 0.0, 0.0]]
    most = float(np.finfo(np.float16).max)
    assert np.isfinite(stored({"x": np.full((1, 1), most, np.float32)}, "int8")["x.scale"]).all()
    assert np.isinf(stored({"x": np.full((1, 1), most + 64, np.float32)}, "int8")["x.scale"]).all()
    alone = {"x.scale": np.ones(1, np.float32)}
    assert {*floats(alone)} == {"x.scale"}, "an array that is only called so is passed through"


# Recipes


def test_a_recipe_is_the_same_wherever_weights_came_from_and_differs_by_named_fields() -> None:
    def recipe(source: str, digest: str, rate: int = 1, **more: Any) -> Recipe:
        weights = {"source": source, "digest": digest}
        return Recipe("tokens", "x", {"visual": {"weights": weights, "rate": rate}, **more})

    a, b = recipe("here", "1"), recipe("there", "1")
    assert a.fingerprint == b.fingerprint and recipe_differences(a.as_json(), b.as_json()) == []
    other = recipe("there", "2", 2, extra=None)
    assert other.fingerprint != a.fingerprint
    assert recipe_differences(a.as_json(), other.as_json()) == [
        "fields.extra: '(absent)' -> None",
        "fields.visual.rate: 1 -> 2",
        "fields.visual.weights.digest: '1' -> '2'",
        "fields.visual.weights.source: 'here' -> 'there'",
    ]
    bare = Recipe("tokens", "x", {"source": "here"}), Recipe("tokens", "x", {"source": "there"})
    assert bare[0].fingerprint != bare[1].fingerprint, "what has no digest is known by its source alone"
    assert a.folder_name == f"tokens-x-{a.fingerprint[:12]}"
    assert replace(a, kind="captions").fingerprint != a.fingerprint != replace(a, name="y").fingerprint


def test_random_weights_are_named_wherever_they_lie() -> None:
    random = {"digest": "random:7"}
    fields = {
        "visual": {"name": "clip", "weights": random, "text": {"weights": random}},
        "audio": {"name": "clap", "weights": {"digest": "abc"}, "text": {"name": "words", "weights": random}},
        "size": 3,
    }
    assert random_parts(fields) == ["clip", "text", "words"]


def test_shards_have_at_least_one_clip_and_at_most_so_many() -> None:
    for size in (1, MAX_SHARD_CLIPS):
        assert shard_clips(Recipe("tokens", "x", {"shard_clips": size})) == size
    assert shard_clips(Recipe("tokens", "x", {})) == 64
    for bad in (0, MAX_SHARD_CLIPS + 1, 4.0):
        with pytest.raises(StoreError, match=f"shard_clips is {bad}"):
            shard_clips(Recipe("tokens", "x", {"shard_clips": bad}))


def test_backends_are_those_there_are() -> None:
    assert backend_field("webdataset") == {} and backend_field("zarr") == {"backend": "zarr"}
    assert backend_of(Recipe("tokens", "x", {})).name == "webdataset"
    for bad in ("nobody", 3):
        with pytest.raises(StoreError, match=r"names the store backend") as caught:
            backend_of(Recipe("tokens", "x", {"backend": bad}))
        assert "webdataset, zarr" in str(caught.value.hint)
    with pytest.raises(StoreError, match="unknown store backend 'nobody'"):
        backend_field("nobody")


# Files of a store


def test_a_file_of_exactly_the_cap_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"1234")
    assert read_capped(path, 4) == b"1234"
    with pytest.raises(DamagedStore, match="has 4 bytes; at most 3"):
        read_capped(path, 3)
    with pytest.raises(FileNotFoundError):
        read_capped(tmp_path / "gone")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for bad in (tmp_path, tmp_path / "link"):
        with pytest.raises(DamagedStore, match="no plain file"):
            read_capped(bad)


def test_indexes_are_known_by_their_names_in_order(tmp_path: Path) -> None:
    for name in ("000010.idx", "000002.idx", "1000000.idx", "00001.idx", "000003.idx.x", "x000004.idx"):
        (tmp_path / name).touch()
    assert numbered(tmp_path) == [2, 10, 1000000] and numbered(tmp_path / "gone") == []


def test_a_quarantine_line_is_synced_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, fsync = tmp_path / "quarantine.jsonl", [], os.fsync

    def noted(fd: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{fd}").readlink()), path.stat().st_size))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    append_quarantine(path, Quarantined("a", "decode", "b", 1))
    first = path.stat().st_size
    assert (str(path), first) in synced and (str(tmp_path), first) in synced
    append_quarantine(path, Quarantined("a", "decode", "later", 3))
    assert synced[-1] == (str(path), path.stat().st_size)
    assert read_quarantine(path) == ({"a": Quarantined("a", "decode", "later", 3)}, False)


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "a", "stage": "b", "reason": "c"}',
        '{"key": "a", "stage": "b", "reason": "c", "attempts": true}',
        '{"key": "a", "stage": "b", "reason": "c", "attempts": 1, "more": 1}',
        '{"key": "a/b", "stage": "b", "reason": "c", "attempts": 1}',
        '{"key": "a", "stage": "b", "reason": null, "attempts": 1}',
        '{"key": "a", "stage": 1, "reason": "c", "attempts": 1}',
        "",
    ],
)
def test_a_line_that_is_no_quarantine_entry_is_named_by_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "quarantine.jsonl"
    append_quarantine(path, Quarantined("a", "decode", "b", 1))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DamagedStore, match="line 2: not a quarantine entry"):
        read_quarantine(path)


def test_a_released_lock_is_empty_and_free_and_releasing_twice_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    lock = WriterLock(path)
    assert path.read_bytes() == str(os.getpid()).encode()
    lock.release()
    assert path.read_bytes() == b""
    other = WriterLock(path)
    lock.release()
    assert path.read_bytes() == str(os.getpid()).encode(), "the other's, who holds it now"
    other.release()


@pytest.mark.parametrize("name", ["expected", "stored", "quarantined", "shards", "shard_bytes"])
def test_a_seal_whose_counts_are_not_those_of_the_store_is_refused_by_name(toy, name: str) -> None:
    toy.write(failing=["clip002"])
    path = toy.folder / "complete.json"
    value = json.loads(path.read_text())
    seen = value[name]
    value[name] += 1
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    with pytest.raises(DamagedStore, match=rf"complete\.json: {name} is {seen}, the seal says {seen + 1}"):
        StoreReader.open(toy.folder)
    toy.write()
    assert verify(toy.folder).sound


def test_a_seal_is_what_is_there_in_numbers(toy) -> None:
    summary = toy.write(failing=["clip002", "clip003"])
    seal = parse_seal((toy.folder / "complete.json").read_bytes(), toy.folder)
    size = sum(path.stat().st_size for path in toy.folder.glob("shards/*"))
    assert (seal.stored, seal.quarantined, seal.expected, seal.shards, seal.shard_bytes) == (
        8,
        2,
        10,
        3,
        size,
    )
    assert summary.bytes == size and seal.fingerprint == toy.recipe().fingerprint
    wanted = {"manifest.jsonl", "quarantine.jsonl", *(f"index/00000{n}.idx" for n in range(3))}
    assert {*seal.sha256} == wanted
    assert all(
        hashlib.sha256((toy.folder / name).read_bytes()).hexdigest() == seal.sha256[name] for name in wanted
    )
    report = verify(toy.folder)
    assert (report.stored, report.quarantined, report.shards, report.bytes) == (8, 2, 3, size)
    assert (report.missing, report.finished, report.sound) == (0, True, True)


def test_a_store_is_sound_when_it_is_finished_without_damage_and_without_a_hole(tmp_path: Path) -> None:
    good = Report(tmp_path, (), finished=True)
    assert good.sound
    for other in (
        replace(good, finished=False),
        replace(good, missing=1),
        replace(good, problems=(Problem("a", "b"),)),
    ):
        assert not other.sound


def test_a_problem_as_an_error_names_file_key_and_how_many_more(tmp_path: Path) -> None:
    error = Problem("a", "b", "k", 3).error(tmp_path, 2)
    assert error.problem == f"{tmp_path / 'a'}, key k: b (and 2 more)" and isinstance(error, DamagedShard)
    error = Problem("a", "b").error(tmp_path)
    assert error.problem == f"{tmp_path / 'a'}: b" and not isinstance(error, DamagedShard)
    assert isinstance(Problem("a", "b", shard=0).error(tmp_path), DamagedShard)
    assert str(Problem("a", "b", "k")) == "a (k): b" and str(Problem("a", "b")) == "a: b"


# Writing


def test_a_journal_goes_with_its_shard_and_not_with_the_store(toy) -> None:
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


def test_a_shard_of_which_the_same_clips_fail_again_is_left_as_it_is(toys) -> None:
    toys.write(failing=["clip002"])
    files = [
        path for path in toys.folder.rglob("*") if path.suffix in (".tar", ".idx") or path.name[:2] == "c."
    ]
    before = {path: path.stat().st_ino for path in files}
    toys.write(retry_failed=True, failing=["clip002"])
    assert {path: path.stat().st_ino for path in files} == before
    assert StoreReader.open(toys.folder).quarantined[0].attempts == 2


def test_remaking_takes_the_named_clips_out_and_no_other(toys) -> None:
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
    assert numbered(toys.folder / "index") == [0, 1], "shard 2 had clip008 alone"
    files = [path.name for number, paths in backend_of(toys.recipe()).files(StoreFolder(toys.folder)).items()
             for path in paths if number == 2]  # fmt: skip
    assert files == []
    reader = StoreReader.open(toys.folder, allow_partial=True)
    assert tuple(reader.keys) == ("clip000", "clip003", "clip004", "clip005", "clip006", "clip007")
    assert all(toys.same(record) for record in reader)


def test_what_was_relabelled_added_or_left_is_said_with_the_first_of_them(toy) -> None:
    toy.write()
    manifest = toy.manifest(12, "horn")
    said: list[str] = []
    toy.write(replace(manifest, clips=manifest.clips[1:]), seen=lambda w: said.extend(w.remarks))
    assert said == [
        "new clips: 2, clip010 first",
        "clips with new labels or splits: 9, clip001 first",
        "clips no longer in the data set, which stay stored in no split: 1, clip000 first",
    ]
    said.clear()
    toy.write(failing=["clip001"], recipe=toy.recipe(a=1))
    toy.write(retry_failed=True, recipe=toy.recipe(a=1), seen=lambda w: said.extend(w.remarks))
    assert said == ["quarantined clips tried again: 1"]


def test_leftovers_of_a_killed_writer_go_on_opening_and_at_the_end(toys) -> None:
    folder = unfinished(toys)
    places = [
        folder,
        folder / "index",
        folder / "spare",
        *backend_of(toys.recipe()).places(StoreFolder(folder)),
    ]
    for place in places:
        (place / ".part-x").write_bytes(b"x")
    open_for_writing(toys.dataset, toys.recipe(), toys.manifest()).close()
    assert not list(folder.rglob(".part-*"))
    toys.write(seen=lambda _: [(place / ".part-x").write_bytes(b"x") for place in places])
    assert not list(folder.rglob(".part-*")) and verify(folder).sound


def test_an_open_writer_is_told_by_name_what_is_missing(toy) -> None:
    folder = unfinished(toy, 7)
    with pytest.raises(IncompleteStore, match=r"3 of 7 clips .*: clip004, clip005, clip006") as caught:
        StoreReader.open(folder)
    assert "..." not in caught.value.problem and "caeav extract" in str(caught.value.hint)
    folder = unfinished(toy.at(toy.stores.parent / "more"), 8)
    with pytest.raises(IncompleteStore, match=r"4 of 8 clips .*: clip004, clip005, clip006, \.\.\."):
        StoreReader.open(folder)
    state = inspect(folder)
    captions = replace(state, recipe=replace(state.recipe, kind="captions"))
    assert "`caeav caption` again" in str(captions.incomplete().hint)
    assert (state.stored, state.expected, len(state.indexes)) == (4, 8, 1)


# Reading


def test_a_record_is_checked_when_first_read_and_not_again(toys, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.write()
    reader = StoreReader.open(toys.folder)
    kind, checks = type(reader._shard(0)), []
    record = kind.record
    monkeypatch.setattr(
        kind,
        "record",
        lambda self, row, *, check=True: checks.append((row, check)) or record(self, row, check=check),
    )
    for key in ("clip001", "clip001", "clip002", "clip001"):
        assert toys.same(reader.read(key))
    assert checks == [(1, True), (1, False), (2, True), (1, False)]
    StoreReader.open(toys.folder).read("clip001")
    assert checks[-1] == (1, True), "each reader checks for itself"


def test_of_many_shards_the_longest_unused_is_closed(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write()
    monkeypatch.setattr("caeav.pipeline.store.reader.OPEN_FILES", 2)
    reader = StoreReader.open(toy.folder)
    for key in ("clip000", "clip004", "clip001", "clip008"):
        reader.read(key)
    assert list(reader._shards) == [0, 2]


def test_a_reader_knows_what_it_holds_and_what_it_does_not(toys) -> None:
    toys.write(failing=["clip002"])
    reader = StoreReader.open(toys.folder)
    assert reader.held().tolist() == [i != 2 for i in range(10)]
    assert "clip001" in reader and "clip002" not in reader and 1 not in reader and len(reader) == 9
    assert [record.key for record in reader.read_each(["clip009", "clip000", "clip009"])] == [
        "clip009",
        "clip000",
        "clip009",
    ]
    reader.prefetch(["clip001", "clip002", "nobody"])
    sized = sum(p.stat().st_size for paths in backend_of(toys.recipe()).files(StoreFolder(toys.folder)).values()
                for p in paths)  # fmt: skip
    assert reader.shard_bytes == sized
    specs = reader.array_specs()
    assert list(specs) == ["audio.mask", "audio.stage1", "visual.stage1"]
    assert (specs["visual.stage1"].shape, specs["visual.stage1"].dtype) == ((10, 6, 8), "float16")
    other = toys.at(toys.stores.parent / "whole")
    other.write()
    assert StoreReader.open(other.folder).held().tolist() == [True] * 10


# Comparing and describing


def test_each_difference_of_two_records_is_noted_by_array_and_fact() -> None:
    def record(key: str, info: dict[str, Any], **arrays: Any) -> Record:
        return Record(key, arrays, info)

    found = Differences()
    one = np.array([1.0, 2.0], np.float32)
    compare_records(record("a", {"x": 1}, v=one, w=one), record("a", {"x": 1}, v=one, w=one), found)
    assert found.same_content
    compare_records(record("b", {"x": 1}, v=one), record("b", {"y": 1}, v=one + 0.5, w=one), found)
    compare_records(record("c", {"x": 1}, v=one, u=one), record("c", {"x": 2}, v=one - 3.0), found)
    compare_records(record("d", {}, v=one[:1]), record("d", {}, v=one), found)
    compare_records(record("e", {}, t=one), record("e", {}, t=one.astype(np.float64)), found)
    compare_records(record("f", {}, s=np.array([0.0])), record("f", {}, s=np.array([-0.0])), found)
    seen = {name: (x.clips, x.largest, x.key, x.form) for name, x in found.arrays.items()}
    assert seen == {
        "v": (3, 3.0, "c", "[1] -> [2]"),
        "w": (1, 0.0, "b", "only in the second"),
        "u": (1, 0.0, "c", "only in the first"),
        "t": (1, 0.0, "e", "float32 -> float64"),
        "s": (1, 0.0, "f", ""),
    }
    assert found.facts == {"x": 2, "y": 1} and not found.same_content
    for changed in ({"only_a": ("k",)}, {"only_b": ("k",)}, {"quarantine": ("k",)}, {"facts": {"x": 1}}):
        assert not Differences(**changed).same_content
    assert Differences(recipe=("fields.dtype",)).same_content


def test_a_description_counts_clips_by_what_is_noted_of_them() -> None:
    facts = {
        "a": {"notes": [{"code": "short"}, {"code": "short"}, "plain"], "frames_ok": [False, True]},
        "b": {"notes": [{"code": "short"}], "frames_ok": [False, False], "audio_ok": [False]},
        "c": {"audio_ok": [False, False]},
    }
    failed = [Quarantined(k, "decode", why, 1) for k, why in (("d", "x"), ("e", "y"), ("f", "y"))]
    reader = SimpleNamespace(
        keys=list(facts),
        info=facts.__getitem__,
        quarantined=failed,
        shard_bytes=100,
        manifest=SimpleNamespace(clips=range(8)),
        missing=("g", "h"),
        array_specs=lambda: {"v": 1},
        __len__=None,
    )
    seen = describe(type("Reader", (SimpleNamespace,), {"__len__": lambda self: 3})(**vars(reader)))
    assert (seen.clips, seen.expected, seen.missing, seen.bytes, seen.bytes_a_clip) == (3, 8, 2, 100, 33)
    assert seen.notes == (("short", 2), ("plain", 1)) and (seen.no_video, seen.no_audio) == (1, 2)
    assert seen.quarantine == (("decode", "y", 2), ("decode", "x", 1)) and seen.arrays == {"v": 1}


# Finding


def test_a_store_answers_to_four_digits_of_its_fingerprint_in_any_case(toy) -> None:
    toy.write()
    toy.write(recipe=toy.recipe(dtype="float32"))
    digits = toy.recipe().fingerprint
    for name in (digits[:4], digits[:12].upper(), digits):
        assert find_store(toy.stores, "toy", "tokens", name) == toy.folder
    with pytest.raises(StoreError, match=r"no tokens store of toy called"):
        find_store(toy.stores, "toy", "tokens", digits[:3])
    with pytest.raises(StoreError, match=r"2 stores match, one is needed"):
        find_store(toy.stores, "toy")
    with pytest.raises(StoreError, match=r"no captions store of toy") as caught:
        find_store(toy.stores, "toy", "captions")
    assert "caeav caption --dataset toy" in str(caught.value.hint)
    with pytest.raises(StoreError, match=r"no store of other in"):
        find_store(toy.stores, "other")


def test_a_store_in_the_list_has_its_counts_and_the_room_it_takes(toy) -> None:
    toy.write(failing=["clip002"])
    size = sum(path.stat().st_size for path in toy.folder.glob("shards/*"))
    (info,) = list_stores(toy.stores)
    assert (info.dataset, info.kind, info.name, info.state) == ("toy", "tokens", "classic", "complete")
    assert (info.clips, info.quarantined, info.expected, info.bytes) == (9, 1, 10, size)
    (toy.folder / "complete.json").unlink()
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest(12)) as writer:
        writer.keep(toy.record("clip010"))
        journal = (toy.folder / "journal" / "000002.log").stat().st_size
    (info,) = list_stores(toy.stores)
    assert (info.state, info.clips, info.quarantined, info.expected) == ("partial", 9, 1, 12)
    assert info.bytes == size + journal and info.fingerprint12 == toy.recipe().fingerprint[:12]


def test_slices_are_found_by_the_name_of_their_store_in_order(toy) -> None:
    for number, count in ((2, 3), (1, 3), (3, 3)):
        open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), part=Slice(number, count)).close()
    wanted = [toy.dataset / f"{toy.recipe().folder_name}.slice-{n}-of-3" for n in (1, 2, 3)]
    digits = toy.recipe().fingerprint
    for name in (None, "classic", toy.recipe().folder_name, digits[:6]):
        assert find_slices(toy.stores, "toy", name) == wanted
    assert list_slices(toy.stores) == wanted and list_stores(toy.stores) == []
    with pytest.raises(StoreError, match="no matching slice of a store of 'toy'"):
        find_slices(toy.stores, "toy", "other")
    open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), part=Slice(1, 2)).close()
    with pytest.raises(StoreError, match=r"slices of 2 stores of toy in .* match[\s\S]*cut into 3"):
        find_slices(toy.stores, "toy")


def test_a_reference_means_the_store_of_its_fingerprint_in_its_data_set(toy) -> None:
    toy.write()
    (info,) = list_stores(toy.stores)
    digits = toy.recipe().fingerprint
    assert Reference("", digits).means(info) and Reference("toy", digits).means(info)
    assert not Reference("other", digits).means(info) and not Reference("", digits[::-1]).means(info)
    slice_of = replace(info, path=info.path.with_name(info.path.name + ".slice-1-of-2"))
    assert not Reference("toy", digits).means(slice_of)
    for path in (toy.folder, *toy.folder.iterdir()):
        os.utime(path, (1000, 1000), follow_symlinks=False)
    old = idle_s(toy.folder)
    os.utime(toy.folder / "index", (5000, 5000))
    assert 3900 < old - idle_s(toy.folder) < 4100, "the newest of all counts"


# What a crash may meet


def test_the_seal_is_put_in_its_place_last_and_goes_first(toys, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    rename, remove = publish.rename, publish.remove
    monkeypatch.setattr(publish, "rename", lambda old, new: steps.append(f"+{new.name}") or rename(old, new))
    monkeypatch.setattr(publish, "remove", lambda path: steps.append(f"-{path.name}") or remove(path))
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


def test_a_shard_without_an_index_goes_when_the_store_is_finished(toys) -> None:
    folder = unfinished(toys)
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


def test_what_is_remade_is_not_taken_from_a_journal(toy) -> None:
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        for key in ("clip001", "clip002"):
            writer.keep(toy.record(key))
        writer.remake(["clip001"])
        assert {*writer.kept(0)} == {"clip002"}
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        assert writer.plan()[0].kept == ("clip002",)


def test_what_is_wrong_with_a_record_that_is_made_again_is_said_once(toy) -> None:
    toy.write()
    entry = StoreReader.open(toy.folder)._indexes[2].entries[1]
    path = toy.folder / "shards" / "000002.tar"
    data = bytearray(path.read_bytes())
    data[int(entry["info_offset"])] ^= 1
    path.write_bytes(data)
    said: list[str] = []
    toy.write(toy.manifest(12), seen=lambda w: said.extend(w.remarks))
    (remark,) = [text for text in said if "made again" in text]
    assert remark.startswith("shard 2, clip009: the json has crc32c ") and remark.count("clip009") == 1


def test_the_shards_of_a_zarr_store_have_the_same_arrays(memory: Path) -> None:
    toy = Toy(memory / "stores", "zarr")
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        first, second, _ = writer.plan()
        writer.publish(first, {key: toy.record(key) for key in first.missing})
        others = {
            key: replace(toy.record(key), arrays={"x": np.zeros(3, np.float16)}) for key in second.missing
        }
        with pytest.raises(StoreError, match=r"clip 'clip004' has x F16 \[3\]; the clips before it have"):
            writer.publish(second, others)
        assert {*writer.indexes} == {0} and [plan.number for plan in writer.plan()] == [1, 2]


def test_an_index_comes_before_its_copy_and_goes_after_it(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    rename, remove = publish.rename, publish.remove

    def noted(sign: str, path: Path) -> None:
        if path.suffix == ".idx":
            steps.append(sign + path.parent.name)

    monkeypatch.setattr(publish, "rename", lambda old, new: noted("+", new) or rename(old, new))
    monkeypatch.setattr(publish, "remove", lambda path: noted("-", path) or remove(path))
    toy.write(toy.manifest(3))
    assert steps == ["+index", "+spare"]
    toy.write(toy.manifest(4))
    assert steps[2:] == ["-spare", "-index", "+index", "+spare"]


def test_a_disk_that_cannot_take_a_shard_keeps_the_old_one(toys, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.write()
    sync_file = publish.sync_file

    def full(out: Any) -> None:
        if Path(out.name).suffix == ".tar" or Path(out.name).name.startswith(".part-c."):
            raise OSError(28, "No space left on device")
        sync_file(out)

    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest(12)) as writer:
        plan = writer.plan()[0]
        monkeypatch.setattr(publish, "sync_file", full)
        with pytest.raises(OSError, match="No space left"):
            writer.publish(plan, {key: toys.record(key) for key in plan.missing})
        monkeypatch.setattr(publish, "sync_file", sync_file)
    reader = StoreReader.open(toys.folder, allow_partial=True)
    assert len(reader) == 10 and all(toys.same(record) for record in reader)


def flipped(toys, key: str, value: bytes) -> None:
    """One bit of `value`, which is in the record of `key` alone, is another one."""
    number = int(key[4:]) // 4
    for path in backend_of(toys.recipe()).files(StoreFolder(toys.folder))[number]:
        data = path.read_bytes()
        if value in data:
            assert data.count(value) == 1
            path.write_bytes(data.replace(value, bytes([value[0] ^ 1]) + value[1:]))


def own_facts(toys) -> Any:
    """The toy with facts that are one clip's alone."""
    record = type(toys).record

    class Own(type(toys)):
        def record(self, key: str) -> Record:
            return replace(record(self, key), info={"own": f"fact of {key}"})

    return Own(toys.stores, toys.backend)


def test_facts_that_were_damaged_are_refused_with_the_record(toys) -> None:
    toys = own_facts(toys)
    toys.write()
    flipped(toys, "clip005", b"fact of clip005")
    reader = StoreReader.open(toys.folder)
    for _ in range(2):
        with pytest.raises(DamagedShard, match=r"key clip005: the (json|chunk) has crc32c"):
            reader.read("clip005")
        with pytest.raises(DamagedShard, match=r"key clip005: the (json|chunk) has crc32c"):
            reader.info("clip005")
    assert reader.read("clip004").info == {"own": "fact of clip004"}
    assert [(problem.key, problem.shard) for problem in verify(toys.folder).problems] == [("clip005", 1)]


def test_a_digest_that_alone_is_wrong_is_told(toys) -> None:
    toys.write()
    number, index = next(iter(inspect(toys.folder).indexes.items()))
    wrong = (
        {"digests": ("0" * 64, *index.digests[1:])} if toys.backend == "zarr" else {"shard_sha256": "0" * 64}
    )
    (toys.folder / "complete.json").unlink()
    for place in ("index", "spare"):
        (toys.folder / place / f"{number:06d}.idx").write_bytes(replace(index, **wrong).encode())
    (problem,) = verify(toys.folder).problems
    assert problem.where == index.files[0].name and "the index says 000000000000..." in problem.what


def test_facts_with_a_fitting_checksum_that_are_no_facts_are_damage(
    toys, monkeypatch: pytest.MonkeyPatch
) -> None:
    toys = own_facts(toys)
    module = toys.backend
    bad = b'["fact of clip005"]'
    monkeypatch.setattr(
        f"caeav.pipeline.store.formats.{module}.encode_info",
        lambda info: bad if "clip005" in info["own"] else encode_info(info),
    )
    toys.write()
    (problem,) = verify(toys.folder).problems
    assert (problem.key, problem.shard) == ("clip005", 1) and "not an object" in problem.what
    reader = StoreReader.open(toys.folder)
    for read in (reader.read, reader.info):
        with pytest.raises(DamagedShard, match="key clip005: facts is a JSON list"):
            read("clip005")


def test_all_damage_is_listed_and_every_byte_is_told_once(toys) -> None:
    toys = own_facts(toys)
    toys.write()
    told: list[int] = []
    assert verify(toys.folder, told.append).sound
    files = [p for paths in backend_of(toys.recipe()).files(StoreFolder(toys.folder)).values() for p in paths]
    assert sum(told) == sum(path.stat().st_size for path in files)
    for key in ("clip001", "clip002", "clip009"):
        flipped(toys, key, f"fact of {key}".encode())
    assert {problem.key for problem in verify(toys.folder).problems} == {"clip001", "clip002", "clip009"}


def test_repair_drops_every_damaged_record_and_tells_which_are_due(toys) -> None:
    toys = own_facts(toys)
    toys.write()
    for key in ("clip001", "clip002", "clip009"):
        flipped(toys, key, f"fact of {key}".encode())
    told: list[int] = []
    done = repair(toys.folder, told.append)
    assert (done.due, done.finished) == (("clip001", "clip002", "clip009"), False) and sum(told)
    assert sum("; dropped" in text for text in done.said) == 3
    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest()) as writer:
        writer.keep(toys.record("clip002"))
    assert repair(toys.folder).due == ("clip001", "clip009")
    toys.write()
    assert verify(toys.folder).sound
    assert repair(toys.folder) == replace(done, said=(), due=(), finished=True)


def test_a_conversion_is_told_clip_by_clip_and_carries_what_is_known_of_media(toy) -> None:
    toy.write(failing=["clip002"])
    write_record(toy.folder, {"media/1.mp4": Facts(1, 2, bytes(range(16)))})
    told: list[int] = []
    path, summary = convert(toy.folder, "zarr", told.append)
    assert sum(told) == 2 * 9 and (summary.stored, summary.quarantined) == (9, 1)
    assert read_record(path) == read_record(toy.folder)
    assert StoreReader.open(path).recipe == toy.recipe(backend="zarr")
    assert StoreReader.open(path).quarantined == StoreReader.open(toy.folder).quarantined
    assert converted_recipe(toy.recipe(backend="zarr"), "webdataset") == toy.recipe()


def test_a_record_is_for_the_row_it_was_made_for(toy) -> None:
    clip = toy.manifest().clips[0]
    source = source_of(clip)
    assert len(source) == 32 and source_of(replace(clip, split="test", events=())) == source
    for other in ({"key": "x"}, {"media": "x.mp4"}, {"start_s": 1.0}, {"seconds": 9.0}):
        assert source_of(replace(clip, **other)) != source
    assert source_of(replace(clip, start_s=0, seconds=10)) == source, "whole numbers are the same numbers"


def test_a_journal_is_synced_with_its_folder_and_flushed_with_each_record(
    toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync_file, sync_folder = publish.sync_file, publish.sync_folder
    monkeypatch.setattr(
        publish, "sync_file", lambda out: synced.append(Path(out.name).name) or sync_file(out)
    )
    monkeypatch.setattr(publish, "sync_folder", lambda path: synced.append(path.name) or sync_folder(path))
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        path = toy.folder / "journal" / "000000.log"
        sizes = []
        for key in ("clip000", "clip001", "clip001"):
            writer.keep(toy.record(key))
            sizes.append(path.stat().st_size)
        assert 0 < sizes[0] < sizes[1] == sizes[2], "what is kept is kept once, and written at once"
        synced.clear()
        writer.sync()
        writer.sync()
        assert synced == ["000000.log", "journal"]
        writer.keep(toy.record("clip002"))
        assert writer.unsynced
        writer.sync()
        assert synced == ["000000.log", "journal", "000000.log"]
    with open_for_writing(toy.dataset, toy.recipe(), toy.manifest()) as writer:
        assert writer.unsynced, "who wrote it may have been killed before"
        assert writer.remarks == [
            "3 clips of 1 shard not complete yet were finished before and need not be made again"
        ]


def test_stores_are_opened_by_name_and_given_in_the_order_asked_for(toy) -> None:
    recipes = sorted((toy.recipe(n=n) for n in range(3)), key=lambda recipe: recipe.folder_name, reverse=True)
    opened: list[str] = []

    def make(manifest: Any, **how: Any) -> list[Any]:
        opened.clear()
        with ExitStack() as stack:
            stores = open_stores(
                stack,
                RunContext(manifest, Home(toy.dataset.parent.parent), RunOptions(workers=1, **how)),
                [(recipe, lambda records, place: list(records)) for recipe in recipes],
                lambda writer: opened.append(writer.path.name),
            )
            assert [store.writer.recipe for store in stores] == recipes
            assert opened == sorted(opened), "so that no two runs wait for each other"
            for store in stores[:1]:
                for key in store.shard_of:
                    store.writer.quarantine(Quarantined(key, "decode", "x", 1))
            return [(len(store.shard_of), store.writer.path.name) for store in stores]

    names = [recipe.folder_name for recipe in recipes]
    assert make(toy.manifest()) == [(10, names[0]), (10, names[1]), (10, names[2])]
    assert [due for due, _ in make(toy.manifest())] == [0, 10, 10]
    assert [due for due, _ in make(toy.manifest(), retry_failed=True)] == [10, 10, 10]
    slices = make(toy.manifest(), part=Slice(2, 3))
    assert slices == [(4, f"{name}.slice-2-of-3") for name in names]
    bare = replace(toy.manifest(), clips=tuple(replace(c, events=(), split="") for c in toy.manifest().clips))
    with pytest.raises(StoreError, match="have labels or splits"):
        make(bare)
    assert make(bare, relabel=True)


def test_of_many_changes_the_first_are_listed() -> None:
    changes = [MediaChange(f"s{n % 2}", f"k{n // 2}", "m", "gone", "m") for n in range(42)]
    lines = listed(changes)
    assert lines[:2] == ["gone k0: m", "gone k1: m"] and len(lines) == 21
    assert lines[-1] == "and 1 more; --json lists all"
    assert listed(changes[:40])[-1] == "gone k19: m" and listed([]) == []


# One byte at a time


def test_every_byte_around_the_records_is_compared(toys) -> None:
    toys.write(toys.manifest(3))
    ((_, index),) = inspect(toys.folder).indexes.items()
    shard = backend_of(toys.recipe()).open(StoreFolder(toys.folder), index)
    for place, facts in enumerate(index.files):
        data = np.fromfile(toys.folder / facts.name, np.uint8)
        if toys.backend == "zarr":
            spans = [shard._span(place, row) for row in range(3)]
            rows, sums = index.rows["slot"], np.array([shard._sum(place, row) for row in range(3)], np.uint32)
            seen = lambda: list(structure_of_zarr(data, rows, index.sizes(place), sums, index.slots))  # noqa: B023, E731
        else:
            spans = [shard._span(row, part) for row in range(3) for part in ("array", "info")]
            seen = lambda: list(structure_of_tar(data, index))  # noqa: B023, E731
        assert seen() == []
        around = np.ones(data.size, bool)
        for start, end in spans:
            around[start:end] = False
        for at in np.flatnonzero(around)[:: 1 if toys.backend == "zarr" else 13]:
            data[at] ^= 1
            assert len(seen()) == 1, f"byte {at} of {facts.name}"
            data[at] ^= 1
        data = np.append(data, np.uint8(0))
        assert len(seen()) == 1


KINDS = ("recipe", "manifest", "quarantine", "complete", "index", "spare", "payload", "document")


@pytest.mark.parametrize("how", ["flip", "longer", "shorter"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_as_written_is_named_and_mended(toys, contents, kind: str, how: str) -> None:
    toys.write(failing=["clip002"])
    wanted = contents(toys.folder)
    files = backend_of(toys.recipe()).files(StoreFolder(toys.folder))[1]
    documents = sorted(toys.folder.glob("shards.zarr/**/zarr.json"))
    if kind == "document" and not documents:
        return  # a tar has none
    path = {
        "index": toys.folder / "index" / "000001.idx",
        "spare": toys.folder / "spare" / "000001.idx",
        "payload": files[-1],
        "document": documents[-1] if documents else None,
    }.get(kind) or next(toys.folder.glob(f"{kind}.json*"))
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if how == "shorter" else data + b"\n" * (how == "longer"))
    name = path.relative_to(toys.folder).as_posix()
    report = verify(toys.folder)
    assert not report.sound and any(
        name in problem.where or name in problem.what or kind == "recipe" for problem in report.problems
    )
    if not (kind == "payload" and how == "flip") and kind != "spare":
        with pytest.raises(StoreError):
            StoreReader.open(toys.folder)
    if kind == "recipe":
        return
    done = repair(toys.folder)
    assert done.said and (done.finished or done.due or kind in ("manifest", "quarantine", "payload"))
    toys.write(failing=["clip002"])
    assert verify(toys.folder).sound and contents(toys.folder) == wanted
    assert repair(toys.folder).said == ()


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
    data[64 + 64] ^= 1  # in the first entry, behind the heads of file and entry
    path.write_bytes(data)
    assert kept_remarks(StoreFolder(toy.folder)) == [
        "journal: 1 clip finished, in no shard yet; the next run takes them up"
    ]
    assert verify(toy.folder).remarks == tuple(kept_remarks(StoreFolder(toy.folder)))


# Opening


def test_damage_that_comes_while_a_shard_is_rewritten_is_not_copied(toys) -> None:
    toys = own_facts(toys)
    toys.write()
    with open_for_writing(toys.dataset, toys.recipe(), toys.manifest(12)) as writer:
        (plan,) = writer.plan()
        flipped(toys, "clip009", b"fact of clip009")
        with pytest.raises(DamagedShard, match="clip009"):
            writer.publish(plan, {key: toys.record(key) for key in plan.missing})


def test_a_folder_that_goes_while_it_is_locked_is_made_again(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[BaseException] = [
        FileNotFoundError(2, "removed"),
        StoreBusy("held by 1"),
        StoreBusy("held by 1"),
        StoreBusy("held by 2"),
    ]

    def lock(path: Path) -> WriterLock:
        if answers:
            raise answers.pop(0)
        return WriterLock(path)

    monkeypatch.setattr(opening, "WriterLock", lock)
    monkeypatch.setattr(opening, "POLL_S", 0)
    told: list[str] = []
    open_for_writing(toy.dataset, toy.recipe(), toy.manifest(), waiting=told.append).close()
    assert [text.partition(";")[0] for text in told] == ["held by 1", "held by 2"]


def test_a_finished_store_whose_manifest_is_gone_takes_a_grown_one(toy) -> None:
    toy.write()
    (toy.folder / "manifest.jsonl").unlink()
    assert toy.write(toy.manifest(12)).stored == 12 and verify(toy.folder).sound


def test_a_document_that_is_wrong_is_written_anew_and_the_store_sealed_again(memory: Path, contents) -> None:
    toy = Toy(memory / "stores", "zarr")
    toy.write()
    wanted = contents(toy.folder)
    (toy.folder / "shards.zarr" / "key" / "zarr.json").write_text("{}")
    said: list[str] = []
    toy.write(seen=lambda w: said.extend(w.remarks))
    assert contents(toy.folder) == wanted and said[0].endswith("it is written anew")
    assert said[1].startswith("damage was found on opening; `caeav store verify")


@pytest.mark.parametrize(
    ("found", "failed", "said"),
    [
        (Differences(), (), ""),
        (Differences(facts={"notes": 1}), (), r"\(the facts notes\)"),
        (Differences(only_a=("k1",)), (), "k1 first"),
        (Differences(), (Quarantined("k2", "decode", "x", 1),), "k2 first"),
    ],
)
def test_what_was_copied_is_compared(
    found: Any, failed: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = importlib.import_module(
        "caeav.pipeline.store.convert"
    )  # the package has a function of that name
    monkeypatch.setattr(transfer, "compare", lambda a, b, progress: found)
    made = SimpleNamespace(keys=(), quarantined=(), path=Path("made"))
    source = SimpleNamespace(keys=(), quarantined=failed, path=Path("source"))
    if not said:
        transfer._check_same([source], made, lambda n: None)
        return
    with pytest.raises(StoreError, match=said):
        transfer._check_same([source], made, lambda n: None)
