"""Large manifests: rows that stay in their file are the rows that were written, and keys in a table are the keys."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caeav.manifests import key_index
from caeav.manifests import manifest as manifest_file
from caeav.manifests.clip import Clip, Event, Manifest, video_of
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.key_index import KeyIndex, Keys, hash_text, hash_texts
from caeav.manifests.lazy_clips import LazyClips
from caeav.manifests.manifest import holds_rows, manifest_digest, read_manifest, write_manifest
from caeav.manifests.rows import ManifestError
from caeav.manifests.update import update_manifest

CLIPS = (
    Clip("plain", "a/b.mp4", 0.0, 10.0, "train", (Event("bell", 1.0, 2.0),), {"id": "x"}),
    Clip("-begins", 'quoted " and \\ back.mp4', 1e-7, 1e22, "val"),
    Clip("k" * 200, "пример.mp4", 0.5, 3.0, "", (Event("dog", 0.0, 3.0, "audio"),), {"a": [None, "}\n{"]}),
    Clip("last_one", '"split": "train", "events": [.mp4', 0.0, 1.0, "test"),
)
MANIFEST = Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS)


@pytest.fixture
def filed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("caeav.manifests.manifest.LAZY_BYTES", 1)
    path = tmp_path / "manifest.jsonl"
    write_manifest(MANIFEST, path)
    return path


def test_rows_left_in_the_file_are_the_clips_that_were_written(filed: Path, tmp_path: Path) -> None:
    manifest = read_manifest(filed)
    assert isinstance(manifest.clips, LazyClips)
    assert tuple(manifest.clips) == CLIPS
    assert [manifest.clips[i] for i in (0, -1)] == [CLIPS[0], CLIPS[-1]]
    assert manifest.clips[1:3] == CLIPS[1:3]
    assert manifest == MANIFEST
    assert MANIFEST.clips == manifest.clips
    assert manifest.keys == tuple(clip.key for clip in CLIPS)
    assert manifest.split_counts() == MANIFEST.split_counts() == {"train": 1, "val": 1, "test": 1, "": 1}
    assert manifest_digest(manifest) == manifest_digest(MANIFEST)
    write_manifest(manifest, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == filed.read_bytes()
    with pytest.raises(IndexError):
        manifest.clips[4]


def test_they_outlive_the_file_and_travel_while_it_stays(filed: Path) -> None:
    clips = read_manifest(filed).clips
    assert tuple(pickle.loads(pickle.dumps(clips))) == CLIPS
    sent = pickle.dumps(clips)
    write_manifest(Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS[:2]), filed)
    assert tuple(clips) == CLIPS
    with pytest.raises(CaeavError, match="replaced"):
        tuple(pickle.loads(sent))


@pytest.mark.parametrize("known", [False, True])
def test_every_row_is_checked_before_it_is_used(filed: Path, known: bool) -> None:
    """At once, or, where the file is the one whose digest the seal names, when it is asked for."""
    filed.write_bytes(filed.read_bytes().replace(b'"label": "dog"', b'"label": "cat"'))
    sha256 = hashlib.sha256(filed.read_bytes()).hexdigest() if known else "0" * 64
    if not known:
        with pytest.raises(ManifestError, match=r"manifest.jsonl:4: an event's label is 'cat'"):
            read_manifest(filed, sha256=sha256)
        return
    clips = read_manifest(filed, sha256=sha256).clips
    assert clips[0] == CLIPS[0]
    with pytest.raises(ManifestError, match=r"manifest.jsonl:4: an event's label is 'cat'"):
        clips[2]


def test_the_video_of_a_row_is_its_official_id_or_its_file(filed: Path) -> None:
    extras = (
        {"id": "a-b_c"},
        {"id": "", "x": 1},
        {"x": {"extra": {"id": "inner"}}},
        {"x": {"extra": {"id": "inner"}}, "id": "outer"},
        {"id": 'quoted " \\ and é'},
        {"id": 7},
        {"id": ["list"]},
        {},
    )
    label = Event('"extra": {"id": "label', 0.0, 1.0)
    clips = [
        Clip(f"k{i}", '"extra": {"id": "é.mp4', 0.0, 9.0, "train", (label,), extra)
        for i, extra in enumerate(extras)
    ]
    write_manifest(Manifest("toy", 10, 1.0, (), tuple(clips)), filed)
    stored = read_manifest(filed).clips
    assert isinstance(stored, LazyClips)
    rows = np.array([7, 0, 1, 2, 3, 4, 5, 6])
    wanted = [video_of(clips[row].media, clips[row].extra) for row in rows]
    assert [name.decode() for name in stored.videos(rows)] == wanted


def test_lost_rows_torn_lines_and_keys_that_are_there_twice_are_refused(filed: Path) -> None:
    whole = filed.read_bytes()
    lines = whole.splitlines(keepends=True)
    for bad, says in (
        (b"".join(lines[:-1]), "rows were lost"),
        (whole[:-30], "torn"),
        (whole.replace(b"last_one", b"plain"), "key is 'plain', it must be in no other row"),
    ):
        filed.write_bytes(bad)
        with pytest.raises(ManifestError, match=says):
            read_manifest(filed)


def test_rows_written_otherwise_are_read_as_ever(filed: Path) -> None:
    filed.write_bytes(filed.read_bytes().replace(b'{"key": "plain", ', b'{ "key": "plain", '))
    manifest = read_manifest(filed)
    assert isinstance(manifest.clips, tuple)
    assert manifest == MANIFEST


def test_growing_by_nothing_makes_no_clip(filed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, current = read_manifest(filed), read_manifest(filed)
    monkeypatch.setattr(LazyClips, "_clip", None)
    grown, growth = update_manifest(stored, current)
    assert not growth
    assert grown == stored


def test_many_clips_are_put_out_of_the_memory_and_stay_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS[:3], "/media", {"a": "b"})
    assert manifest_file.with_lazy_clips(few) is few
    monkeypatch.setattr("caeav.manifests.manifest.LAZY_CLIPS", 4)
    many = Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS, "/media", {"a": "b"})
    away = manifest_file.with_lazy_clips(many)
    assert isinstance(away.clips, LazyClips)
    assert away == many
    assert manifest_file.with_lazy_clips(away) is away
    with pytest.raises(ManifestError, match="in no other row"):
        manifest_file.with_lazy_clips(Manifest("toy", 10, 1.0, ("bell", "dog"), (*CLIPS, CLIPS[0])))


def test_rows_that_another_manifest_has_are_not_checked_again(
    filed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = read_manifest(filed)
    fewer = Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS[1:])
    monkeypatch.setattr(LazyClips, "_clip", None)
    assert read_manifest(filed, like=checked).keys == MANIFEST.keys
    with pytest.raises(TypeError):
        read_manifest(filed, like=fewer)
    with pytest.raises(TypeError):  # a label may be none of these classes
        read_manifest(filed, like=Manifest("toy", 10, 1.0, ("bell",), checked.clips))


def test_a_file_with_the_same_rows_is_known_without_reading_them(filed: Path, tmp_path: Path) -> None:
    manifest, other = read_manifest(filed), tmp_path / "other.jsonl"
    write_manifest(Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS, "/media", {"a": "b"}), other)
    assert holds_rows(other, manifest)
    write_manifest(Manifest("toy", 10, 1.0, ("dog", "bell"), CLIPS), other)
    assert not holds_rows(other, manifest)
    write_manifest(Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS[::-1]), other)
    assert not holds_rows(other, manifest)


@given(
    st.lists(st.text("ab-_9", min_size=1, max_size=5), max_size=40), st.integers(-3, 44), st.integers(-3, 44)
)
def test_keys_are_a_sequence_like_the_tuple(given: list[str], start: int, stop: int) -> None:
    keys = Keys.of(given)
    assert keys == tuple(given)
    assert tuple(given) == keys
    assert list(keys) == given
    assert keys[start:stop] == tuple(given[start:stop])
    assert list(keys[start:stop]) == given[start:stop]
    assert [keys[i] for i in range(len(keys))] == given
    assert Keys.joined([keys[:3], given[3:]]) == keys
    part = keys[start:stop]
    assert Keys(part.blob, part.ends) == part
    assert keys[::2] == tuple(given[::2])


@given(st.lists(st.text("abc", min_size=1, max_size=4), max_size=30))
def test_places_of_keys_and_the_first_that_is_there_twice(given: list[str]) -> None:
    places = KeyIndex(Keys.of(given))
    for key in {*given, "d", "", "aé"}:
        assert places.get(key) == (given.index(key) if key in given else None)
    assert (places.duplicate() is None) == (len(set(given)) == len(given))


def test_keys_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "hash_text", lambda *_: 7)
    monkeypatch.setattr(key_index, "hash_texts", lambda blob, ends, seed: np.full(len(ends), 7, np.uint64))
    places = KeyIndex(Keys.of(["a", "b", "c"]))
    assert [places.get(key) for key in "abcd"] == [0, 1, 2, None]
    assert places.duplicate() is None
    assert KeyIndex(Keys.of(["a", "b", "a"])).duplicate() == 2


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(0, 2**64 - 1))
def test_a_text_has_one_hash_alone_or_among_others(texts: list[bytes], seed: int) -> None:
    ends = np.cumsum([len(text) for text in texts], dtype=np.uint32)
    hashes = hash_texts(b"".join(texts), ends, seed)
    assert hashes.tolist() == [hash_text(text, seed) for text in texts]


def test_many_texts_are_hashed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"key {n}".encode() for n in range(9)]
    ends = np.cumsum([len(text) for text in texts]).astype(np.uint32)
    whole = hash_texts(b"".join(texts), ends, 3)
    monkeypatch.setattr(key_index, "_CHUNK_BYTES", 16)
    assert hash_texts(b"".join(texts), ends, 3).tolist() == whole.tolist()


def test_hashes_of_many_alike_keys_differ_and_depend_on_the_seed() -> None:
    keys = Keys.of(f"clip{i:06d}" for i in range(200_000))
    one, other = (hash_texts(keys.blob, keys.ends, seed) for seed in (1, 2))
    assert len(np.unique(one)) == len(np.unique(other)) == 200_000
    assert not (one == other).any()
    spread = np.bincount((one >> np.uint64(56)).astype(np.int64), minlength=256)
    assert spread.min() > 600 and spread.max() < 980  # 781 in each is even


def test_places_travel_with_their_seed() -> None:
    places = pickle.loads(pickle.dumps(KeyIndex(Keys.of(["a", "bcdefghijkl"]))))
    assert [places.get(key) for key in ("bcdefghijkl", "a", "b")] == [1, 0, None]
