"""Which streams of a file are encrypted, where only the container says so and no packet does.

Matroska names the key in its header. In MPEG-TS each packet says whether it is scrambled; the first ones are looked at.
(MP4 says it with each packet: `scan.py`.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LOOKED_AT = 2**21  # bytes at a transport stream's beginning
SYNC = 0x47
SIZES = (188, 192, 204)  # bytes of a packet: plain, with a clock before it, with a checksum behind it


def encrypted_streams(container: Any, path: str) -> frozenset[int]:
    """Indices of the streams that an open container calls encrypted."""
    if container.format.name == "mpegts":
        pids = _scrambled_pids(Path(path))
        return frozenset(stream.index for stream in container.streams if stream.id in pids)
    return frozenset(s.index for s in container.streams if "enc_key_id" in s.metadata)


def _scrambled_pids(path: Path) -> frozenset[int]:
    """Numbers of the transport streams most of whose packets are scrambled."""
    with path.open("rb") as file:
        data = np.frombuffer(file.read(LOOKED_AT), dtype=np.uint8)
    for size in SIZES:
        for first in range(min(size, data.size)):
            count = (data.size - first) // size
            if count and data[first] == SYNC and (data[first::size][:count] == SYNC).mean() > 0.9:
                rows = data[first : first + count * size].reshape(count, size)
                pids = (rows[:, 1].astype(np.int64) & 0x1F) << 8 | rows[:, 2]
                return _mostly(pids, rows[:, 3] >> 6 > 1)
    return frozenset()


def _mostly(pids: np.ndarray[Any, Any], scrambled: np.ndarray[Any, Any]) -> frozenset[int]:
    return frozenset(int(pid) for pid in np.unique(pids) if scrambled[pids == pid].mean() > 0.5)
