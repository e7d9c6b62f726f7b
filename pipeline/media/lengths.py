"""How long media files are: read from their headers in killable child processes, and remembered in the home.

Where a file is cut into many clips, its length decides which clips there are, before anything is decoded. A header may
promise more than there is; decoding notes that later. Files whose header gives no length, and those that may be joined,
are read through packet by packet, without decoding. A length stays valid while size and modification time do,
so only the first look at a large folder takes long.
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
from caeav.pipeline.media.workers.pool import Outcome, Request, WorkerPool

FILE = "lengths.jsonl"
AT_ONCE = 32
"""Files per request; if it fails, each of them gets a request of its own."""
DEADLINE_S = 120.0

Measure = Callable[[Sequence[str]], Sequence[float | None]]
Identity = tuple[str, int, int]
"""What a length is remembered for: absolute path, bytes, modification time in ns."""


def lengths_in(home: Home, measure: Measure | None = None) -> Lengths:
    """A function that gives the seconds of media files, None where they cannot be told (no media, damaged, missing).

    Lengths are kept in `home`; where that cannot be read or written, they are measured again. `measure` gives those of
    paths that are not known yet, by default from the files there.
    """

    def lengths(paths: Sequence[Path]) -> list[float | None]:
        known = _load_known(home.root / FILE)
        files = [_identity(path) for path in paths]
        new = list(dict.fromkeys(file for file in files if file is not None and file not in known))
        if new:
            known |= dict(zip(new, (measure or _measure)([path for path, _, _ in new]), strict=True))
            _save_known(home.root / FILE, known)
        return [None if file is None else known[file] for file in files]

    return lengths


def length_s(path: str, limits: Limits | None = None) -> float:
    """Seconds of one media file; raises `DecodeError` when they cannot be told."""
    from caeav.pipeline.media.clock import walk_packets
    from caeav.pipeline.media.probe import WITHOUT_LENGTH, open_media, probe

    limits = limits or Limits()
    facts = probe(path, limits)
    walk = walk_packets(facts, limits)
    if walk is not None and walk.parts > 1:
        return walk.end_s
    if facts.end_s is not None and facts.container not in WITHOUT_LENGTH:
        return facts.end_s
    end_s, packets = 0.0, 0
    with open_media(path, limits) as container:
        for packet in container.demux():
            packets += 1
            limits.check("number of packets", packets, limits.packets)
            if packet.pts is not None and packet.stream.type in ("video", "audio"):
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    if end_s <= facts.origin_s:
        raise DecodeError(f"{Path(path).name} holds no packet with a time")
    return end_s - facts.origin_s


def setup(settings: Mapping[str, Any]) -> Callable[[Request], tuple[dict[str, Any], dict[str, Any]]]:
    """The child's job: the lengths of `request["paths"]`, None for each that cannot be told."""
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


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return str(path.absolute()), found.st_size, found.st_mtime_ns


def _measure(paths: Sequence[str]) -> list[float | None]:
    """Measure in child processes; one that dies or hangs costs only the file it was reading."""
    groups = {str(n): paths[n : n + AT_ONCE] for n in range(0, len(paths), AT_ONCE)}
    found: dict[str, float | None] = dict.fromkeys(paths)
    workers = max(1, min(usable_cores(), len(groups)))
    with measuring(workers) as pool:
        alone = [path for group in _measure_groups(pool, groups, found) for path in group]
        for _ in _measure_groups(pool, {str(n): [path] for n, path in enumerate(alone)}, found):
            continue
    return [found[path] for path in paths]


def measuring(workers: int) -> WorkerPool:
    """Child processes that answer requests with `paths`: `seconds`, of each of them."""
    return WorkerPool(f"{__name__}:setup", {}, workers=workers, deadline_s=DEADLINE_S, retries=0)


def seconds_of(outcome: Outcome, files: int) -> list[float | None] | None:
    """What a child said of so many files, None for a length that cannot be; None for no such answer."""
    seconds = outcome.info.get("seconds")
    if outcome.failure or not isinstance(seconds, list) or len(seconds) != files:
        return None
    most_s = Limits().duration_s
    return [float(x) if isinstance(x, int | float) and 0 < x < most_s else None for x in seconds]


def _measure_groups(
    pool: WorkerPool, groups: Mapping[str, Sequence[str]], found: dict[str, float | None]
) -> Iterator[Sequence[str]]:
    """Put the lengths into `found`; yields the groups that failed."""
    if not groups:
        return
    requests: Iterable[Request] = ({"id": name, "paths": list(group)} for name, group in groups.items())
    for outcome in pool.map(requests):
        group = groups[outcome.id]
        seconds = seconds_of(outcome, len(group))
        if seconds is None:
            yield group
        else:
            found.update(zip(group, seconds, strict=True))


def _load_known(remembered: Path) -> dict[Identity, float | None]:
    """The lengths kept in the home; lines that cannot be read are skipped."""
    try:
        lines = remembered.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    known: dict[Identity, float | None] = {}
    for line in lines:
        try:
            path, size, changed, seconds = json.loads(line)
            if isinstance(seconds, int | float | None):
                known[path, size, changed] = seconds
        except (ValueError, TypeError, RecursionError):
            continue
    return known


def _save_known(remembered: Path, known: Mapping[Identity, float | None]) -> None:
    try:
        make_folder(remembered.parent)
        with publishing(remembered) as out:
            for file, seconds in known.items():
                out.write(f"{json.dumps([*file, seconds])}\n".encode())
    except OSError:  # only a cache: the next call measures again
        return
