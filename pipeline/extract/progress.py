"""What a run of stage one reports: its progress, what limits it, and a summary at the end."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from caeav.pipeline.store import Quarantined, Recipe
from caeav.pipeline.store.media_record import MediaChange

STAGES = ("decode", "prepare", "backbone", "write")


@dataclass(frozen=True, slots=True)
class Progress:
    """Clips of this run: `done` of `total`, `failed` among them. `limit`: what limits the run, `decode 97%`."""

    done: int
    failed: int
    total: int
    limit: str = field(default="", compare=False)


OnClip = Callable[[Progress], None]
"""Called after every clip that is done."""
Remark = Callable[[str], None]
"""Called with what the user should know: that a store is resumed, or grown, or one of several."""


@dataclass(frozen=True)
class StageSummary:
    """What became of one store. `due` clips were worked on by this run in `seconds`; `notes` counts the notes on them.

    `busy_s`: seconds of work by stage, all processes and devices together; `limit`: what limited the run; `media`: the
    stored clips whose media had changed, and which were kept or made anew.
    """

    path: Path
    recipe: Recipe
    stored: int
    expected: int
    bytes: int
    quarantined: tuple[Quarantined, ...]
    due: int
    seconds: float
    notes: Mapping[str, int]
    remarks: tuple[str, ...]
    max_failed: int
    busy_s: Mapping[str, float] = field(default_factory=dict)
    limit: str = ""
    media: tuple[MediaChange, ...] = ()

    @property
    def too_many_failed(self) -> bool:
        """Whether more clips are quarantined than was allowed."""
        return len(self.quarantined) > self.max_failed

    def reasons(self) -> dict[str, int]:
        """Quarantined clips by stage and kind of reason (its text up to the first colon), most frequent first."""
        kinds = Counter(f"{q.stage}: {q.reason.partition(':')[0]}" for q in self.quarantined)
        return dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0])))


class Meter:
    """Busy seconds by stage, counted from several threads. `resources`: how many there are of what can be busy.

    Several stages may share a resource: cheap backbones compute in the processes that decode.
    """

    def __init__(self, resources: Mapping[str, int]) -> None:
        self._resources = dict(resources)
        self._busy: dict[tuple[str, str], float] = defaultdict(float)
        self._lock = threading.Lock()
        self._began_s = time.monotonic()

    def add(self, resource: str, stage: str, seconds: float) -> None:
        """Count `seconds` of one unit of a resource for a stage."""
        with self._lock:
            self._busy[resource, stage] += seconds

    def resize(self, resources: Mapping[str, int]) -> None:
        """From now on there are so many of what can be busy."""
        with self._lock:
            self._resources = dict(resources)

    def spent(self) -> dict[tuple[str, str], float]:
        """Busy seconds so far, by resource and stage."""
        with self._lock:
            return dict(self._busy)

    @contextmanager
    def busy(self, resource: str, stage: str) -> Iterator[None]:
        """Count the time spent inside."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(resource, stage, time.perf_counter() - began)

    def seconds(self) -> dict[str, float]:
        """Busy seconds by stage, all resources together."""
        with self._lock:
            stages = dict.fromkeys((*STAGES, *(stage for _, stage in self._busy)))
            return {stage: sum(s for (_, at), s in self._busy.items() if at == stage) for stage in stages}

    def shares(self) -> dict[str, float]:
        """How much of the time each resource was busy, 0..1."""
        passed_s = max(time.monotonic() - self._began_s, 1e-9)
        with self._lock:
            return {
                name: min(1.0, sum(s for (at, _), s in self._busy.items() if at == name) / (passed_s * count))
                for name, count in self._resources.items()
            }

    def limit(self) -> str:
        """What limits the run: the busiest resource, by its longest stage, as `decode 97%`; empty at the start."""
        shares = self.shares()
        name = max(shares, key=lambda each: shares[each], default="")
        with self._lock:
            stages = {stage: s for (at, stage), s in self._busy.items() if at == name}
        return f"{max(stages, key=lambda each: stages[each])} {shares[name]:.0%}" if stages else ""
