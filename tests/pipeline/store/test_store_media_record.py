"""The record of a store's media: which facts are taken, what digests cover, which records are trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from caeav.pipeline.store import media_record
from caeav.pipeline.store.media_record import (
    END_BYTES,
    NO_DIGEST,
    UNSURE,
    Facts,
    MediaChange,
    carry_record,
    digests,
    look,
    read_record,
    read_records,
    record_path,
    remove_record,
    whole_digest,
    write_record,
)

A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))
SEEN = {"a.mp4": Facts(5, 7, A, B), "b\udcff.mp4": Facts(1 << 40, -1, C), "ü": Facts(0, UNSURE, NO_DIGEST, A)}


def single_file(path: str) -> Sequence[str]:
    return [path]


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write a file with an old modification time."""

    def write(name: str, data: bytes, when_s: float = 1_000_000_000) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        os.utime(path, (when_s, when_s))
        return path

    return write


def test_a_media_record_is_read_back_and_rewritten_only_when_it_changes(tmp_path: Path) -> None:
    store = tmp_path / "set" / "tokens-x"
    assert read_record(store) is None
    for seen in ({}, SEEN, {"one": Facts(1, 2, A)}):
        write_record(store, seen)
        assert read_record(store) == seen and list(read_record(store) or {}) == list(seen)
    assert record_path(store) == tmp_path / "set" / "media.tokens-x"
    before = record_path(store).stat().st_ino
    write_record(store, {"one": Facts(1, 2, A)})
    assert record_path(store).stat().st_ino == before
    remove_record(store)
    remove_record(store)
    assert read_record(store) is None


def test_a_damaged_media_record_is_ignored(tmp_path: Path) -> None:
    store = tmp_path / "tokens-x"
    write_record(store, SEEN)
    data = record_path(store).read_bytes()
    head, _, body = data.partition(b"\n")
    facts = json.loads(head)
    others = [
        data[:-1],
        data + b"x",
        data[:-1] + bytes([data[-1] ^ 1]),
        b"",
        b"{}\n",
        b"[]\n" + body,
        *(json.dumps({**facts, key: other}).encode() + b"\n" + body
          for key, other in (("version", 2), ("format", "x"), ("files", 2), ("names", 3), ("sha256", "0"))),
    ]  # fmt: skip
    for other in others:
        record_path(store).write_bytes(other)
        assert read_record(store) is None
    record_path(store).write_bytes(data)
    assert read_record(store) == SEEN


def test_joined_media_records_mark_contradictions_as_unsure(tmp_path: Path) -> None:
    one, two, made = (tmp_path / name for name in ("tokens-1", "tokens-2", "tokens-3"))
    carry_record([one, two], made)
    assert not record_path(made).exists()
    write_record(
        one,
        {
            "same": Facts(1, 2, A),
            "digest": Facts(1, 2, A),
            "whole": Facts(1, 2, A, B),
            "half": Facts(1, 2, A, B),
        },
    )
    write_record(two, {"same": Facts(1, 9, A), "digest": Facts(4, 2, B), "whole": Facts(5, 2, A, C),
                       "half": Facts(1, 2, A),
                       "new": Facts(6, 6, C)})  # fmt: skip
    carry_record([one, two], made)
    assert read_record(made) == {
        "same": Facts(1, 2, A),
        "digest": Facts(4, UNSURE, NO_DIGEST),
        "whole": Facts(5, UNSURE, NO_DIGEST),
        "half": Facts(1, 2, A, B),
        "new": Facts(6, 6, C),
    }
    remove_record(made)
    write_record(tmp_path / "tokens-0", {"first": Facts(7, 7, C)})
    assert {*read_records(tmp_path)} == {"first", "same", "digest", "whole", "half", "new"}
    assert read_records(tmp_path)["same"].stamp == 9 and read_records(tmp_path / "gone") == {}


