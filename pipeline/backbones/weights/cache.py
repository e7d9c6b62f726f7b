"""Where weight files lie on this machine, and their digests: `<home>/weights.json`.

Recipes name weights by digest and never by path; this file leads from the digest to the path, so that a store's models
can be built again. It also saves reading gigabytes to digest a file that has not changed (same path, size and time).
Losing it costs only time, so a home that cannot be written to is not an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from caeav.manifests.core.atomic import publish_bytes
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import file_sha256, ignore, size_text

FILE = "weights.json"
LARGE_BYTES = 1 << 30
"""From this size on, reading a file takes long enough to be announced."""
_home: Home | None = None


_tell: Callable[[str], object] = ignore


def remember_at(home: Home | None, tell: Callable[[str], object] = ignore) -> None:
    """From now on, this process keeps `weights.json` in `home`, or with None in the default home.

    `tell` is called before a large file is read for its digest, and where one of several weights in a file is chosen.
    """
    global _home, _tell
    _home, _tell = home, tell


def tell(text: str) -> None:
    """Pass a remark to the function that `remember_at` was given."""
    _tell(text)


def memory_file() -> Path:
    """`<home>/weights.json`."""
    return (_home or Home.find()).root / FILE


def recall(digest: str) -> Path | None:
    """Where the file or folder of a digest lay last; None when that is not known or nothing lies there now."""
    entry = _load()["places"].get(digest)
    path = Path(entry) if isinstance(entry, str) else None
    return path if path is not None and path.exists() else None


def remember(digest: str, place: Path) -> None:
    """Note where the weights of this digest lie."""
    held = _load()
    if held["places"].get(digest) != str(place):
        held["places"][digest] = str(place)
        _save(held)


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes, which are not read again while the file has the same size and time."""
    real = path.resolve()
    state = real.stat()
    stamp = [state.st_size, state.st_mtime_ns]
    known = _load()["files"].get(str(real))
    if isinstance(known, list) and known[:2] == stamp and len(known) == 3:
        return str(known[2])
    if state.st_size >= LARGE_BYTES:
        size = size_text(state.st_size, binary=True)
        _tell(f"reading {path.name} ({size}) for its digest, once unless it changes")
    digest = f"sha256:{file_sha256(real)}"
    held = _load()
    held["files"][str(real)] = [*stamp, digest]
    _save(held)
    return digest


def _load() -> dict[str, dict[str, Any]]:
    held: Any = None
    with suppress(OSError, ValueError):
        held = json.loads(memory_file().read_bytes())
    if not isinstance(held, dict) or not all(isinstance(held.get(k), dict) for k in ("places", "files")):
        return {"places": {}, "files": {}}
    return held


def _save(held: dict[str, dict[str, Any]]) -> None:
    with suppress(OSError):
        memory_file().parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(memory_file(), json.dumps(held, indent=1, sort_keys=True).encode())
