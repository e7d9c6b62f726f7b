"""What runs inside a killable child process: decode one clip, once, for all the stores that want it.

`setup` is called once a child with JSON settings and returns the function that answers requests; nothing here
touches a store. Components that are cheap compute here; for those that run on a device the decoded pictures and
sound are sent back. A missing modality becomes silence or black frames and a note, so the clip is kept and told.
Shapes: `T` segments, `L` tokens.

Is what a child process sent back an answer to what it was asked? Looked at before anything in it is used.

A child belongs to whatever breaks into its decoder. Its messages are plain data already (`wire.py`); here names,
shapes and facts are held against the recipes, so that a wrong answer costs its own clip. Shapes: `T` segments,
`L` tokens, `C` channels.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.backbones.base import MediaBackbone
from caeav.pipeline.captioners.base import Captioner
from caeav.pipeline.extract.jobs import Job, decoder_of, part_of, sampling_of
from caeav.pipeline.media.clip import DecodedClip, Note, Sampling
from caeav.pipeline.media.workers.pool import Outcome
from caeav.pipeline.store.recipe import Recipe

BLACK_SIDE = 64
FRAMES = "frames"
"""Name under which the decoded frames come back: uint8 `[T, H, W, 3]`, absent when there are none."""

Answer = tuple[dict[str, NDArray[Any]], dict[str, Any]]


def wave_name(rate_hz: int) -> str:
    """Name under which the decoded sound comes back: float32 `[samples]`, absent when there is none."""
    return f"wave@{rate_hz}"


def array_name(job: int, tap: str) -> str:
    """Name under which a tap of one of the jobs comes back, float32 `[T, L, C]`."""
    return f"{job}/{tap}"


def in_worker(part: MediaBackbone | Captioner) -> bool:
    """Whether a component computes beside the decoder."""
    return part.runs_in == "worker"


def worker_settings(jobs: Sequence[Job], keep_media: bool = False) -> dict[str, Any]:
    """Settings for `setup`: the recipes, what of each is computed here, and what is wanted back as decoded."""
    return {
        "jobs": [
            {
                "kind": job.recipe.kind,
                "name": job.recipe.name,
                "fields": dict(job.recipe.fields),
                "here": [modality for modality, part in job.parts.items() if in_worker(part)],
                "there": [modality for modality, part in job.parts.items() if not in_worker(part)],
            }
            for job in jobs
        ],
        "keep_media": keep_media,
    }


@dataclass(frozen=True)
class _Task:
    """One of the jobs, as far as it is done here; `there` are the modalities that are computed elsewhere."""

    number: int
    recipe: Recipe
    sampling: Sampling
    here: Mapping[str, MediaBackbone | Captioner]
    there: frozenset[str]


def setup(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Answer]:
    """Build the components that compute here; the function returned answers `{"path", "start_s", "jobs"}`.

    `jobs` are the numbers of those that want the clip. An answer's info has `clips` (what is known of the clip, by
    sample rate), `texts` and `failed` (by job), and `spent` (seconds). Raises `CaeavError` when components are no
    longer what the recipes say.
    """
    tasks = [_task(number, job) for number, job in enumerate(settings["jobs"])]
    decoder = decoder_of(tasks[0].recipe)

    def answer(request: Mapping[str, Any]) -> Answer:
        began = time.perf_counter()
        wanted = [tasks[number] for number in request["jobs"]]
        samplings = {task.sampling.rate_hz: task.sampling for task in wanted}
        found = decoder.decode_each(request["path"], request["start_s"], list(samplings.values()))
        clips = {rate: _told(clip) for rate, clip in zip(samplings, found, strict=True)}
        decoded = time.perf_counter()
        arrays: dict[str, NDArray[Any]] = {}
        texts: dict[str, dict[str, str]] = {}
        failed: dict[str, str] = {}
        for task in wanted:
            clip = clips[task.sampling.rate_hz]
            try:
                taps, written = computed(task.recipe.kind, task.here, clip, task.sampling)
            except Exception as error:  # noqa: BLE001 - a component's mistake costs this clip in this store
                failed[str(task.number)] = f"{type(error).__name__}: {error}"
                continue
            arrays |= {array_name(task.number, name): x for name, x in taps.items()}
            texts[str(task.number)] = written
            arrays |= _raw(task, clip)
        if settings["keep_media"]:
            rate, clip = next(iter(clips.items()))
            kept = {FRAMES: clip.frames, wave_name(rate): clip.wave}
            arrays |= {name: array for name, array in kept.items() if array is not None}
        return arrays, {
            "clips": {str(rate): record_info(clip) for rate, clip in clips.items()},
            "texts": texts,
            "failed": failed,
            "spent": {"decode": decoded - began, "compute": time.perf_counter() - decoded},
        }

    return answer


def _task(number: int, job: Mapping[str, Any]) -> _Task:
    recipe = Recipe(job["kind"], job["name"], job["fields"])
    here = {modality: part_of(recipe, modality) for modality in job["here"]}
    return _Task(number, recipe, sampling_of(recipe), here, frozenset(job["there"]))


def _told(clip: DecodedClip) -> DecodedClip:
    """See that a modality that is missing is said so in the notes."""
    said = {note.code for note in clip.notes}
    missing = [Note("no_video", "the file has no video: black frames")] if clip.frames is None else []
    missing += [Note("no_audio", "the file has no sound: silence")] if clip.wave is None else []
    return replace(clip, notes=[*clip.notes, *(note for note in missing if note.code not in said)])


def _raw(task: _Task, clip: DecodedClip) -> dict[str, NDArray[Any]]:
    """What components elsewhere need: a captioner may look at both, whatever it writes about."""
    both = task.recipe.kind == "captions" and bool(task.there)
    raw: dict[str, NDArray[Any]] = {}
    if clip.frames is not None and (both or "visual" in task.there):
        raw[FRAMES] = clip.frames
    if clip.wave is not None and (both or "audio" in task.there):
        raw[wave_name(task.sampling.rate_hz)] = clip.wave
    return raw


def frames_of(clip: DecodedClip, sampling: Sampling) -> NDArray[np.uint8]:
    """The clip's frames, black ones where there are none."""
    if clip.frames is not None:
        return clip.frames
    return np.zeros((sampling.segments, BLACK_SIDE, BLACK_SIDE, 3), dtype=np.uint8)


