"""The one atomic write: a temp file beside the place, write, fsync, rename, fsync of the folder.

A reader sees the old file, the new file or none, never a part of one, even after a power cut. Everything that must
survive an interruption is written through this module. Each step on the disk is one of the functions `write_bytes`,
`sync_file`, `sync_folder`, `rename`, `link_file`, `remove`, `cut_file`, `remove_folder` and `make_folder`, called by
name, so that a test can make any of them fail.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

TEMP_PREFIX = ".part-"
COPY_BYTES = 1 << 20
"""Bytes of a file that are copied at a time."""


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
    """Replace `new` by `old` in one step."""
    old.replace(new)


def link_file(old: Path, new: Path) -> None:
    """Give a file a second name (a hard link) where nothing is yet. No byte is written; the caller syncs the folder."""
    os.link(old, new)


def remove(path: Path) -> None:
    """Remove one file."""
    path.unlink()


def cut_file(path: Path, size: int) -> None:
    """Give a file another size: cut off its end, or append zeros."""
    os.truncate(path, size)


def remove_folder(folder: Path) -> None:
    """Remove an empty folder."""
    folder.rmdir()
    sync_folder(folder.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents durably; does nothing when it exists."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except (
        FileNotFoundError
    ) as error:  # what a file system such as /proc says, where nobody may make a folder
        if folder.parent.is_dir():
            raise PermissionError(errno.EPERM, "no folder can be made here", str(folder)) from error
        raise
    sync_folder(folder.parent)


def temp_path(path: Path) -> Path:
    """Where `path` is written before it is published; a fixed name, so that a crash leaves at most one."""
    return path.with_name(f"{TEMP_PREFIX}{path.name}")


class Output:
    """A temp file that is being written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: Any) -> None:
        """Add `data` (bytes, or an array's buffer)."""
        write_bytes(self._file, data)

    def rewind(self) -> None:
        """Go on writing at the beginning: what is written next takes the place of what was."""
        self._file.seek(0)

    def resize(self, size: int) -> None:
        """Give what is written this size: cut off its end, or append zeros."""
        self._file.flush()
        cut_file(Path(self._file.name), size)


class Staging:
    """Files that are written beside their places and then put there together; see `staging`."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._files: dict[Path, BinaryIO] = {}
        self._written: list[Path] = []

    def file(self, path: Path) -> Output:
        """Start the file that will become `path`."""
        make_folder(path.parent)
        self._files[path] = self._open.enter_context(temp_path(path).open("wb"))
        return Output(self._files[path])

    def sync(self) -> None:
        """Flush everything written so far to the disk: a full disk fails here, before any file is replaced."""
        for path, file in self._files.items():
            sync_file(file)
            self._written.append(path)
        self._open.close()
        self._files = {}

    def put(self) -> None:
        """Sync, rename every file into its place, and sync the folders."""
        self.sync()
        for path in self._written:
            rename(temp_path(path), path)
        for folder in dict.fromkeys(path.parent for path in self._written):
            sync_folder(folder)
        self._written = []

    def discard(self) -> None:
        """Close and remove the temp files that were not put in place."""
        paths = [*self._files, *self._written]
        with suppress(OSError):  # what could not be written before cannot be flushed now either
            self._open.close()
        for path in paths:
            with suppress(FileNotFoundError):
                remove(temp_path(path))


@contextmanager
def staging() -> Iterator[Staging]:
    """Stage several files; the caller calls `put`. On an error the temp files are removed."""
    staged = Staging()
    try:
        yield staged
    except BaseException:
        staged.discard()
        raise


@contextmanager
def publishing(path: Path) -> Iterator[Output]:
    """A temp file to write to; on success it becomes `path`, on an error it is removed."""
    with staging() as staged:
        yield staged.file(path)
        staged.put()


def is_taken(folder: Path) -> bool:
    """Whether something lies at the place of a new folder; an empty folder is none."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


@contextmanager
def publishing_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill beside the new `folder`; on success it becomes `folder`, on an error it is removed."""
    work = temp_path(folder)
    shutil.rmtree(work, ignore_errors=True)  # of one that was killed
    work.mkdir(parents=True)
    try:
        yield work
        if folder.exists():
            folder.rmdir()
        rename(work, folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def publish_bytes(path: Path, data: bytes) -> None:
    """Publish `data` as the whole content of `path`."""
    with publishing(path) as out:
        out.write(data)


def publish_text(path: Path, text: str) -> None:
    """Publish `text` in UTF-8."""
    publish_bytes(path, text.encode("utf-8"))


def resize_file(path: Path, size: int) -> None:
    """Give a published file another size: cut off its end, or append zeros.

    Where the file has other names (hard links) a new one takes its place here, so that the others keep every byte.
    """
    if path.stat().st_nlink == 1:
        cut_file(path, size)
        return
    with path.open("rb") as file, publishing(path) as out:
        left = size
        while left > 0 and (data := file.read(min(left, COPY_BYTES))):
            out.write(data)
            left -= len(data)
        out.resize(size)


def append_bytes(path: Path, data: bytes) -> None:
    """Append `data` to a log and flush it to the disk; a crash may leave a part of it."""
    new = not path.exists()
    with path.open("ab", buffering=0) as out:
        write_bytes(out, data)
        sync_file(out)
    if new:
        sync_folder(path.parent)


def unpublish(path: Path) -> None:
    """Remove `path` durably; does nothing when it is missing."""
    if path.exists():
        remove(path)
        sync_folder(path.parent)
