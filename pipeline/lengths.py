"""How long media files are, as their containers say: asked in killable child processes, and remembered in the home.

Where a file is cut into many clips this decides which clips there are, so it is asked before anything is decoded. What
was found of a file is believed as long as its size and time are the same.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from caeav.manifests.cores import usable_cores
from caeav.manifests.home import Home
from caeav.manifests.publish import make_folder, publish_bytes
from caeav.manifests.readers import Lengths
from caeav.pipeline.decode.pool import WorkerPool

FILE = "lengths.json"
SETUP = "caeav.pipeline.lengths:setup"
DEADLINE_S = 30.0
MAX_BYTES = 512 << 20

_Known = dict[str, list[Any]]
"""File -> its size, its time in ns, and its seconds or None."""


def lengths_in(home: Home) -> Lengths:
    """What to ask for the seconds of media files; None for what no container tells, or what is no media."""

    def lengths(paths: Sequence[Path]) -> list[float | None]:
        known = _read(home.root / FILE)
        now = {str(path): _stamp(path) for path in paths}
        asked = [name for name, stamp in now.items() if stamp and known.get(name, [])[:2] != stamp]
        if asked:
            found = _ask(asked)
            known |= {name: [*(now[name] or ()), found.get(name)] for name in asked}
            with suppress(OSError):  # looking needs no home that can be written to
                make_folder(home.root)
                publish_bytes(home.root / FILE, json.dumps(known).encode("ascii"))
        return [known[str(path)][2] if now[str(path)] else None for path in paths]

    return lengths


def setup(
    settings: Mapping[str, Any],
) -> Callable[[Mapping[str, Any]], tuple[dict[str, Any], dict[str, Any]]]:
    """What runs in a child: the header of one file."""
    from caeav.pipeline.decode.probe import probe

    def job(request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {"seconds": probe(str(request["path"])).end_s}

    return job


def _ask(names: Sequence[str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    workers = min(usable_cores(), max(1, len(names) // 4))
    with WorkerPool(SETUP, {}, workers=workers, deadline_s=DEADLINE_S, stage="probe") as pool:
        for outcome in pool.map({"id": str(i), "path": name} for i, name in enumerate(names)):
            seconds = outcome.info.get("seconds")
            found[names[int(outcome.id)]] = seconds if _is_length(seconds) else None
    return found


def _stamp(path: Path) -> list[int] | None:
    try:
        facts = os.stat(path)  # noqa: PTH116 - of many files
    except (OSError, ValueError):
        return None
    return [facts.st_size, facts.st_mtime_ns]


def _read(path: Path) -> _Known:
    """What is remembered; nothing where it cannot be read, since it can be asked again."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    rows = value.items() if isinstance(value, dict) else ()
    return {name: row for name, row in rows if isinstance(row, list) and len(row) == 3 and _is_length(row[2])}


def _is_length(value: Any) -> bool:
    return value is None or (isinstance(value, float) and 0 < value < math.inf)
