"""How busy each resource of a run is, to say what limits it; safe to use from several threads."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

STAGES = ("decode", "prepare", "backbone", "write")


class Meter:
    """Busy seconds by stage. `resources` maps what can be busy (worker processes, devices, ...) to how many there are.

    Several stages may share a resource: cheap backbones compute in the processes that decode.
    """

    def __init__(self, resources: Mapping[str, int]) -> None:
        self._resources = dict(resources)
        self._busy: dict[tuple[str, str], float] = defaultdict(float)
        self._lock = threading.Lock()
        self._began_s = time.monotonic()

    def add(self, resource: str, stage: str, seconds: float) -> None:
        """`seconds` of one unit of a resource went into a stage."""
        with self._lock:
            self._busy[resource, stage] += seconds

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
            return {stage: sum(s for (_, at), s in self._busy.items() if at == stage) for stage in STAGES}

    def shares(self) -> dict[str, float]:
        """How much of the time each resource was busy, 0..1."""
        passed_s = max(time.monotonic() - self._began_s, 1e-9)
        with self._lock:
            return {
                name: min(1.0, sum(s for (at, _), s in self._busy.items() if at == name) / (passed_s * count))
                for name, count in self._resources.items()
            }

    def limit(self) -> str:
        """What limits the run: the busiest resource, by its longest stage, as `decode 97 %`; empty at the start."""
        shares = self.shares()
        name = max(shares, key=lambda each: shares[each], default="")
        with self._lock:
            stages = {stage: s for (at, stage), s in self._busy.items() if at == name}
        return f"{max(stages, key=lambda each: stages[each])} {shares[name]:.0%}" if stages else ""