def windows_of(clip: DecodedClip, sampling: Sampling) -> NDArray[np.float32]:
    """The clip's sound in windows `[T, samples]`, silence where there is none."""
    wave = np.zeros(sampling.samples, dtype=np.float32) if clip.wave is None else clip.wave
    if wave.shape != (sampling.samples,):
        raise ValueError(f"the decoder gave {wave.shape[0]} samples instead of {sampling.samples}")
    return wave.reshape(sampling.segments, sampling.segment_samples)


def computed(
    kind: str, parts: Mapping[str, MediaBackbone | Captioner], clip: DecodedClip, sampling: Sampling
) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """What components make of one clip: all taps `[T, L, C]`, or a text a modality."""
    if kind == "captions":
        return {}, {modality: cast(Captioner, part).caption([clip])[0] for modality, part in parts.items()}
    taps: dict[str, NDArray[np.float32]] = {}
    for modality, part in parts.items():
        seen = frames_of(clip, sampling) if modality == "visual" else windows_of(clip, sampling)
        taps |= cast(MediaBackbone, part).tokens([seen])[0]
    return taps, {}


def record_info(clip: DecodedClip) -> dict[str, Any]:
    """What the record says besides its arrays; JSON values."""
    return {
        "frames_ok": [bool(ok) for ok in clip.frames_ok],
        "audio_ok": [bool(ok) for ok in clip.audio_ok],
        "notes": [asdict(note) for note in clip.notes],
        "facts": dict(clip.facts),
    }


def why_no_answer(outcome: Outcome, jobs: Mapping[int, Job]) -> str:
    """What is wrong with the arrays and facts that came for `jobs`, by their numbers; empty when nothing is."""
    try:
        _check(outcome.info, dict(outcome.arrays), jobs)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        return f"its process sent what is no answer: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


def _check(info: Mapping[str, Any], arrays: dict[str, NDArray[Any]], jobs: Mapping[int, Job]) -> None:
    """Raise for what is wrong; `arrays` lose what has been looked at."""
    json.dumps(info, allow_nan=False)
    if not all(0 <= info["spent"][part] < math.inf for part in ("decode", "compute")):
        raise ValueError(f"seconds spent: {info['spent']!r}")
    raw: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number, job in jobs.items():
        sampling = sampling_of(job.recipe)
        _check_clip(info["clips"][str(sampling.rate_hz)], sampling.segments)
        raw[wave_name(sampling.rate_hz)] = ("float32", (sampling.samples,))
        failed = info["failed"].get(str(number))
        if failed is not None:
            _text(failed)
            continue
        texts = info["texts"][str(number)]
        if not isinstance(texts, dict):
            raise TypeError(f"texts: {texts!r}")
        for modality in [modality for modality, part in job.parts.items() if in_worker(part)]:
            if job.recipe.kind == "captions":
                _text(texts[modality])
                continue
            for tap in job.recipe.fields[modality]["taps"]:
                array = arrays.pop(array_name(number, tap["name"]))  # [T, L, C]
                _is(array, tap["name"], "float32", (sampling.segments, tap["tokens"], tap["channels"]))
    frames = arrays.pop(FRAMES, None)
    if frames is not None:
        segments = sampling_of(next(iter(jobs.values())).recipe).segments
        _is(frames, FRAMES, "uint8", (segments, *frames.shape[1:3], 3))  # [T, H, W, 3]
    for name, array in arrays.items():
        _is(array, name, *raw[name])


def _check_clip(clip: Mapping[str, Any], segments: int) -> None:
    for name in ("frames_ok", "audio_ok"):
        if len(clip[name]) != segments or not all(type(ok) is bool for ok in clip[name]):
            raise ValueError(f"{name}: {clip[name]!r}")
    for note in clip["notes"]:
        _text(note["code"])
        _text(note["detail"])
    if not isinstance(clip["facts"], dict) or "device" in clip["facts"]:  # that is for the parent to say
        raise ValueError(f"facts: {clip['facts']!r}")


def _text(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")


def _is(array: NDArray[Any], name: str, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape or not array.size:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, it must be {dtype} {list(shape)}")
