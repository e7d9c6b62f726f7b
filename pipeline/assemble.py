"""From what comes back of one clip to the records of the stores that want it.

A child process brings what is cheap, and pictures and sound for what computes on devices; when the last part of a
record has come, the record is settled. A part that fails costs that store this clip, and no other store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from caeav.pipeline.decode.jobs import Outcome
from caeav.pipeline.media.clip import DecodedClip, Note
from caeav.pipeline.extract.jobs import Job, sampling_of
from caeav.pipeline.store import Quarantined, Record
from caeav.pipeline.store.dtypes import stored
from caeav.pipeline.extract.decode_job import FRAMES, in_worker, wave_name

if TYPE_CHECKING:  # a run without components for devices needs no torch
    from caeav.pipeline.extract.device.batches import Unit

COMPUTE = "compute"
"""The stage that quarantine names when a component fails."""

Settle = Callable[[int, str, Record | Quarantined], None]
"""Takes the number of a job, a key, and what became of the clip in its store."""


@dataclass
class _Parts:
    """What has come of one record, and of which modalities something is still to come."""

    arrays: dict[str, NDArray[Any]]
    info: dict[str, Any]
    awaited: set[str]
    failed: str = ""
    texts: dict[str, str] = field(default_factory=dict)


class Assembly:
    """Records in the making, of all jobs of a run. For use from several threads."""

    def __init__(self, jobs: Sequence[Job], settle: Settle) -> None:
        self._jobs = jobs
        self._settle = settle
        self._away = [tuple(side for side, part in job.parts.items() if not in_worker(part)) for job in jobs]
        self._open: dict[tuple[int, str], _Parts] = {}
        self._lock = threading.Lock()

    def arrived(self, outcome: Outcome, jobs: Sequence[int]) -> list[int]:
        """Take what a child process brought for `jobs`; returns those of which parts are still to come."""
        key, open_jobs = outcome.id, []
        taps: dict[int, dict[str, NDArray[Any]]] = {job: {} for job in jobs}
        for name, array in outcome.arrays.items():
            number, slash, tap = name.partition("/")
            if slash:
                taps[int(number)][tap] = array
        for job in jobs:
            fields = self._jobs[job].recipe.fields
            failed = outcome.info["failed"].get(str(job))
            if failed is not None:
                self._settle(job, key, Quarantined(key, COMPUTE, " ".join(failed.split()), 1))
                continue
            parts = _Parts(
                stored(taps[job], fields["dtype"]),
                dict(outcome.info["clips"][str(fields["sampling"]["rate_hz"])]),
                set(self._away[job]),
                texts=dict(outcome.info["texts"][str(job)]),
            )
            if parts.awaited:
                with self._lock:
                    self._open[job, key] = parts
                open_jobs.append(job)
            else:
                self._finish(job, key, parts)
        return open_jobs

    def made(self, unit: Unit, key: str, result: object, facts: Mapping[str, object]) -> None:
        """Take what a device made of a clip, or the exception that says why nothing."""
        with self._lock:
            parts = self._open[unit.store, key]
            parts.awaited.discard(unit.side)
            done = not parts.awaited
            if done:
                del self._open[unit.store, key]
            if isinstance(result, Exception):
                parts.failed = parts.failed or _reason(result)
            elif isinstance(result, str):
                parts.texts[unit.side] = result
            elif isinstance(result, Mapping):
                parts.arrays |= result
            parts.info["facts"] = {
                **parts.info["facts"],
                "device": {**parts.info["facts"].get("device", {}), **facts},
            }
        if done:
            self._finish(unit.store, key, parts)

    def _finish(self, job: int, key: str, parts: _Parts) -> None:
        if parts.failed:
            self._settle(job, key, Quarantined(key, COMPUTE, parts.failed, 1))
            return
        info = dict(parts.info)
        if self._jobs[job].recipe.kind == "captions":
            info["texts"] = {side: parts.texts[side] for side in self._jobs[job].parts}
        self._settle(job, key, Record(key, parts.arrays, info))


def decoded(outcome: Outcome, job: Job) -> DecodedClip:
    """The clip as decoded for a job, from what a child process sent back."""
    rate_hz = sampling_of(job.recipe).rate_hz
    info = outcome.info["clips"][str(rate_hz)]
    return DecodedClip(
        frames=outcome.arrays.get(FRAMES),
        wave=outcome.arrays.get(wave_name(rate_hz)),
        frames_ok=tuple(info["frames_ok"]),
        audio_ok=tuple(info["audio_ok"]),
        notes=[Note(note["code"], note["detail"]) for note in info["notes"]],
        facts=dict(info["facts"]),
        key=outcome.id,
    )


def _reason(error: Exception) -> str:
    """An exception in one line; those whose text is the whole reason are given without their type."""
    text = " ".join(str(error).split())
    return text if type(error).__name__ == "ComputeFailed" else f"{type(error).__name__}: {text}"
