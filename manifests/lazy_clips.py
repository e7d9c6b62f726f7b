"""The rows of a large manifest, left in their memory-mapped file: a `Clip` is made when one is asked for.

A million `Clip` objects need a gigabyte; this keeps the place, split and key of each row, about 30 bytes. `scan`
recognises rows as `manifest.py` writes them and no others. The map survives a replacement of the file.
"""

from __future__ import annotations

import errno
import json
import mmap
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import SPLIT_CODES, Clip, ClipTable, video_of
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.key_index import Keys
from caeav.manifests.rows import ManifestError, clip_from_row

_ROW = re.compile(
    rb'\{"key": "([A-Za-z0-9_+-]{1,200})", "media": "[^"\\\n]*(?:\\.[^"\\\n]*)*", "start_s": [0-9.e+-]+, '
    rb'"seconds": [0-9.e+-]+, "split": "(train|val|test|)", "events": \[[^\n]*\}\n'
)
_EXTRA, _ID = b'"extra": {', b'"id": "'
"""How a row's last field and its official id begin. No text within a row can hold these unescaped quotation marks."""
_PART = 1 << 22
_REBUILD = "build the manifest again: caeav manifest build"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def parse_line(line: bytes, where: str) -> Any:
    """The JSON value of a line read at `where`; raises `ManifestError`."""
    try:
        return _DECODER.decode(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        torn = "" if line.startswith(b"{") and line.rstrip().endswith(b"}") else "; the line is torn"
        raise ManifestError(f"{where}: not a JSON row ({error}){torn}", hint=_REBUILD) from None


def same_bytes(a: memoryview, b: memoryview) -> bool:
    """Whether they are equal; compared in parts, since numpy keeps a result for every byte."""
    return len(a) == len(b) and all(
        np.array_equal(
            np.frombuffer(a[at : at + _PART], np.uint8), np.frombuffer(b[at : at + _PART], np.uint8)
        )
        for at in range(0, len(a), _PART)
    )


def map_file(path: Path) -> mmap.mmap | bytes:
    """A file's bytes, mapped unless it is empty; raises `OSError`, also for a pipe or device, which may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""


class LazyClips(ClipTable):
    """The clips of a manifest file. A row is checked when its clip is made: `ManifestError` names file and line.

    Another process that is sent this maps the file anew; the file must not have been replaced meanwhile.
    """

    def __init__(
        self,
        path: Path,
        data: mmap.mmap,
        starts: NDArray[np.int64],
        keys: Keys,
        splits: NDArray[np.uint8],
        classes: frozenset[str],
    ) -> None:
        """`starts`: where each row begins in the file, and where the last one ends."""
        self.__dict__.update(keys=keys, splits=splits)  # the columns that `ClipTable` would make
        self._path = path
        self._data: mmap.mmap | None = data
        self._starts = starts
        self._classes = classes

    def __len__(self) -> int:
        return len(self.splits)

    @overload
    def __getitem__(self, at: int) -> Clip: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Clip, ...]: ...
    def __getitem__(self, at: int | slice) -> Clip | tuple[Clip, ...]:
        if isinstance(at, slice):
            return tuple(self[row] for row in range(*at.indices(len(self))))
        row = range(len(self))[at]
        return self._clip(self._mapped(), row, int(self._starts[row]), int(self._starts[row + 1]))

    def __iter__(self) -> Iterator[Clip]:
        data = self._mapped()
        for first in range(0, len(self), 1 << 16):
            starts = self._starts[first : first + (1 << 16) + 1].tolist()
            for i in range(len(starts) - 1):
                yield self._clip(data, first + i, starts[i], starts[i + 1])

    def _clip(self, data: mmap.mmap, row: int, start: int, end: int) -> Clip:
        where = f"{self._path}:{row + 2}"  # line 1 is the header
        return clip_from_row(parse_line(data[start : end - 1], where), self._classes, where)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LazyClips):
            return self is other or (
                self.keys == other.keys and same_bytes(self.file_rows(), other.file_rows())
            )
        if isinstance(other, tuple | list):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def file_rows(self) -> memoryview:
        """See `ClipTable.file_rows`."""
        return memoryview(self._mapped())[int(self._starts[0]) : int(self._starts[-1])]

    def videos(self, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """See `ClipTable.videos`; the official id is found without parsing the row where it comes first in `extra`."""
        data = self._mapped()
        for row in rows:
            start, end = int(self._starts[row]), int(self._starts[row + 1])
            begin = data.find(_EXTRA, start, end) + len(_EXTRA)
            stop = data.find(b'"', begin + len(_ID), end)
            name = data[begin:stop]
            if begin >= len(_EXTRA) and name.startswith(_ID) and b"\\" not in name:
                yield name[len(_ID) :]
            else:
                yield self._video(data, int(row), start, end)

    def _video(self, data: mmap.mmap, row: int, start: int, end: int) -> bytes:
        value = parse_line(data[start : end - 1], f"{self._path}:{row + 2}")
        extra = value.get("extra") if isinstance(value, dict) else None
        if not isinstance(extra, dict) or "media" not in value:
            return self[row].media.encode()  # says what is wrong
        return video_of(value["media"], extra).encode("utf-8", "surrogatepass")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}

    def _mapped(self) -> mmap.mmap:
        if self._data is None:
            data = map_file(self._path)
            if isinstance(data, bytes) or len(data) != int(self._starts[-1]):
                raise CaeavError(
                    f"{self._path} was replaced while it was in use",
                    hint="run this again; nothing may write the store or build the manifest meanwhile",
                )
            self._data = data
        return self._data


def scan(path: Path, data: mmap.mmap, start: int, classes: Sequence[str]) -> LazyClips | None:
    """Find the rows of a mapped manifest from byte `start` on; None when one is not as `manifest.py` writes it."""
    starts, ends, splits = array("q", [start]), array("q"), bytearray()
    blob = bytearray()
    code = {name.encode(): number for number, name in enumerate(SPLIT_CODES)}
    position = start
    for match in _ROW.finditer(data, start):
        if match.start() != position:
            return None
        position = match.end()
        blob += match[1]
        ends.append(len(blob))
        splits.append(code[match[2]])
        starts.append(position)
    if position != len(data):
        return None
    keys = Keys(bytes(blob), np.array(ends, np.uint32))
    places = np.array(starts, np.int64)
    return LazyClips(path, data, places, keys, np.frombuffer(bytes(splits), np.uint8), frozenset(classes))
