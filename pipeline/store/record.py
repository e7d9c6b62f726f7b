"""One clip inside a store: its record of named arrays and JSON facts, or its line in the quarantine file.

While a store is being written, each quarantined clip is appended and synced at once, so that a failure once found is
not looked for again after a crash. A later line for a key replaces an earlier one, and a torn last line is left out and
reported. A finished store has one line per quarantined clip, in manifest order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.atomic import append_bytes
from caeav.manifests.keys import KEY_PATTERN
from caeav.pipeline.store.errors import DamagedStore
from caeav.pipeline.store.layout import read_capped


@dataclass(frozen=True, slots=True)
class Tap:
    """A cached output of a backbone, e.g. `visual.stage2`: `tokens` tokens of `channels` channels per segment."""

    name: str
    tokens: int
    channels: int


@dataclass(frozen=True)
class Record:
    """The arrays of one clip (tap -> `[T, L, C]`, or caption tokens `[W, C]` and mask `[W]`) and its facts.

    `info` holds only JSON values: `notes`, `frames_ok`, `audio_ok`, `facts`, and for captions `texts`.
    """

    key: str
    arrays: Mapping[str, NDArray[np.generic]]
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A clip that could not be processed: at which stage, why, after how many attempts."""

    key: str
    stage: str
    reason: str
    attempts: int


def render_quarantine(entries: Iterable[Quarantined]) -> bytes:
    """The bytes of a quarantine file with these entries, in this order."""
    return b"".join(_line(entry) for entry in entries)


def append_quarantine(path: Path, entry: Quarantined) -> None:
    """Append one line and have it on the disk before returning."""
    append_bytes(path, _line(entry))


def read_quarantine(path: Path) -> tuple[dict[str, Quarantined], bool]:
    """Entries by key, the last line of a key counting; and whether the last line is torn.

    Raises `DamagedStore` for any other line that cannot be read.
    """
    lines = read_capped(path).split(b"\n")
    torn = lines.pop() != b""
    entries: dict[str, Quarantined] = {}
    for number, line in enumerate(lines, start=1):
        entry = _parse(line)
        if entry is None:
            raise DamagedStore(
                f"{path}, line {number}: not a quarantine entry",
                hint="run the command that made the store again; it tries the quarantined clips again",
            )
        entries[entry.key] = entry
    return entries, torn


def _line(entry: Quarantined) -> bytes:
    return json.dumps(asdict(entry), ensure_ascii=True).encode() + b"\n"


def _parse(line: bytes) -> Quarantined | None:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"key", "stage", "reason", "attempts"}:
        return None
    texts = all(isinstance(value[name], str) for name in ("key", "stage", "reason"))
    if not texts or not KEY_PATTERN.fullmatch(value["key"]) or type(value["attempts"]) is not int:
        return None
    return Quarantined(**value)
