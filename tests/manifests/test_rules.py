"""The limits of what a row may hold, and what identifies a manifest, in small files and large ones."""

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
from caeav.manifests.clip import Clip, Event, Finding, Manifest
from caeav.manifests.core.atomic import publish_text
from caeav.manifests.key_index import Keys
from caeav.manifests.lazy_clips import LazyClips, map_file
from caeav.manifests.manifest import (
    holds_rows,
    manifest_digest,
    read_manifest,
    source_digest,
    write_manifest,
)
from caeav.manifests.rows import ManifestError, check_clip, clip_from_row, clip_to_row, is_inside, number

FOUND = Finding("zero_length_event", "b", "no length")
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
def test_rows_within_the_limits_are_accepted_and_read_back(change: dict[str, Any]) -> None:
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
def test_rows_beyond_the_limits_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
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
def test_only_finite_numbers_are_numbers(value: object) -> None:
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


def test_paths_that_stay_inside_the_media_folder() -> None:
    assert all(map(is_inside, ("a.mp4", "a/b-c.d/e.mp4", "a b", "...", "a/..b", "-x")))
    assert not any(map(is_inside, ("..", "a/..", "../a", "/", "", ".", "a/../b", "a\0b")))


@pytest.mark.parametrize("large", [False, True])
def test_a_duplicate_key_is_named_with_its_row(
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


def test_digests_depend_on_everything_but_the_place_of_the_media() -> None:
    digest, source = manifest_digest(MANIFEST), source_digest(MANIFEST)
    for change, changes_source in (
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
        assert (source_digest(other) != source) is changes_source, change
    moved = replace(MANIFEST, media_root="/elsewhere", sources={"a": "b"}, findings=(FOUND,))
    assert (manifest_digest(moved), source_digest(moved)) == (digest, source)


@pytest.fixture
def lazy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest file whose rows are read when they are asked for."""
    monkeypatch.setattr(manifest_file, "LAZY_BYTES", 1)
    path = tmp_path / "m.jsonl"
    write_manifest(MANIFEST, path)
    return path


def test_unchecked_rows_are_accepted_only_from_a_known_file(lazy_file: Path) -> None:
    """A row that breaks a rule is noticed at once unless the caller knows the digest of that very file."""
    like = read_manifest(lazy_file)
    publish_text(lazy_file, lazy_file.read_text().replace('"label": "cat"', '"label": "cow"'))
    with pytest.raises(ManifestError, match="'cow'"):
        read_manifest(lazy_file)
    with pytest.raises(ManifestError, match="'cow'"):
        read_manifest(lazy_file, sha256="0" * 64)
    with pytest.raises(ManifestError, match="'cow'"):
        read_manifest(lazy_file, like=like)
    known = read_manifest(lazy_file, sha256=hashlib.sha256(lazy_file.read_bytes()).hexdigest())
    with pytest.raises(ManifestError, match=rf"{lazy_file}:2: .*'cow'"):
        list(known.clips)
    with pytest.raises(ManifestError, match=rf"{lazy_file}:3: .*'cow'"):
        known.clips[1]


def test_the_same_rows_under_other_classes_are_checked(lazy_file: Path) -> None:
    like = read_manifest(lazy_file)
    head, rest = lazy_file.read_text().split("\n", 1)
    publish_text(lazy_file, "\n".join([json.dumps(json.loads(head) | {"classes": ["dog"]}), rest]))
    with pytest.raises(ManifestError, match="'cat'"):
        read_manifest(lazy_file, like=like)


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
    change: dict[str, Any], same: bool, lazy_file: Path
) -> None:
    held = read_manifest(lazy_file)
    assert isinstance(held.clips, LazyClips)
    head, rest = lazy_file.read_text().split("\n", 1)
    other = lazy_file.with_name("other.jsonl")
    other.write_text("\n".join([json.dumps(json.loads(head) | change), rest]))
    assert holds_rows(other, held) is same
    assert not holds_rows(other, MANIFEST)


def test_a_torn_large_file_is_refused_at_its_line(lazy_file: Path) -> None:
    text = lazy_file.read_text()
    lazy_file.write_text(text[:-3])
    with pytest.raises(ManifestError, match=rf"{lazy_file}:3: not a JSON row .*the line is torn"):
        read_manifest(lazy_file)


def test_a_file_replaced_while_in_use_is_noticed(lazy_file: Path) -> None:
    held = read_manifest(lazy_file).clips
    assert isinstance(held, LazyClips)
    held._data = None  # as in another process
    lazy_file.write_text(lazy_file.read_text() + "\n")
    with pytest.raises(Exception, match="was replaced while it was in use"):
        held[0]
    with pytest.raises(OSError, match="not a plain file"):
        map_file(lazy_file.parent)
    with pytest.raises(FileNotFoundError):
        map_file(lazy_file.parent / "gone")


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
