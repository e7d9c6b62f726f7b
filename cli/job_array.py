"""`--slice auto`: which slice this task of a job array makes, as the batch system says in the environment.

SLURM, SGE and LSF tell their tasks where the array begins and ends. PBS tells the index alone, so there the count is
given: `auto/8`, for tasks numbered 1 to 8. That form also says which slice one task is that runs again by itself.
An array that is not one unbroken range is refused: a wrong count would cut the store elsewhere than the other tasks do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.store.slices import Slice

_AUTO = re.compile(r"auto(?:/(\d{1,6}))?")
_NUMBER = re.compile(r"\d{1,9}")
BY_HAND = "write the slice yourself: --slice 3/8 is the third of eight"


@dataclass(frozen=True)
class BatchSystem:
    """The variables of one batch system, empty for what it does not tell; `absent` is its index outside of an array."""

    name: str
    index: str
    first: str = ""
    last: str = ""
    count: str = ""
    step: str = ""
    absent: str = ""


SYSTEMS = (
    BatchSystem(
        "SLURM",
        "SLURM_ARRAY_TASK_ID",
        "SLURM_ARRAY_TASK_MIN",
        "SLURM_ARRAY_TASK_MAX",
        "SLURM_ARRAY_TASK_COUNT",
        "SLURM_ARRAY_TASK_STEP",
    ),
    BatchSystem("PBS", "PBS_ARRAY_INDEX"),
    BatchSystem("Torque", "PBS_ARRAYID"),
    BatchSystem("LSF", "LSB_JOBINDEX", last="LSB_JOBINDEX_END", step="LSB_JOBINDEX_STEP", absent="0"),
    BatchSystem(
        "SGE", "SGE_TASK_ID", "SGE_TASK_FIRST", "SGE_TASK_LAST", step="SGE_TASK_STEPSIZE", absent="undefined"
    ),
)


def is_auto(text: str) -> bool:
    """Whether the value of `--slice` leaves the choice to the batch system."""
    return text.startswith("auto")


def slice_of_task(text: str, environ: Mapping[str, str]) -> tuple[Slice, str]:
    """`auto` or `auto/N` in this environment -> the slice, and the variables that decided it.

    Raises `CaeavError` when there is no job array, when several systems name one, or when it is not one range.
    """
    match = _AUTO.fullmatch(text)
    if not match:
        raise CaeavError(f"{text!r} is not a slice", hint="give auto, auto/N, or number/count as 1/4")
    found = [system for system in SYSTEMS if environ.get(system.index, system.absent) != system.absent]
    if len(found) != 1:
        named = ", ".join(f"{system.index}={environ[system.index]}" for system in found)
        raise CaeavError(
            f"--slice {text}: several batch systems name a task: {named}"
            if found
            else f"--slice {text}: this is no task of a job array; none of "
            f"{', '.join(system.index for system in SYSTEMS)} is set",
            hint=f"submit the command as a job array (sbatch --array=1-8), or {BY_HAND}",
        )
    [system] = found
    said: dict[str, int] = {}
    for name in (system.index, system.first, system.last, system.count, system.step):
        if name and name in environ:
            said[name] = _number(name, environ[name])
    index = said[system.index]
    if match[1]:
        return _slice(index, int(match[1]), {system.index: index}, f"tasks numbered 1 to {match[1]}")
    first, count = _range(system, said)
    number = index - first + 1
    if count == 1:
        raise CaeavError(
            f"{_shown(said)}: an array of one task would make the whole store",
            hint=f"if it is one task of a larger array that runs again, name its slice: --slice auto/N or {BY_HAND}",
        )
    return _slice(number, count, said, f"an array of {count} tasks that begins at {first}")


def _range(system: BatchSystem, said: Mapping[str, int]) -> tuple[int, int]:
    """The first index of the array and the number of its tasks; raises `CaeavError` unless it is one unbroken range."""
    if not (system.count or system.last):
        raise CaeavError(
            f"{_shown(said)}: {system.name} does not say how many tasks the array has",
            hint="number the tasks 1 to N and give --slice auto/N",
        )
    needed = [name for name in (system.first, system.count or system.last) if name and name not in said]
    if needed:
        raise CaeavError(f"{_shown(said)}: {' and '.join(needed)} is not set", hint=BY_HAND)
    first = said[system.first] if system.first else 1
    count = said[system.count] if system.count else said[system.last] - first + 1
    unbroken = said.get(system.step, 1) == 1 and said.get(system.last, first + count - 1) == first + count - 1
    if not unbroken:
        raise CaeavError(
            f"{_shown(said)}: the array has gaps or a step other than 1",
            hint=f"submit one range (as 1-8), and run single tasks again with --slice auto/N; or {BY_HAND}",
        )
    return first, count


def _slice(number: int, count: int, said: Mapping[str, int], what: str) -> tuple[Slice, str]:
    if not 1 <= number <= count:
        raise CaeavError(f"{_shown(said)}: outside of {what}", hint=f"number the tasks 1 to N, or {BY_HAND}")
    return Slice(number, count), _shown(said)


def _number(name: str, value: str) -> int:
    if not _NUMBER.fullmatch(value.strip()):
        raise CaeavError(f"{name}={value!r} is not a whole number", hint=BY_HAND)
    return int(value)


def _shown(said: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in said.items())
