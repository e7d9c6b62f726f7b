"""What a row and a header may say, at the very bounds, and what identifies a manifest; files small and large alike."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.manifests import key_index
from caeav.manifests import manifest as manifest_file
from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.atomic import publish_text
from caeav.manifests.key_index import KeyIndex, Keys
from caeav.manifests.lazy_clips import LazyClips, map_file
from caeav.manifests.manifest import (
    holds_rows,
    manifest_digest,
    read_manifest,
    source_digest,
    write_manifest,
)
from caeav.manifests.rows import ManifestError, check_clip, clip_from_row, clip_to_row, is_inside, number

CLIP = Clip("a", "d/a.mp4", 1.5, 10.0, "train", (Event("dog", 0.0, 10.0), Event("cat", 2.0, 2.0, "audio")))
MANIFEST = Manifest("mine", 10, 1.0, ("dog", "cat"), (CLIP, replace(CLIP, key="b", split="")))


@pytest.mark.parametrize(
    "change",
    [
        {"start_s": 0.0},
        {"seconds": 0.001, "events": ()},
        {"split": ""},
        {"split": "val"},
        {"key": "k" * 200},
        {"media": "a b/é.mp4"},
        {"extra": {"a": [1, None, "x"]}},
        {"events": (Event("dog", 10.0, 10.0), Event("dog", 0.0, 0.0, "visual"))},
    ],
)
def test_what_a_row_may_be(change: dict[str, Any]) -> None:
    clip = replace(CLIP, **change)
    check_clip(clip, ("dog", "cat"), "here")
    row = json.loads(json.dumps(clip_to_row(clip)))
    assert clip_from_row(row, ("dog", "cat"), "here") == clip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"start_s": -0.001}, "start_s is -0.001, it must be 0 or more"),
        ({"start_s": float("nan")}, "start_s is nan"),
        ({"start_s": float("inf")}, "start_s is inf"),
        ({"seconds": 0.0}, "seconds is 0.0, it must be more than 0"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"split": "Train"}, "split is 'Train', it must be one of train, val, test, or empty"),
        ({"key": "k" * 201}, "key is"),
        ({"key": ""}, "key is ''"),
        ({"key": "a\n"}, "key is"),
        ({"media": "../a.mp4"}, "media is '../a.mp4'"),
        ({"media": "d/../a.mp4"}, "without '..'"),
        ({"media": "/a.mp4"}, "media is '/a.mp4'"),
        ({"media": ""}, "media is ''"),
        ({"media": "a\0"}, "media is"),
        ({"media": "\ud800"}, "media is"),
        ({"events": (Event("", 0.0, 1.0),)}, "an event's label is ''"),
        ({"events": (Event("cow", 0.0, 1.0),)}, "it must be one of the 2 classes"),
        ({"events": (Event("dog", 0.0, 1.0, "smell"),)}, "an event's modality is 'smell'"),
        ({"events": (Event("dog", -0.1, 1.0),)}, "range is"),
        ({"events": (Event("dog", 2.0, 1.0),)}, "range is"),
        ({"events": (Event("dog", 0.0, 10.001),)}, "start <= end within 0 to 10 s"),
        ({"extra": {"a": float("nan")}}, "extra is"),
        ({"extra": {"a": {1}}}, "extra is"),
    ],
)
def test_what_a_row_may_not_be(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    clip = replace(CLIP, **change)
    with pytest.raises(ManifestError) as refused:
        check_clip(clip, ("dog", "cat"), "here")
    assert said in str(refused.value) and str(refused.value).startswith("here: ")
    with pytest.raises(ManifestError):
        write_manifest(replace(MANIFEST, clips=(clip,)), tmp_path / "m.jsonl")
    assert not os.listdir(tmp_path)  # noqa: PTH208


def test_an_event_needs_a_label_also_where_there_are_no_classes() -> None:
    with pytest.raises(ManifestError, match="label is ''"):
        check_clip(replace(CLIP, events=(Event("", 0.0, 1.0),)), (), "here")
    check_clip(replace(CLIP, events=(Event("any", 0.0, 1.0),)), (), "here")


@pytest.mark.parametrize(
    "value", [True, False, "1", None, [1], float("nan"), float("inf"), -float("inf"), 10**400]
)
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(ManifestError, match=r"w: x is .*, it must be a (finite )?number"):
        number(value, "x", "w")
    assert number(3, "x", "w") == 3.0 and type(number(3, "x", "w")) is float


@pytest.mark.parametrize("end_s", [float("inf"), float("nan"), "1", True])
def test_the_time_of_an_event_is_a_finite_number(end_s: object) -> None:
    row = clip_to_row(CLIP)
    row["events"] = [{"label": "dog", "start_s": 0.0, "end_s": end_s}]
    with pytest.raises(ManifestError, match="end_s is"):
        clip_from_row(row, ("dog",), "here")


def test_a_row_has_floats_whatever_the_clip_had() -> None:
    row = clip_to_row(replace(CLIP, start_s=1, seconds=10, events=(Event("dog", 0, 1),)))
    numbers = [row["start_s"], row["seconds"], row["events"][0]["start_s"], row["events"][0]["end_s"]]
    assert [type(x) for x in numbers] == [float] * 4
    assert "modality" not in row["events"][0]


def test_paths_inside() -> None:
    assert all(map(is_inside, ("a.mp4", "a/b-c.d/e.mp4", "a b", "...", "a/..b", "-x")))
    assert not any(map(is_inside, ("..", "a/..", "../a", "/", "", ".", "a/../b", "a\0b")))


HEADERS = [
    ({"segments": 0}, "segments is 0"),
    ({"segments": True}, "segments is True"),
    ({"segment_s": 0.0}, "segment_s is 0.0, it must be more than 0"),
    ({"segment_s": -1.0}, "segment_s is -1.0"),
    ({"classes": ["dog", "dog", "cat"]}, "different, non-empty names"),
    ({"classes": ["dog", "", "cat"]}, "different, non-empty names"),
    ({"dataset": "a/b"}, "dataset is 'a/b'"),
    ({"version": 0}, "manifest version is 0, this caeav reads 1"),
    ({"version": 2}, "manifest version is 2, this caeav reads 1"),
    ({"format": "other"}, "this is not a manifest"),
    ({"clips": 3}, "rows were lost or added"),
    ({"splits": {"train": 2}}, "rows were lost or added"),
]


@pytest.mark.parametrize(("change", "said"), HEADERS)
def test_a_header_that_is_wrong(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(MANIFEST, path)
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(head) | change), *rows, ""]))
    with pytest.raises(ManifestError) as refused:
        read_manifest(path)
    assert said in str(refused.value)


@pytest.mark.parametrize("large", [False, True])
def test_a_key_that_is_there_twice_is_named_with_its_row(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_file, "LAZY_BYTES", 1 if large else 1 << 30)
    path = tmp_path / "m.jsonl"
    write_manifest(MANIFEST, path)
    path.write_text(path.read_text().replace('"key": "b"', '"key": "a"'))
    with pytest.raises(ManifestError, match=r"clip row 2: key is 'a', it must be in no other row"):
        read_manifest(path)
    with pytest.raises(ManifestError, match="clip row 2"):
        write_manifest(replace(MANIFEST, clips=(CLIP, CLIP)), tmp_path / "n.jsonl")


def test_digests_see_everything_but_the_place() -> None:
    digest, source = manifest_digest(MANIFEST), source_digest(MANIFEST)
    for change, sees in (
        ({"dataset": "other"}, False),
        ({"segments": 5}, False),
        ({"segment_s": 2.0}, False),
        ({"classes": ("cat", "dog")}, False),
        ({"clips": MANIFEST.clips[::-1]}, True),
        ({"clips": (replace(CLIP, start_s=1.25), MANIFEST.clips[1])}, True),
        ({"clips": (replace(CLIP, seconds=11.0), MANIFEST.clips[1])}, True),
        ({"clips": (replace(CLIP, media="x"), MANIFEST.clips[1])}, True),
        ({"clips": (replace(CLIP, key="x"), MANIFEST.clips[1])}, True),
        ({"clips": (replace(CLIP, split="val"), MANIFEST.clips[1])}, False),
        ({"clips": (replace(CLIP, events=()), MANIFEST.clips[1])}, False),
        ({"clips": (replace(CLIP, extra={"id": "x"}), MANIFEST.clips[1])}, False),
    ):
        other = replace(MANIFEST, **change)  # type: ignore[arg-type]
        assert manifest_digest(other) != digest, change
        assert (source_digest(other) != source) is sees, change
    moved = replace(MANIFEST, media_root="/elsewhere", sources={"a": "b"})
    assert (manifest_digest(moved), source_digest(moved)) == (digest, source)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose rows stay in it."""
    monkeypatch.setattr(manifest_file, "LAZY_BYTES", 1)
    path = tmp_path / "m.jsonl"
    write_manifest(MANIFEST, path)
    return path