def test_size_and_time_are_recorded_and_recently_changed_files_are_unsure(
    tmp_path: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("old", b"12345")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(media_record.time, "time", lambda: 2_000_000_000.0)
    put("young", b"1", 1_999_999_998)
    put("ripe", b"1", 1_999_999_996)
    seen = look(tmp_path, ["old", "young", "folder", "gone", "ripe", "a\0b"], single_file)
    assert seen == {
        "old": Facts(5, 1_000_000_000 * 10**9),
        "young": Facts(1, UNSURE),
        "folder": None,
        "gone": None,
        "ripe": Facts(1, 1_999_999_996 * 10**9),
        "a\0b": None,
    }
    put("second", b"123")
    both = lambda path: [path, str(tmp_path / "second")]  # noqa: E731
    (first,) = look(tmp_path, ["old"], both).values()
    assert first is not None and first.size == 8 and first.stamp not in (UNSURE, 1_000_000_000 * 10**9)
    assert look(tmp_path, ["old"], both)["old"] == first
    put("second", b"123", 1_000_000_001)
    (later,) = look(tmp_path, ["old"], both).values()
    assert later is not None and later.size == 8 and later.stamp != first.stamp
    put("second", b"123", 1_999_999_999)
    assert look(tmp_path, ["old"], both)["old"] == Facts(8, UNSURE), "the newest file counts"
    (tmp_path / "second").unlink()
    assert look(tmp_path, ["old"], both)["old"] is None


def test_a_digest_covers_length_beginning_and_end(tmp_path: Path, put: Callable[..., Path]) -> None:
    def of(data: bytes) -> bytes:
        put("x", data)
        (taken,) = digests(tmp_path, ["x"], single_file).values()
        return taken

    for size in (1, END_BYTES, END_BYTES + 10, 3 * END_BYTES):
        data = bytearray(size)
        plain = of(bytes(data))
        assert len(plain) == 16 and of(bytes(size + 1)) != plain
        for at in {0, min(size, END_BYTES) - 1, max(0, size - END_BYTES), size - 1}:
            data[at] ^= 1
            assert of(bytes(data)) != plain, f"byte {at} of {size}"
            data[at] ^= 1
    data[END_BYTES + 5] ^= 1
    assert of(bytes(data)) == plain, "the middle of a long file is not read"
    assert digests(tmp_path, ["gone", "x"], single_file) == {"gone": b"", "x": plain}


def test_whole_digests_cover_every_byte_of_files_up_to_a_size(
    tmp_path: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = lambda path: [path, path + "2"]  # noqa: E731
    taken = set()
    for one, two in ((b"ab", b"c"), (b"a", b"bc"), (b"ab", b"d"), (b"abc", b"")):
        put("x", one)
        put("x2", two)
        taken.add(whole_digest(tmp_path, "x", both))
    assert len(taken) == 4 and all(len(digest) == 16 for digest in taken)
    middle = bytearray(3 * END_BYTES)
    put("x", bytes(middle))
    plain = whole_digest(tmp_path, "x", single_file)
    middle[END_BYTES + 5] ^= 1
    put("x", bytes(middle))
    assert whole_digest(tmp_path, "x", single_file) not in (b"", plain)
    monkeypatch.setattr(media_record, "WHOLE_BYTES", 3 * END_BYTES)
    assert whole_digest(tmp_path, "x", single_file) != b""
    monkeypatch.setattr(media_record, "WHOLE_BYTES", 3 * END_BYTES - 1)
    assert whole_digest(tmp_path, "x", single_file) == b"" == whole_digest(tmp_path, "gone", single_file)


def test_files_are_examined_in_parallel_and_reported_in_order(
    tmp_path: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n}" for n in range(7)]
    for n, name in enumerate(names):
        put(name, b"x" * n)
    plain = look(tmp_path, names, single_file)
    monkeypatch.setattr(media_record, "AT_ONCE", 3)
    assert look(tmp_path, names, single_file) == plain
    assert [facts.size for facts in plain.values() if facts] == list(range(7))
    assert str(MediaChange("s", "k", "m", "gone", "m is no file")) == "gone k: m is no file"
