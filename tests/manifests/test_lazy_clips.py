"""Large manifests: rows left in their file equal the rows written, and an index of keys finds each key."""

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
def lazy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest file whose rows are read when they are asked for."""
    monkeypatch.setattr("caeav.manifests.manifest.LAZY_BYTES", 1)
    path = tmp_path / "manifest.jsonl"
    write_manifest(MANIFEST, path)
    return path


def test_rows_left_in_the_file_equal_the_clips_written(lazy_file: Path, tmp_path: Path) -> None:
    manifest = read_manifest(lazy_file)
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
    assert (tmp_path / "again.jsonl").read_bytes() == lazy_file.read_bytes()
    with pytest.raises(IndexError):
        manifest.clips[4]


def test_lazy_clips_outlive_their_file_and_are_unpickled_while_it_is_unchanged(lazy_file: Path) -> None:
    clips = read_manifest(lazy_file).clips
    assert tuple(pickle.loads(pickle.dumps(clips))) == CLIPS
    sent = pickle.dumps(clips)
    write_manifest(Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS[:2]), lazy_file)
    assert tuple(clips) == CLIPS
    with pytest.raises(CaeavError, match="replaced"):
        tuple(pickle.loads(sent))


@pytest.mark.parametrize("known", [False, True])
def test_every_row_is_checked_before_it_is_used(lazy_file: Path, known: bool) -> None:
    """At once, or, for a file whose digest the seal names, when the row is asked for."""
    lazy_file.write_bytes(lazy_file.read_bytes().replace(b'"label": "dog"', b'"label": "cat"'))
    sha256 = hashlib.sha256(lazy_file.read_bytes()).hexdigest() if known else "0" * 64
    if not known:
        with pytest.raises(ManifestError, match=r"manifest.jsonl:4: an event's label is 'cat'"):
            read_manifest(lazy_file, sha256=sha256)
        return
    clips = read_manifest(lazy_file, sha256=sha256).clips
    assert clips[0] == CLIPS[0]
    with pytest.raises(ManifestError, match=r"manifest.jsonl:4: an event's label is 'cat'"):
        clips[2]


def test_the_video_of_a_row_is_its_id_or_its_file(lazy_file: Path) -> None:
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
    write_manifest(Manifest("toy", 10, 1.0, (), tuple(clips)), lazy_file)
    stored = read_manifest(lazy_file).clips
    assert isinstance(stored, LazyClips)
    rows = np.array([7, 0, 1, 2, 3, 4, 5, 6])
    wanted = [video_of(clips[row].media, clips[row].extra) for row in rows]
    assert [name.decode() for name in stored.videos(rows)] == wanted


def test_lost_rows_torn_lines_and_duplicate_keys_are_refused(lazy_file: Path) -> None:
    whole = lazy_file.read_bytes()
    lines = whole.splitlines(keepends=True)
    for bad, says in (
        (b"".join(lines[:-1]), "rows were lost"),
        (whole[:-30], "torn"),
        (whole.replace(b"last_one", b"plain"), "key is 'plain', it must be in no other row"),
    ):
        lazy_file.write_bytes(bad)
        with pytest.raises(ManifestError, match=says):
            read_manifest(lazy_file)


def test_rows_in_another_json_style_are_read_at_once(lazy_file: Path) -> None:
    lazy_file.write_bytes(lazy_file.read_bytes().replace(b'{"key": "plain", ', b'{ "key": "plain", '))
    manifest = read_manifest(lazy_file)
    assert isinstance(manifest.clips, tuple)
    assert manifest == MANIFEST


def test_an_update_without_changes_makes_no_clip_objects(
    lazy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, current = read_manifest(lazy_file), read_manifest(lazy_file)
    monkeypatch.setattr(LazyClips, "_clip", None)
    grown, growth = update_manifest(stored, current)
    assert not growth
    assert grown == stored


def test_many_clips_move_out_of_memory_and_stay_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS[:3], "/media", {"a": "b"})
    monkeypatch.setattr("caeav.manifests.manifest.LAZY_CLIPS", 4)
    assert manifest_file.with_lazy_clips(few) is few
    many = Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS, "/media", {"a": "b"})
    lazy = manifest_file.with_lazy_clips(many)
    assert isinstance(lazy.clips, LazyClips)
    assert lazy == many
    assert manifest_file.with_lazy_clips(lazy) is lazy
    with pytest.raises(ManifestError, match="in no other row"):
        manifest_file.with_lazy_clips(Manifest("toy", 10, 1.0, ("bell", "dog"), (*CLIPS, CLIPS[0])))


def test_rows_of_a_checked_manifest_are_not_checked_again(
    lazy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = read_manifest(lazy_file)
    fewer = Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS[1:])
    monkeypatch.setattr(LazyClips, "_clip", None)  # a row that is checked raises TypeError
    assert read_manifest(lazy_file, like=checked).keys == MANIFEST.keys
    with pytest.raises(TypeError):
        read_manifest(lazy_file, like=fewer)
    with pytest.raises(TypeError):  # a label may be none of these classes
        read_manifest(lazy_file, like=Manifest("toy", 10, 1.0, ("bell",), checked.clips))


def test_a_file_with_the_same_rows_is_recognised(lazy_file: Path, tmp_path: Path) -> None:
    manifest, other = read_manifest(lazy_file), tmp_path / "other.jsonl"
    write_manifest(Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS, "/media", {"a": "b"}), other)
    assert holds_rows(other, manifest)
    write_manifest(Manifest("toy", 10, 1.0, ("dog", "bell"), CLIPS), other)
    assert not holds_rows(other, manifest)
    write_manifest(Manifest("toy", 10, 1.0, ("bell", "dog"), CLIPS[::-1]), other)
    assert not holds_rows(other, manifest)


@given(
    st.lists(st.text("ab-_9", min_size=1, max_size=5), max_size=40), st.integers(-3, 44), st.integers(-3, 44)
)
def test_keys_behave_like_a_tuple(names: list[str], start: int, stop: int) -> None:
    keys = Keys.of(names)
    assert keys == tuple(names)
    assert tuple(names) == keys
    assert list(keys) == names
    assert keys[start:stop] == tuple(names[start:stop])
    assert list(keys[start:stop]) == names[start:stop]
    assert [keys[i] for i in range(len(keys))] == names
    assert Keys.joined([keys[:3], names[3:]]) == keys
    part = keys[start:stop]
    assert Keys(part.blob, part.ends) == part
    assert keys[::2] == tuple(names[::2])


@given(st.lists(st.text("abc", min_size=1, max_size=4), max_size=30))
def test_the_index_gives_positions_and_a_duplicate(names: list[str]) -> None:
    index = KeyIndex(Keys.of(names))
    for key in {*names, "d", "", "aé", "\ud800"}:
        assert index.get(key) == (names.index(key) if key in names else None)
    repeated = [i for i, name in enumerate(names) if name in names[:i]]
    assert index.duplicate() in (repeated or [None])


def test_keys_with_equal_hashes_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "hash_text", lambda *_: 7)
    monkeypatch.setattr(key_index, "hash_texts", lambda blob, ends, seed: np.full(len(ends), 7, np.uint64))
    index = KeyIndex(Keys.of(["a", "b", "c"]))
    assert [index.get(key) for key in "abcd"] == [0, 1, 2, None]
    assert index.duplicate() is None
    assert KeyIndex(Keys.of(["a", "b", "a"])).duplicate() == 2


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(0, 2**64 - 1))
def test_a_text_has_the_same_hash_alone_and_in_a_batch(texts: list[bytes], seed: int) -> None:
    ends = np.cumsum([len(text) for text in texts], dtype=np.uint32)
    hashes = hash_texts(b"".join(texts), ends, seed)
    assert hashes.tolist() == [hash_text(text, seed) for text in texts]


def test_hashing_in_chunks_gives_the_same_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"key {n}".encode() for n in range(9)]
    ends = np.cumsum([len(text) for text in texts]).astype(np.uint32)
    whole = hash_texts(b"".join(texts), ends, 3)
    monkeypatch.setattr(key_index, "_CHUNK_BYTES", 16)
    assert hash_texts(b"".join(texts), ends, 3).tolist() == whole.tolist()


def test_hashes_of_similar_keys_differ_and_depend_on_the_seed() -> None:
    keys = Keys.of(f"clip{i:06d}" for i in range(200_000))
    one, other = (hash_texts(keys.blob, keys.ends, seed) for seed in (1, 2))
    assert len(np.unique(one)) == len(np.unique(other)) == 200_000
    assert not (one == other).any()
    spread = np.bincount((one >> np.uint64(56)).astype(np.int64), minlength=256)
    assert spread.min() > 600 and spread.max() < 980  # 781 in each is even


def test_an_index_is_pickled_with_its_seed() -> None:
    index = pickle.loads(pickle.dumps(KeyIndex(Keys.of(["a", "bcdefghijkl"]))))
    assert [index.get(key) for key in ("bcdefghijkl", "a", "b")] == [1, 0, None]
