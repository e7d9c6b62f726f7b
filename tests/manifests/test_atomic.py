"""How files are written, step by step: what is written, synced, renamed and removed, and in which order."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from caeav.manifests.core import atomic
from caeav.manifests.core.atomic import (
    append_bytes,
    make_folder,
    publish_bytes,
    publish_text,
    publishing,
    remove_folder,
    staging,
    temp_path,
    unpublish,
)

STEPS = ("write_bytes", "sync_file", "sync_folder", "rename", "remove")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every step that changes the disk, with the name of the file or folder, as it happens."""
    made: list[tuple[str, str]] = []

    def record(name: str) -> None:
        real = getattr(atomic, name)

        def step(first: object, *rest: object) -> None:
            made.append((name, Path(str(getattr(first, "name", first))).name))
            real(first, *rest)

        monkeypatch.setattr(atomic, name, step)

    for name in STEPS:
        record(name)
    return made


def test_a_file_is_written_synced_renamed_and_its_folder_synced(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    publish_text(tmp_path / "a", "é")
    assert steps == [
        ("write_bytes", ".part-a"),
        ("sync_file", ".part-a"),
        ("rename", ".part-a"),
        ("sync_folder", tmp_path.name),
    ]
    assert (tmp_path / "a").read_bytes() == "é".encode()
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208


def test_both_kinds_of_sync_call_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the right file or folder, after what is buffered has been written."""
    seen: list[tuple[int, int]] = []

    def fsync(number: int) -> None:
        found = os.fstat(number)
        seen.append((found.st_ino, found.st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    publish_bytes(tmp_path / "a", b"12345")
    assert seen[0] == ((tmp_path / "a").stat().st_ino, 5)
    assert [number for number, _ in seen[1:]] == [tmp_path.stat().st_ino]


def test_several_files_are_all_on_the_disk_before_the_first_is_renamed(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    (tmp_path / "x").mkdir()
    with staging() as staged:
        for name in ("a", "b", "x/c"):
            staged.file(tmp_path / name).write(name.encode())
        staged.put()
    names = [name for name, _ in steps]
    assert names == ["write_bytes"] * 3 + ["sync_file"] * 3 + ["rename"] * 3 + ["sync_folder"] * 2
    assert [(tmp_path / name).read_text() for name in ("a", "b", "x/c")] == ["a", "b", "x/c"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("synced", [False, True])
def test_an_interrupted_write_keeps_the_old_file_and_leaves_no_temp_file(
    tmp_path: Path, error: type[BaseException], synced: bool
) -> None:
    publish_bytes(tmp_path / "a", b"old")
    with pytest.raises(error), staging() as staged:
        staged.file(tmp_path / "a").write(b"new")
        if synced:
            staged.sync()
        staged.file(tmp_path / "b").write(b"new")
        raise error
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_failed_sync_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_bytes(tmp_path / "a", b"old")

    def full(out: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "sync_file", full)
    with pytest.raises(OSError, match="No space"), publishing(tmp_path / "a") as out:
        out.write(b"new")
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_log_is_synced_with_each_line_and_its_folder_once(
    tmp_path: Path, steps: list[tuple[str, str]]
) -> None:
    append_bytes(tmp_path / "log", b"one\n")
    append_bytes(tmp_path / "log", b"two\n")
    assert steps == [
        ("write_bytes", "log"),
        ("sync_file", "log"),
        ("sync_folder", tmp_path.name),
        ("write_bytes", "log"),
        ("sync_file", "log"),
    ]
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_removal_and_a_new_folder_are_synced(tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    make_folder(tmp_path / "p" / "q")
    assert steps == [("sync_folder", tmp_path.name), ("sync_folder", "p")]
    make_folder(tmp_path / "p" / "q")
    assert len(steps) == 2
    (tmp_path / "p" / "q" / "f").touch()
    unpublish(tmp_path / "p" / "q" / "f")
    unpublish(tmp_path / "p" / "q" / "f")
    remove_folder(tmp_path / "p" / "q")
    assert steps[2:] == [("remove", "f"), ("sync_folder", "q"), ("sync_folder", "p")]
    assert not (tmp_path / "p" / "q").exists()


def test_a_folder_that_cannot_be_made_is_a_permission_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in /proc, where making a folder fails as if its parent were missing."""

    def refused(path: Path, *_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(PermissionError, match=r"no folder can be made here: '.*/new'"):
        atomic.make_folder(tmp_path / "new")


def test_folders_above_a_file_are_made(tmp_path: Path) -> None:
    publish_bytes(tmp_path / "p" / "q" / "a", b"1")
    assert (tmp_path / "p" / "q" / "a").read_bytes() == b"1"
    assert temp_path(tmp_path / "a").name.startswith(atomic.TEMP_PREFIX)
