"""Batches across clips, by fixed rows: a clip's row follows from its place in its shard, not from when it came.

So a clip is computed in the same row of a batch of the same size whether a run was interrupted, resumed or
parallel; rows without a clip are zeros. A batch is launched when the last of its due clips is there, or, to make room,
with the clips it has: the others are computed later, in their own rows of another pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.captioners.base import Captioner
from caeav.pipeline.extract.device.network import convolves
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.jobs import Job
from caeav.pipeline.media.clip import DecodedClip
from caeav.pipeline.store.layout import shard_clips


@dataclass(frozen=True, eq=False)
class Unit:
    """A component that computes on devices for one store; `number` counts the units of a run.

    `load_copy` makes another instance of `part`, for a further device.
    """

    number: int
    store: int
    modality: str
    part: TorchBackbone | Captioner
    load_copy: Callable[[], Any]
    compute: ComputeOptions
    dtype: str
    shard_clips: int

    @property
    def rows(self) -> int:
        """Places of a batch: no more than a shard has clips."""
        return min(self.compute.batch, self.shard_clips)


@dataclass
class Batch:
    """Clips of one unit by row: what a backbone sees in `host` `[rows, T, ...]`, what a captioner sees in `clips`."""

    unit: Unit
    keys: dict[int, str] = field(default_factory=dict)
    host: Tensor | None = None
    clips: dict[int, DecodedClip] = field(default_factory=dict)


_Where = tuple[int, int, int]  # unit, shard, number of the batch in the shard


class Batches:
    """Puts clips into their rows and calls `launch` with every batch. For use from several threads."""

    def __init__(self, launch: Callable[[Batch], None], pinned: bool) -> None:
        self._launch = launch
        self._pinned = pinned
        self._lock = threading.Lock()
        self._due: dict[_Where, int] = {}
        self._open: dict[_Where, Batch] = {}
        self._layout: dict[int, bool] = {}

    def expect(self, unit: Unit, places: Iterable[tuple[int, int]]) -> None:
        """The clips that will be added or missed: (shard, place) each. Called once per unit, before anything else."""
        module = unit.part.module() if isinstance(unit.part, TorchBackbone) else None
        self._layout[unit.number] = module is not None and convolves(module)
        for shard, at in places:
            where = (unit.number, shard, at // unit.rows)
            self._due[where] = self._due.get(where, 0) + 1

    def add(self, unit: Unit, shard: int, at: int, key: str, item: Tensor | DecodedClip) -> None:
        """Put a clip into its row. Raises ValueError for one of another shape; call `miss` for it then."""
        where, row = (unit.number, shard, at // unit.rows), at % unit.rows
        with self._lock:
            batch = self._open.setdefault(where, Batch(unit))
            if isinstance(item, DecodedClip):
                batch.clips[row] = item
            elif batch.host is None:
                batch.host = self._empty(unit, item)
        if isinstance(item, Tensor):
            assert batch.host is not None
            if item.shape != batch.host.shape[1:]:
                raise ValueError(
                    f"the backbone prepared {list(item.shape)} for this clip, {list(batch.host.shape[1:])} for others"
                )
            batch.host[row].copy_(item)
        self._settle(where, batch, row, key)

    def miss(self, unit: Unit, shard: int, at: int) -> None:
        """A clip will never be added."""
        self._settle((unit.number, shard, at // unit.rows), None, 0, "")

    def _settle(self, where: _Where, batch: Batch | None, row: int, key: str) -> None:
        with self._lock:
            if batch is not None:
                batch.keys[row] = key
            self._due[where] -= 1
            ready = self._open.pop(where, None) if self._due[where] == 0 else None
        if ready is not None and ready.keys:
            self._launch(ready)

    def flush(self) -> bool:
        """Launch incomplete batches; only while nobody adds. False when there are none."""
        with self._lock:
            ready = [batch for batch in self._open.values() if batch.keys]
            self._open.clear()
        for batch in ready:
            self._launch(batch)
        return bool(ready)

    def _empty(self, unit: Unit, item: Tensor) -> Tensor:
        """Zeros `[rows, T, ...]`; frames `[T, C, H, W]` in the layout best for convolutions, channels last."""
        if self._layout[unit.number] and item.dim() == 4:
            t, c, h, w = item.shape
            laid = torch.zeros((unit.rows, t, h, w, c), dtype=item.dtype, pin_memory=self._pinned)
            return laid.permute(0, 1, 4, 2, 3)
        return torch.zeros((unit.rows, *item.shape), dtype=item.dtype, pin_memory=self._pinned)


def make_units(jobs: Sequence[Job]) -> dict[int, list[Unit]]:
    """Job number -> its components for devices."""
    units: dict[int, list[Unit]] = {}
    count = 0
    for number, job in enumerate(jobs):
        fields = job.recipe.fields
        compute = ComputeOptions(**fields.get("compute", {}))
        units[number] = []
        for modality, part in job.device_parts.items():
            if not isinstance(part, job.device_class):
                raise TypeError(f"{part.name!r} runs on a device but is no {job.device_class.__name__}")
            load_copy = partial(job.load_part, job.recipe, modality)
            unit = Unit(
                count, number, modality, part, load_copy, compute, fields["dtype"], shard_clips(job.recipe)
            )
            units[number].append(unit)
            count += 1
    return units