def test_rows_are_believed_only_where_they_are_just_those(large: Path) -> None:
    """A row that breaks a rule is noticed unless the caller knows the very file, or another of the same rows."""
    like = read_manifest(large)
    publish_text(large, large.read_text().replace('"label": "cat"', '"label": "cow"'))
    with pytest.raises(ManifestError, match="'cow'"):
        read_manifest(large)
    with pytest.raises(ManifestError, match="'cow'"):
        read_manifest(large, sha256="0" * 64)
    with pytest.raises(ManifestError, match="'cow'"):
        read_manifest(large, like=like)
    known = read_manifest(large, sha256=hashlib.sha256(large.read_bytes()).hexdigest())
    with pytest.raises(ManifestError, match=rf"{large}:2: .*'cow'"):
        list(known.clips)
    with pytest.raises(ManifestError, match=rf"{large}:3: .*'cow'"):
        known.clips[1]


def test_the_same_rows_under_other_classes_are_checked(large: Path) -> None:
    like = read_manifest(large)
    head, rest = large.read_text().split("\n", 1)
    publish_text(large, "\n".join([json.dumps(json.loads(head) | {"classes": ["dog"]}), rest]))
    with pytest.raises(ManifestError, match="'cat'"):
        read_manifest(large, like=like)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"media_root": "x", "sources": {"a": "b"}}, True),
        ({"segments": 5}, False),
        ({"segment_s": 2.0}, False),
        ({"dataset": "y"}, False),
        ({"classes": ["dog", "cat", "cow"]}, False),
    ],
)
def test_a_file_of_the_same_rows_is_another_manifest_by_its_header(
    change: dict[str, Any], same: bool, large: Path
) -> None:
    held = read_manifest(large)
    assert isinstance(held.clips, LazyClips)
    head, rest = large.read_text().split("\n", 1)
    other = large.with_name("other.jsonl")
    other.write_text("\n".join([json.dumps(json.loads(head) | change), rest]))
    assert holds_rows(other, held) is same
    assert not holds_rows(other, MANIFEST)


