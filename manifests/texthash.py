"""64-bit hashes of many short texts at once, for tables that live as long as the process.

Not for files: which hash a text has depends on a random seed, so that nobody can make a file of texts that all have
the same one.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

_WORD_BYTES = 8
_AT_ONCE_BYTES = 1 << 20
_ALL = (1 << 64) - 1
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The multipliers of splitmix64, whose last step mixes a word."""


def random_seed() -> int:
    """A seed that nobody can foresee."""
    return int.from_bytes(os.urandom(_WORD_BYTES), "little")


def hash_text(text: bytes, seed: int) -> int:
    """The hash of one text."""
    value = _mixed(seed ^ len(text))
    for at in range(0, len(text), _WORD_BYTES):
        value = _mixed(value ^ int.from_bytes(text[at : at + _WORD_BYTES], "little"))
    return value


def _mixed(value: int) -> int:
    value = ((value ^ value >> 30) * _FIRST) & _ALL
    value = ((value ^ value >> 27) * _SECOND) & _ALL
    return value ^ value >> 31


def hash_texts(blob: bytes, ends: NDArray[np.uint32], seed: int) -> NDArray[np.uint64]:
    """The hash of each of the texts that lie one after the other in `blob`; `ends` are the places behind them."""
    data = np.frombuffer(blob, np.uint8)
    sizes = np.diff(ends, prepend=np.uint32(0))
    words = (sizes + np.uint32(_WORD_BYTES - 1)) // np.uint32(_WORD_BYTES)
    hashes = np.empty(len(ends), np.uint64)
    for width in np.flatnonzero(np.bincount(words)).tolist():
        rows = np.flatnonzero(words == width)
        at_once = max(1, _AT_ONCE_BYTES // (_WORD_BYTES * max(1, width)))
        for first in range(0, len(rows), at_once):
            some = rows[first : first + at_once]
            hashes[some] = _hashes(data, ends[some], sizes[some], width, seed)
    return hashes


def _hashes(
    data: NDArray[np.uint8], ends: NDArray[np.uint32], sizes: NDArray[np.uint32], width: int, seed: int
) -> NDArray[np.uint64]:
    """Hashes of `n` texts of `width` words each, the last one filled up with zeros."""
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
    value = (value ^ value >> np.uint64(30)) * np.uint64(_FIRST)
    value = (value ^ value >> np.uint64(27)) * np.uint64(_SECOND)
    return value ^ value >> np.uint64(31)
