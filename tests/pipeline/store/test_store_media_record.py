"""The record of a store's media alone: what is looked at, what is digested, what is believed when read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from caeav.pipeline.extract.identity import listed
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


def alone(path: str) -> Sequence[str]:
    return [path]


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Write a file with a time long ago."""

    def write(name: str, data: bytes, when_s: float = 1_000_000_000) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        os.utime(path, (when_s, when_s))
        return path

    return write


def test_a_record_comes_back_and_is_written_once(tmp_path: Path) -> None:
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


def test_a_record_that_is_not_as_written_is_not_believed(tmp_path: Path) -> None:
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


def test_of_several_stores_what_agrees_is_carried_and_what_does_not_is_doubted(tmp_path: Path) -> None:
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


def test_what_is_looked_at_is_size_and_time_and_a_young_file_is_doubtful(
    tmp_path: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("old", b"12345")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(media_record.time, "time", lambda: 2_000_000_000.0)
    put("young", b"1", 1_999_999_998)
    put("ripe", b"1", 1_999_999_996)
    seen = look(tmp_path, ["old", "young", "folder", "gone", "ripe", "a\0b"], alone)
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
    assert look(tmp_path, ["old"], both)["old"] == Facts(8, UNSURE), "the newest of them counts"
    (tmp_path / "second").unlink()
    assert look(tmp_path, ["old"], both)["old"] is None


def test_a_digest_is_of_length_beginning_and_end(tmp_path: Path, put: Callable[..., Path]) -> None:
    def of(data: bytes) -> bytes:
        put("x", data)
        (taken,) = digests(tmp_path, ["x"], alone).values()
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
    assert digests(tmp_path, ["gone", "x"], alone) == {"gone": b"", "x": plain}


def test_the_digest_of_everything_is_of_each_file_up_to_a_size(
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
    plain = whole_digest(tmp_path, "x", alone)
    middle[END_BYTES + 5] ^= 1
    put("x", bytes(middle))
    assert whole_digest(tmp_path, "x", alone) not in (b"", plain)
    monkeypatch.setattr(media_record, "WHOLE_BYTES", 3 * END_BYTES)
    assert whole_digest(tmp_path, "x", alone) != b""
    monkeypatch.setattr(media_record, "WHOLE_BYTES", 3 * END_BYTES - 1)
    assert whole_digest(tmp_path, "x", alone) == b"" == whole_digest(tmp_path, "gone", alone)


def test_many_files_are_looked_at_by_threads_in_their_order(
    tmp_path: Path, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n}" for n in range(7)]
    for n, name in enumerate(names):
        put(name, b"x" * n)
    plain = look(tmp_path, names, alone)
    monkeypatch.setattr(media_record, "AT_ONCE", 3)
    assert look(tmp_path, names, alone) == plain
    assert [facts.size for facts in plain.values() if facts] == list(range(7))
    assert str(MediaChange("s", "k", "m", "gone", "m is no file")) == "gone k: m is no file"


def test_of_many_changes_the_first_are_listed() -> None:
    changes = [MediaChange(f"s{n % 2}", f"k{n // 2}", "m", "gone", "m") for n in range(42)]
    lines = listed(changes)
    assert lines[:2] == ["gone k0: m", "gone k1: m"] and len(lines) == 21
    assert lines[-1] == "and 1 more; --json lists all"
    assert listed(changes[:40])[-1] == "gone k19: m" and listed([]) == []