def test_a_torn_large_file_is_refused_at_its_line(large: Path) -> None:
    text = large.read_text()
    large.write_text(text[:-3])
    with pytest.raises(ManifestError, match=rf"{large}:3: not a JSON row .*the line is torn"):
        read_manifest(large)


def test_a_file_replaced_while_it_is_used_is_noticed(large: Path) -> None:
    held = read_manifest(large).clips
    assert isinstance(held, LazyClips)
    held._data = None  # as after a journey to another process
    large.write_text(large.read_text() + "\n")
    with pytest.raises(Exception, match="was replaced while it was in use"):
        held[0]
    with pytest.raises(OSError, match="not a plain file"):
        map_file(large.parent)
    with pytest.raises(FileNotFoundError):
        map_file(large.parent / "gone")


def test_a_few_clips_stay_in_memory_and_many_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_file, "LAZY_CLIPS", 2)
    assert (
        manifest_file.with_lazy_clips(replace(MANIFEST, clips=MANIFEST.clips[:1])).clips == MANIFEST.clips[:1]
    )
    out = manifest_file.with_lazy_clips(MANIFEST)
    assert isinstance(out.clips, LazyClips) and out == MANIFEST
    with pytest.raises(ManifestError, match="must be in no other row"):
        manifest_file.with_lazy_clips(replace(MANIFEST, clips=(CLIP, CLIP)))


def test_slices_of_keys_are_keys_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "_CHUNK_KEYS", 2)
    names = ["a", "bb", "", "dddd", "e", "ff", "g"]
    keys = Keys.of(names)
    assert list(keys) == names and keys == names and keys == tuple(names)
    for start, stop, step in ((0, 7, 1), (2, 5, 1), (3, 7, 1), (1, 7, 2), (6, 0, -2), (4, 4, 1)):
        part, wanted = keys[start:stop:step], names[start:stop:step]
        assert list(part) == wanted and len(part) == len(wanted)
        assert part.sizes.tolist() == [len(name) for name in wanted]
        assert part.ends.tolist() == np.cumsum([len(name) for name in wanted]).tolist()
        assert part.blob == "".join(wanted).encode()
        assert Keys.joined([part, ["x"]]) == [*wanted, "x"]
        assert part == Keys.of(wanted) and hash(part) == hash(tuple(wanted))
    assert keys != names[:-1] and keys != [*names, "x"] and keys != [*names[:-1], "h"]
    assert keys[2:4] != keys[3:5] and keys != 3
    assert [keys[-1], keys[0]] == ["g", "a"]
    with pytest.raises(IndexError):
        keys[7]
    assert Keys.joined([]) == ()


def test_the_first_key_that_is_there_before() -> None:
    assert KeyIndex(Keys.of(["a", "b", "c"])).duplicate() is None
    assert KeyIndex(Keys.of(["a", "b", "a", "c"])).duplicate() == 2
    places = KeyIndex(Keys.of(["a", "b", "a"]))
    assert [places.get(key) for key in ("a", "b", "c", "\ud800")] == [0, 1, None, None]
