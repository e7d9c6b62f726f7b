"""How long media files are: asked of their headers in killable child processes, and remembered in the home.

Where a file is cut into many clips this decides which clips there are, before anything is decoded. A header may promise
more than there is; what is decoded decides in the end. Files without a length in their header, and those that may be
joined, are read through, packet by packet, without decoding. A length is believed as long as the file's size and time
are the same, so that only the first look at a large folder takes long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caeav.manifests.core.atomic import make_folder, publishing
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import usable_cores
from caeav.manifests.readers import Lengths
from caeav.pipeline.media.clip import DecodeError, Limits
from caeav.pipeline.media.workers.pool import Request, WorkerPool

FILE = "lengths.jsonl"
AT_ONCE = 32
"""Files of one request; if it fails, each of them is asked for alone."""
DEADLINE_S = 120.0


def lengths_in(home: Home) -> Lengths:
    """What to ask for the seconds of media files; None for what cannot be told (no media, damaged, not there).

    They are kept in `home`; that this cannot be read or written costs time only.
    """

    def lengths(paths: Sequence[Path]) -> list[float | None]:
        known = _recall(home.root / FILE)
        marks = [_mark(path) for path in paths]
        new = list(dict.fromkeys(mark for mark in marks if mark is not None and mark not in known))
        if new:
            known |= dict(zip(new, _measure([mark[0] for mark in new]), strict=True))
            _remember(home.root / FILE, known)
        return [None if mark is None else known[mark] for mark in marks]

    return lengths


def length_s(path: str, limits: Limits | None = None) -> float:
    """Seconds of one media file; raises `DecodeError` when it cannot be told."""
    from caeav.pipeline.media.clock import walked
    from caeav.pipeline.media.probe import WITHOUT_LENGTH, opened, probe

    limits = limits or Limits()
    facts = probe(path, limits)
    walk = walked(facts, limits)
    if walk is not None and walk.parts > 1:
        return walk.end_s
    if facts.end_s is not None and facts.container not in WITHOUT_LENGTH:
        return facts.end_s
    end_s, packets = 0.0, 0
    with opened(path, limits) as container:
        for packet in container.demux():
            packets += 1
            limits.check("number of packets", packets, limits.packets)
            if packet.pts is not None and packet.stream.type in ("video", "audio"):
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    if end_s <= facts.origin_s:
        raise DecodeError(f"{Path(path).name} holds no packet with a time")
    return end_s - facts.origin_s


Job = Callable[[Request], tuple[dict[str, Any], dict[str, Any]]]


def setup(settings: Mapping[str, Any]) -> Job:
    """The child's job: the lengths of `request["paths"]`, a null for each that cannot be told."""
    import av

    av.logging.set_level(av.logging.PANIC)

    def one(path: str) -> float | None:
        try:
            return length_s(path)
        except (DecodeError, av.FFmpegError, OSError, ValueError):
            return None

    def job(request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {"seconds": [one(path) for path in request["paths"]]}

    return job


Mark = tuple[str, int, int]
"""What a length is remembered by: absolute path, bytes, modification time in ns."""


def _mark(path: Path) -> Mark | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return str(path.absolute()), found.st_size, found.st_mtime_ns


def _measure(paths: Sequence[str]) -> list[float | None]:
    """Lengths by processes; one that dies or hangs costs the file it was at."""
    groups = {str(n): paths[n : n + AT_ONCE] for n in range(0, len(paths), AT_ONCE)}
    found: dict[str, float | None] = dict.fromkeys(paths)
    workers = max(1, min(usable_cores(), len(groups)))
    with WorkerPool(f"{__name__}:setup", {}, workers=workers, deadline_s=DEADLINE_S, retries=0) as pool:
        alone = [path for group in _ask(pool, groups, found) for path in group]
        for _ in _ask(pool, {str(n): [path] for n, path in enumerate(alone)}, found):
            continue
    return [found[path] for path in paths]


def _ask(
    pool: WorkerPool, groups: Mapping[str, Sequence[str]], found: dict[str, float | None]
) -> Iterator[Sequence[str]]:
    """Put the answers into `found`; the groups that have none come out."""
    if not groups:
        return
    requests: Iterable[Request] = ({"id": name, "paths": list(group)} for name, group in groups.items())
    for outcome in pool.map(requests):
        group = groups[outcome.id]
        seconds = outcome.info.get("seconds")
        if outcome.failure or not isinstance(seconds, list) or len(seconds) != len(group):
            yield group
            continue
        for path, length in zip(group, seconds, strict=True):
            if isinstance(length, int | float) and 0 < length < Limits().duration_s:
                found[path] = float(length)


def _recall(remembered: Path) -> dict[Mark, float | None]:
    """The lengths kept before; a line that cannot be read is forgotten."""
    try:
        lines = remembered.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    known: dict[Mark, float | None] = {}
    for line in lines:
        try:
            path, size, changed, seconds = json.loads(line)
            if isinstance(seconds, int | float | None):
                known[path, size, changed] = seconds
        except (ValueError, TypeError, RecursionError):
            continue
    return known


def _remember(remembered: Path, known: Mapping[Mark, float | None]) -> None:
    try:
        make_folder(remembered.parent)
        with publishing(remembered) as out:
            for mark, seconds in known.items():
                out.write(f"{json.dumps([*mark, seconds])}\n".encode())
    except OSError:  # a memory only: the next call measures again
        return
