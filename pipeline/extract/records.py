"""From the replies about one clip to the records of the stores that want it.

A child process sends what computes beside the decoder, and the decoded clip for what computes on devices. A record is
settled when its last part is there. A part that fails costs that store this clip, and no other store.

Hostile media may take over the decoder in a child. Its messages are plain data already (`wire.py`);
`validate_reply` compares names, shapes and facts with the recipes before anything is used, so that a wrong reply costs
only its own clip. Shapes: `T` segments, `L` tokens, `C` channels.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.extract.decode_job import FRAMES, array_name, wave_name
from caeav.pipeline.extract.jobs import Job
from caeav.pipeline.media.clip import DecodedClip, Note
from caeav.pipeline.media.workers.pool import Outcome
from caeav.pipeline.store import Quarantined, Record
from caeav.pipeline.store.dtypes import stored

if TYPE_CHECKING:
    from caeav.pipeline.extract.device.batches import Unit

COMPUTE = "compute"
"""The stage that quarantine names when a component fails."""

Settle = Callable[[int, str, Record | Quarantined], None]
"""Takes the number of a job, a key, and what became of the clip in its store."""


class ComputeFailed(Exception):
    """Why a network gave nothing for a clip; the text is the whole reason."""


def validate_reply(outcome: Outcome, jobs: Mapping[int, Job]) -> str:
    """What is wrong with the arrays and facts that came for `jobs`, by their numbers; empty when nothing is."""
    try:
        _check(outcome.info, dict(outcome.arrays), jobs)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        return (
            f"its process sent an invalid reply: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
    return ""


def decoded(outcome: Outcome, job: Job) -> DecodedClip:
    """The clip as decoded for a job, from the reply of a child process."""
    rate_hz = job.sampling.rate_hz
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


class RecordBuilder:
    """Puts together the records of all jobs of a run; for use from several threads."""

    def __init__(self, jobs: Sequence[Job], settle: Settle) -> None:
        self._jobs = jobs
        self._settle = settle
        self._on_devices = [tuple(job.device_parts) for job in jobs]
        self._open: dict[tuple[int, str], _Parts] = {}
        self._lock = threading.Lock()

    def add_reply(self, outcome: Outcome, jobs: Sequence[int]) -> list[int]:
        """Take a valid reply for `jobs`; returns the jobs whose records still wait for devices."""
        key, waiting = outcome.id, []
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
                dict(outcome.info["texts"][str(job)]),
                set(self._on_devices[job]),
            )
            if parts.awaited:
                with self._lock:
                    self._open[job, key] = parts
                waiting.append(job)
            else:
                self._finish(job, key, parts)
        return waiting

    def add_result(self, unit: Unit, key: str, result: object, facts: Mapping[str, object]) -> None:
        """Take what a device made of a clip, or the exception that says why it made nothing."""
        with self._lock:
            parts = self._open[unit.store, key]
            parts.awaited.discard(unit.modality)
            done = not parts.awaited
            if done:
                del self._open[unit.store, key]
            if isinstance(result, Exception):
                parts.failed = parts.failed or _reason(result)
            elif isinstance(result, str):
                parts.texts[unit.modality] = result
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
        else:
            record = self._jobs[job].build_record(key, parts.arrays, parts.info, parts.texts)
            self._settle(job, key, record)


@dataclass
class _Parts:
    """The parts of one record so far, and the modalities that devices still owe."""

    arrays: dict[str, NDArray[Any]]
    info: dict[str, Any]
    texts: dict[str, str]
    awaited: set[str] = field(default_factory=set)
    failed: str = ""


def _reason(error: Exception) -> str:
    """An exception in one line; the text of `ComputeFailed` is the whole reason."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ComputeFailed) else f"{type(error).__name__}: {text}"


def _check(info: Mapping[str, Any], arrays: dict[str, NDArray[Any]], jobs: Mapping[int, Job]) -> None:
    """Raise for what is wrong; what has been checked is removed from `arrays`."""
    json.dumps(info, allow_nan=False)
    if not all(0 <= info["spent"][part] < math.inf for part in ("decode", "compute")):
        raise ValueError(f"seconds spent: {info['spent']!r}")
    media: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number, job in jobs.items():
        sampling = job.sampling
        _check_clip(info["clips"][str(sampling.rate_hz)], sampling.segments)
        media[wave_name(sampling.rate_hz)] = ("float32", (sampling.samples,))
        failed = info["failed"].get(str(number))
        if failed is not None:
            _check_text(failed)
            continue
        texts = info["texts"][str(number)]
        if not isinstance(texts, dict):
            raise TypeError(f"texts: {texts!r}")
        for modality in job.reply_texts():
            _check_text(texts[modality])
        for tap, shape in job.reply_arrays().items():
            _check_array(arrays.pop(array_name(number, tap)), tap, "float32", shape)
    frames = arrays.pop(FRAMES, None)
    if frames is not None:
        segments = next(iter(jobs.values())).sampling.segments
        _check_array(frames, FRAMES, "uint8", (segments, *frames.shape[1:3], 3))  # [T, H, W, 3]
    for name, array in arrays.items():
        _check_array(array, name, *media[name])


def _check_clip(clip: Mapping[str, Any], segments: int) -> None:
    for name in ("frames_ok", "audio_ok"):
        if len(clip[name]) != segments or not all(type(ok) is bool for ok in clip[name]):
            raise ValueError(f"{name}: {clip[name]!r}")
    for note in clip["notes"]:
        _check_text(note["code"])
        _check_text(note["detail"])
    if not isinstance(clip["facts"], dict) or "device" in clip["facts"]:  # that is for the parent to say
        raise ValueError(f"facts: {clip['facts']!r}")


def _check_text(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")


def _check_array(array: NDArray[Any], name: str, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape or not array.size:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, it must be {dtype} {list(shape)}")
