"""The one place where zip archives from strangers are opened: the sizes they claim are checked first.

Members are read into memory by name; nothing is ever unpacked to the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO
from zipfile import ZipFile


@contextmanager
def open_archive(file: BinaryIO, most: int) -> Iterator[ZipFile]:
    """The open archive; raises `ValueError` when its members claim more than `most` bytes, or two have one name."""
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
