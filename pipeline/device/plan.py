"""Which components of a run's jobs compute on devices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.extract.device.batches import Unit
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.jobs import Job, part_of
from caeav.pipeline.store.layout import shard_clips
from caeav.pipeline.extract.decode_job import in_worker


def make_units(jobs: Sequence[Job]) -> dict[int, list[Unit]]:
    """Job number -> its components for devices."""
    units: dict[int, list[Unit]] = {}
    count = 0
    for number, job in enumerate(jobs):
        units[number] = []
        compute = ComputeOptions(**job.recipe.fields.get("compute", {}))
        for side, part in job.parts.items():
            if not in_worker(part):
                if job.recipe.kind == "tokens" and not isinstance(part, TorchBackbone):
                    raise TypeError(f"backbone {part.name!r} runs on a device but is no TorchBackbone")
                dtype, size = job.recipe.fields["dtype"], shard_clips(job.recipe)
                units[number].append(
                    Unit(
                        count, number, side, cast(Any, part), partial(_again, job, side), compute, dtype, size
                    )
                )
                count += 1
    return units


def _again(job: Job, side: str) -> Any:
    """A second instance of a component, with weights of its own."""
    return part_of(job.recipe, side)
