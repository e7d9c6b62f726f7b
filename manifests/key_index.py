"""Many keys in little memory: `Keys` holds their bytes end to end, `KeyIndex` finds one by its hash.

A Python string takes 60 bytes and more per key; `Keys` takes the key's own bytes and 4, `KeyIndex` 12 more. Both
hold up to 4 GiB of keys. The 64-bit hashes depend on a random seed, so that nobody can prepare a file whose keys
all have the same hash; they must never be stored.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

_WORD_BYTES = 8
_CHUNK_BYTES = 1 << 20
_CHUNK_KEYS = 1 << 16
_ALL = (1 << 64) - 1
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The multipliers with which splitmix64 mixes a word."""


def random_seed() -> int:
    """A seed that cannot be predicted."""
    return int.from_bytes(os.urandom(_WORD_BYTES), "little")


def hash_text(text: bytes, seed: int) -> int:
    """The hash of one text."""
    value = _mixed(seed ^ len(text))
    for at in range(0, len(text), _WORD_BYTES):
        value = _mixed(value ^ int.from_bytes(text[at : at + _WORD_BYTES], "little"))
    return value


def _mixed(value: int) -> int:
    value = ((value ^ value >> 30) * _MIX_1) & _ALL
    value = ((value ^ value >> 27) * _MIX_2) & _ALL
    return value ^ value >> 31


def hash_texts(blob: bytes, ends: NDArray[np.uint32], seed: int) -> NDArray[np.uint64]:
    """The hash of each text in `blob`, where they lie end to end; `ends` says where each one ends."""
    data = np.frombuffer(blob, np.uint8)
    sizes = np.diff(ends, prepend=np.uint32(0))
    words = (sizes + np.uint32(_WORD_BYTES - 1)) // np.uint32(_WORD_BYTES)
    hashes = np.empty(len(ends), np.uint64)
    for width in np.flatnonzero(np.bincount(words)).tolist():
        rows = np.flatnonzero(words == width)
        chunk = max(1, _CHUNK_BYTES // (_WORD_BYTES * max(1, width)))
        for first in range(0, len(rows), chunk):
            some = rows[first : first + chunk]
            hashes[some] = _hashes(data, ends[some], sizes[some], width, seed)
    return hashes


def _hashes(
    data: NDArray[np.uint8], ends: NDArray[np.uint32], sizes: NDArray[np.uint32], width: int, seed: int
) -> NDArray[np.uint64]:
    """Hashes of `n` texts of `width` words each, the last word padded with zeros."""
    value = _all_mixed(np.uint64(seed) ^ sizes)
    if width:
        columns = np.arange(width * _WORD_BYTES)
        inside = columns < sizes[:, None]  # [n, bytes]
        places = np.minimum((ends.astype(np.int64) - sizes)[:, None] + columns, len(data) - 1)
        words = np.where(inside, data[places], np.uint8(0)).view("<u8")  # [n, width]
        for column in range(width):
            value = _all_mixed(value ^ words[:, column])
    return value


def _all_mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = (value ^ value >> np.uint64(30)) * np.uint64(_MIX_1)
    value = (value ^ value >> np.uint64(27)) * np.uint64(_MIX_2)
    return value ^ value >> np.uint64(31)


class Keys(Sequence[str]):
    """ASCII keys, immutable and equal to a tuple or list of them; a slice shares the bytes of the whole."""

    __slots__ = ("_begin", "_blob", "_ends")

    def __init__(self, blob: bytes, ends: NDArray[np.uint32], begin: int = 0) -> None:
        """`ends` says where each key ends in `blob`, ascending; the first key begins at `begin`."""
        self._blob = blob
        self._ends = ends
        self._begin = begin

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        """These keys; the same object if they are `Keys` already."""
        if isinstance(keys, Keys):
            return keys
        blob = bytearray()
        ends = array("I")
        for key in keys:
            blob += key.encode("ascii")
            ends.append(len(blob))
        return cls(bytes(blob), np.array(ends, np.uint32))

    @classmethod
    def joined(cls, parts: Iterable[Sequence[str]]) -> Keys:
        """The keys of all parts, one part after the other."""
        tables = [Keys.of(part) for part in parts]
        blob = b"".join(table.blob for table in tables)
        sizes = [table.sizes for table in tables]
        ends = np.cumsum(np.concatenate(sizes), dtype=np.uint32) if sizes else np.empty(0, np.uint32)
        return cls(blob, ends)

    @property
    def blob(self) -> bytes:
        """The bytes of all keys, end to end."""
        end = int(self._ends[-1]) if len(self._ends) else self._begin
        return self._blob[self._begin : end]

    @property
    def sizes(self) -> NDArray[np.uint32]:
        """The length of each key in characters."""
        sizes = self._ends.copy()
        sizes[1:] -= self._ends[:-1]
        sizes[:1] -= np.uint32(self._begin)
        return sizes

    @property
    def ends(self) -> NDArray[np.uint32]:
        """Where each key ends in `blob`."""
        return self._ends - np.uint32(self._begin)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Keys: ...
    def __getitem__(self, at: int | slice) -> str | Keys:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            if step != 1:
                return self.take(np.arange(start, stop, step))
            return Keys(self._blob, self._ends[start:stop], self._starts_at(start))
        row = range(len(self))[at]
        return self._blob[self._starts_at(row) : int(self._ends[row])].decode("ascii")

    def _starts_at(self, row: int) -> int:
        return int(self._ends[row - 1]) if row else self._begin

    def take(self, rows: NDArray[np.integer]) -> Keys:
        """The keys in these rows, in that order."""
        return Keys.of(self[int(row)] for row in rows)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _CHUNK_KEYS):
            places = [self._starts_at(first), *self._ends[first : first + _CHUNK_KEYS].tolist()]
            text = self._blob[places[0] : places[-1]].decode("ascii")
            begin = places[0]
            yield from (text[start - begin : end - begin] for start, end in pairwise(places))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Keys):
            return len(self) == len(other) and (
                (self._ends is other._ends and self._blob is other._blob)
                or (bool((self.ends == other.ends).all()) and self.blob == other.blob)
            )
        if isinstance(other, tuple | list):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Keys({shown}{', ...' if len(self) > 3 else ''}; {len(self)})"


class KeyIndex:
    """Finds the row of a key in `keys`. Keys that share a hash are told apart by comparing the keys themselves."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._seed = random_seed()
        hashes = hash_texts(keys.blob, keys.ends, self._seed)
        self._order: NDArray[np.uint32] = np.argsort(hashes, kind="stable").astype(np.uint32)
        self._hashes: NDArray[np.uint64] = hashes[self._order]

    def get(self, key: str) -> int | None:
        """The first row of `key`, or None."""
        wanted = np.uint64(hash_text(key.encode("utf-8", "surrogatepass"), self._seed))
        at = int(np.searchsorted(self._hashes, wanted))
        while at < len(self._hashes) and self._hashes[at] == wanted:
            row = int(self._order[at])
            if self._keys[row] == key:
                return row
            at += 1
        return None

    def duplicate(self) -> int | None:
        """A row whose key also stands in an earlier row, or None when all keys are different."""
        for at in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]).tolist():
            row = int(self._order[at + 1])
            if self.get(self._keys[row]) != row:
                return row
        return None
