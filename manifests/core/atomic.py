"""The one way a file comes into being: temp file beside it, write, fsync, rename, fsync of the folder.

A reader sees the old file, the new file or none, never a part of one, also after a power cut. Everything
that must survive an interruption is written through here: every write, sync, rename, cut and removal is one of the
functions `write_bytes`, `sync_file`, `sync_folder`, `rename`, `remove`, `cut_file`, `remove_folder` and `make_folder`
below, called by that name, so that a test can make any of them fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

TEMP_PREFIX = ".part-"


def write_bytes(out: BinaryIO, data: Any) -> None:
    """Write all of `data` (bytes, or an array's buffer) into an open file."""
    out.write(data)


def sync_file(out: BinaryIO) -> None:
    """Flush an open file to the disk."""
    out.flush()
    os.fsync(out.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename or unlink in it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(old: Path, new: Path) -> None:
    """Put `old` in the place of `new` in one step."""
    old.replace(new)


def remove(path: Path) -> None:
    """Remove one file."""
    path.unlink()


def cut_file(path: Path, size: int) -> None:
    """Give a file another size: cut off what is behind, or fill up with zeros."""
    os.truncate(path, size)


def remove_folder(folder: Path) -> None:
    """Remove an empty folder."""
    folder.rmdir()
    sync_folder(folder.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it durably; nothing happens when it is there."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def temp_path(path: Path) -> Path:
    """Where `path` is written before it is published; a fixed name, so a crash leaves at most one."""
    return path.with_name(f"{TEMP_PREFIX}{path.name}")


class Output:
    """A temp file that is being written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: Any) -> None:
        """Add `data` (bytes, or an array's buffer)."""
        write_bytes(self._file, data)


class Staging:
    """Files that are written beside their places and then put there together; made by `staging`."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._files: dict[Path, BinaryIO] = {}
        self._written: list[Path] = []

    def file(self, path: Path) -> Output:
        """Begin the file that will be `path`."""
        make_folder(path.parent)
        self._files[path] = self._open.enter_context(temp_path(path).open("wb"))
        return Output(self._files[path])

    def sync(self) -> None:
        """Have everything written so far on the disk: a full disk shows here, before any file is replaced."""
        for path, file in self._files.items():
            sync_file(file)
            self._written.append(path)
        self._open.close()
        self._files = {}

    def put(self) -> None:
        """Rename every file into its place and sync the folders; `sync` comes first by itself."""
        self.sync()
        for path in self._written:
            rename(temp_path(path), path)
        for folder in dict.fromkeys(path.parent for path in self._written):
            sync_folder(folder)
        self._written = []

    def discard(self) -> None:
        """Close and remove what was not put in its place."""
        paths = [*self._files, *self._written]
        with suppress(OSError):  # what could not be written before cannot be flushed now either
            self._open.close()
        for path in paths:
            with suppress(FileNotFoundError):
                remove(temp_path(path))


@contextmanager
def staging() -> Iterator[Staging]:
    """Stage several files; the caller calls `put`, on error the temp files are removed."""
    staged = Staging()
    try:
        yield staged
    except BaseException:
        staged.discard()
        raise


@contextmanager
def publishing(path: Path) -> Iterator[Output]:
    """Open a temp file for writing; on success publish it as `path`, on error remove it and re-raise."""
    with staging() as staged:
        yield staged.file(path)
        staged.put()


def publish_bytes(path: Path, data: bytes) -> None:
    """Publish `data` as the whole content of `path`."""
    with publishing(path) as out:
        out.write(data)


def publish_text(path: Path, text: str) -> None:
    """Publish `text` in UTF-8."""
    publish_bytes(path, text.encode("utf-8"))


def append_bytes(path: Path, data: bytes) -> None:
    """Add `data` to the end of a log and have it on the disk before returning; a crash may tear it."""
    new = not path.exists()
    with path.open("ab", buffering=0) as out:
        write_bytes(out, data)
        sync_file(out)
    if new:
        sync_folder(path.parent)


def unpublish(path: Path) -> None:
    """Remove `path` durably; nothing happens when it is not there."""
    if path.exists():
        remove(path)
        sync_folder(path.parent)
