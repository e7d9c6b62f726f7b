"""The one way a file comes into being: temp file beside it, write, fsync, rename, fsync of the folder.

A reader sees the old file, the new file or none, never a part of one, also after a power cut. Everything
that must survive an interruption is written through here. Not for append-only logs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMP_PREFIX = ".part-"


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename or unlink in it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temp_path(path: Path) -> Path:
    """Where `path` is written before it is published; a fixed name, so a crash leaves at most one."""
    return path.with_name(f"{TEMP_PREFIX}{path.name}")


@contextmanager
def publishing(path: Path) -> Iterator[BinaryIO]:
    """Open a temp file for writing; on success publish it as `path`, on error remove it and re-raise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = temp_path(path)
    try:
        with temp.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish_bytes(path: Path, data: bytes) -> None:
    """Publish `data` as the whole content of `path`."""
    with publishing(path) as out:
        out.write(data)


def publish_text(path: Path, text: str) -> None:
    """Publish `text` in UTF-8."""
    publish_bytes(path, text.encode("utf-8"))


def unpublish(path: Path) -> None:
    """Remove `path` durably; nothing happens when it is not there."""
    if path.exists():
        path.unlink()
        sync_folder(path.parent)
