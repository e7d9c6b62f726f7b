"""How a stage is run and what is said at its end; plain data, shared by extraction and captioning.

How busy each resource of a run is, to say what limits it; safe to use from several threads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.extract.device.options import check_devices
from caeav.pipeline.store import Quarantined, Recipe, Slice
from caeav.pipeline.store.media_record import MediaChange

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


DEFAULT_DEADLINE_S = 60.0
DEFAULT_MAX_FAILED = "10%"
WHOLE = Slice()


@dataclass(frozen=True)
class RunOptions:
    """How to run; none of it changes a byte of the store.

    `workers`: child processes; `deadline_s`: after so long a clip's process is killed; `retry_failed`: try the
    quarantined clips again; `max_failed`: how many quarantined clips still count as success, a number or `N%` of all.
    `devices`: where torch components compute, see `device/devices.py`; `part`: the slice of a store that is made.
    `changed`: what is done with stored clips whose media is another now, `redo` or `keep`; empty: they are refused.
    `relabel`: whether a data set may lose all of its labels. Raises `CaeavError` for names of devices that cannot be
    any.
    """

    workers: int
    deadline_s: float = DEFAULT_DEADLINE_S
    retry_failed: bool = False
    max_failed: str = DEFAULT_MAX_FAILED
    devices: tuple[str, ...] = ("auto",)
    part: Slice = WHOLE
    changed: str = ""
    relabel: bool = False

    def __post_init__(self) -> None:
        check_devices(self.devices)


@dataclass(frozen=True, slots=True)
class Progress:
    """Clips of this run: `done` of `total`, `failed` among them. `limit`: what limits the run, `decode 97%`."""

    done: int
    failed: int
    total: int
    limit: str = field(default="", compare=False)


@dataclass(frozen=True)
class StageSummary:
    """A finished stage. `due` clips were worked on by this run in `seconds`; `notes` counts what it met, by code.

    `busy_s` are the seconds each stage took in all processes and devices, `limit` is what limited the run; `media` are
    the stored clips that were found with other media and kept or made anew.
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


Report = Callable[[Progress], None]
"""Is told about every clip that is done."""
Remark = Callable[[str], None]
"""Is told, before any work, what was found about the store: that it is resumed, grown, or one of several."""


def unheard(text: str) -> None:
    """A `Remark` for callers who read `StageSummary.remarks` instead."""


def failure_limit(text: str, total: int) -> int:
    """`"25"` -> 25; `"10%"` -> 10 % of `total`, rounded up. Raises `CaeavError` for anything else."""
    number, percent = text.removesuffix("%"), text.endswith("%")
    if not number.isdecimal() or (percent and int(number) > 100):
        raise CaeavError(
            f"{text!r} is no number of clips", hint="give a whole number such as 25, or a share such as 10%"
        )
    return ceil(total * int(number) / 100) if percent else int(number)
