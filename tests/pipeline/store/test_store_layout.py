"""A store's small files at their bounds: recipes, indexes, quarantine lines, locks, errors."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests.keys import MAX_KEY_CHARS
from caeav.pipeline.store import (
    DamagedShard,
    DamagedStore,
    Quarantined,
    Recipe,
    StoreError,
    open_for_writing,
    random_parts,
)
from caeav.pipeline.store.backend import BadIndex, backend_field, backend_of
from caeav.pipeline.store.errors import Problem
from caeav.pipeline.store.formats.common import join_keys, split_keys
from caeav.pipeline.store.layout import (
    MAX_SHARD_CLIPS,
    numbered,
    read_capped,
    shard_clips,
)
from caeav.pipeline.store.lock import WriterLock
from caeav.pipeline.store.recipe import recipe_differences
from caeav.pipeline.store.record import append_quarantine, read_quarantine
from caeav.pipeline.store.testing_data import Toy


def test_joined_keys_are_split_again_up_to_the_longest_key() -> None:
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


def test_a_fingerprint_ignores_where_weights_came_from_and_differences_name_fields() -> None:
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
    assert bare[0].fingerprint != bare[1].fingerprint, "without a digest the source counts"
    assert a.folder_name == f"tokens-x-{a.fingerprint[:12]}"
    assert replace(a, kind="captions").fingerprint != a.fingerprint != replace(a, name="y").fingerprint


def test_components_with_random_weights_are_found_at_any_depth() -> None:
    random = {"digest": "random:7"}
    fields = {
        "visual": {"name": "clip", "weights": random, "text": {"weights": random}},
        "audio": {"name": "clap", "weights": {"digest": "abc"}, "text": {"name": "words", "weights": random}},
        "size": 3,
    }
    assert random_parts(fields) == ["clip", "text", "words"]


def test_shard_sizes_have_a_smallest_and_a_largest_value() -> None:
    for size in (1, MAX_SHARD_CLIPS):
        assert shard_clips(Recipe("tokens", "x", {"shard_clips": size})) == size
    assert shard_clips(Recipe("tokens", "x", {})) == 64
    for bad in (0, MAX_SHARD_CLIPS + 1, 4.0):
        with pytest.raises(StoreError, match=f"shard_clips is {bad}"):
            shard_clips(Recipe("tokens", "x", {"shard_clips": bad}))


def test_unknown_backends_are_refused_naming_the_known_ones() -> None:
    assert backend_field("webdataset") == {} and backend_field("zarr") == {"backend": "zarr"}
    assert backend_of(Recipe("tokens", "x", {})).name == "webdataset"
    for bad in ("nobody", 3):
        with pytest.raises(StoreError, match=r"names the store backend") as caught:
            backend_of(Recipe("tokens", "x", {"backend": bad}))
        assert "webdataset, zarr" in str(caught.value.hint)
    with pytest.raises(StoreError, match="unknown store backend 'nobody'"):
        backend_field("nobody")


def test_only_plain_files_up_to_the_cap_are_read(tmp_path: Path) -> None:
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


def test_index_files_are_listed_by_number(tmp_path: Path) -> None:
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


def test_releasing_a_lock_empties_it_and_a_second_release_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    lock = WriterLock(path)
    assert path.read_bytes() == str(os.getpid()).encode()
    lock.release()
    assert path.read_bytes() == b""
    other = WriterLock(path)
    lock.release()
    assert path.read_bytes() == str(os.getpid()).encode(), "another lock holds it now"
    other.release()


def test_the_error_of_a_problem_names_file_key_and_the_number_of_others(tmp_path: Path) -> None:
    error = Problem("a", "b", "k", 3).error(tmp_path, 2)
    assert error.problem == f"{tmp_path / 'a'}, key k: b (and 2 more)" and isinstance(error, DamagedShard)
    error = Problem("a", "b").error(tmp_path)
    assert error.problem == f"{tmp_path / 'a'}: b" and not isinstance(error, DamagedShard)
    assert isinstance(Problem("a", "b", shard=0).error(tmp_path), DamagedShard)
    assert str(Problem("a", "b", "k")) == "a (k): b" and str(Problem("a", "b")) == "a: b"


def test_shards_of_a_zarr_store_must_have_the_same_arrays(memory: Path) -> None:
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
