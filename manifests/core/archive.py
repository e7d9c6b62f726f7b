"""Zip archives from strangers, the one place where they are opened: what a file claims is held against a cap first.

Members are read by name into memory; nothing is ever unpacked to the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO
from zipfile import ZipFile


@contextmanager
def open_archive(file: BinaryIO, most: int) -> Iterator[ZipFile]:
    """An archive whose members take at most `most` bytes together; raises ValueError for others, or a name twice."""
    with ZipFile(file) as archive:
        members = archive.infolist()
        claimed = sum(member.file_size for member in members)
        if claimed > most:
            raise ValueError(
                f"an archive that claims to hold {claimed} bytes, more than {most}: made to fill memory"
            )
        if len({member.filename for member in members}) != len(members):
            raise ValueError("an archive that holds a name twice")
        yield archive
