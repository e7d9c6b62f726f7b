"""What runs inside a killable child process: decode one clip, once, for all the stores that want it.

`setup` is called once in each child with JSON settings and returns the function that answers requests; nothing here
touches a store. Cheap components compute here; for those that run on a device, the decoded frames and audio are sent
back. A missing modality becomes silence or black frames and a note, so the clip is kept. Shapes: `T` segments,
`L` tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from numpy.typing import NDArray

from caeav.pipeline.extract.components import decoder_of
from caeav.pipeline.extract.jobs import AUDIO, VISUAL, Job, job_type
from caeav.pipeline.media.clip import DecodedClip, Note
from caeav.pipeline.store.recipe import Recipe

SETUP = "caeav.pipeline.extract.decode_job:setup"
"""What the pool of child processes runs."""
FRAMES = "frames"
"""Name under which the decoded frames come back: uint8 `[T, H, W, 3]`, absent when there are none."""

Reply = tuple[dict[str, NDArray[Any]], dict[str, Any]]
"""Arrays by name, and JSON values."""


def wave_name(rate_hz: int) -> str:
    """Name under which the decoded audio comes back: float32 `[samples]`, absent when there is none."""
    return f"wave@{rate_hz}"


def array_name(job: int, tap: str) -> str:
    """Name under which a tap of one of the jobs comes back, float32 `[T, L, C]`."""
    return f"{job}/{tap}"


def worker_settings(jobs: Sequence[Job], keep_media: bool = False) -> dict[str, Any]:
    """Settings for `setup`: the recipes, and which components of each compute here and which on devices.

    `keep_media`: send the decoded clip back whether or not a device needs it.
    """
    return {
        "jobs": [
            {
                "kind": job.recipe.kind,
                "name": job.recipe.name,
                "fields": dict(job.recipe.fields),
                "worker": list(job.worker_parts),
                "device": list(job.device_parts),
            }
            for job in jobs
        ],
        "keep_media": keep_media,
    }


def setup(settings: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Reply]:
    """Build the components that compute here; the function returned replies to `{"path", "start_s", "jobs"}`.

    `jobs` are the numbers of those that want the clip. A reply's info has `clips` (what is known of the clip, by sample
    rate), `texts` and `failed` (by job), and `spent` (seconds). Raises `CaeavError` when components are no longer what
    the recipes say.
    """
    recipes = [Recipe(job["kind"], job["name"], job["fields"]) for job in settings["jobs"]]
    jobs = [
        job_type(recipe).in_worker(recipe, job["worker"])
        for recipe, job in zip(recipes, settings["jobs"], strict=True)
    ]
    media = [job.media_for(given["device"]) for job, given in zip(jobs, settings["jobs"], strict=True)]
    decoder = decoder_of(recipes[0])

    def reply(request: Mapping[str, Any]) -> Reply:
        began = time.perf_counter()
        samplings = {jobs[number].sampling.rate_hz: jobs[number].sampling for number in request["jobs"]}
        found = decoder.decode_each(request["path"], request["start_s"], list(samplings.values()))
        clips = {rate: _with_notes(clip) for rate, clip in zip(samplings, found, strict=True)}
        decoded = time.perf_counter()
        arrays: dict[str, NDArray[Any]] = {}
        texts: dict[str, dict[str, str]] = {}
        failed: dict[str, str] = {}
        for number in request["jobs"]:
            rate = jobs[number].sampling.rate_hz
            clip = clips[rate]
            try:
                taps, texts_here = jobs[number].compute(clip)
            except Exception as error:  # noqa: BLE001 - a component's mistake costs this clip in this store
                failed[str(number)] = f"{type(error).__name__}: {error}"
                continue
            arrays |= {array_name(number, name): x for name, x in taps.items()}
            texts[str(number)] = texts_here
            if clip.frames is not None and VISUAL in media[number]:
                arrays[FRAMES] = clip.frames
            if clip.wave is not None and AUDIO in media[number]:
                arrays[wave_name(rate)] = clip.wave
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

    return reply


def record_info(clip: DecodedClip) -> dict[str, Any]:
    """What a record says besides its arrays; JSON values."""
    return {
        "frames_ok": [bool(ok) for ok in clip.frames_ok],
        "audio_ok": [bool(ok) for ok in clip.audio_ok],
        "notes": [asdict(note) for note in clip.notes],
        "facts": dict(clip.facts),
    }


def _with_notes(clip: DecodedClip) -> DecodedClip:
    """The clip with a note for each modality that is missing."""
    noted = {note.code for note in clip.notes}
    missing = [Note("no_video", "the file has no video: black frames")] if clip.frames is None else []
    missing += [Note("no_audio", "the file has no sound: silence")] if clip.wave is None else []
    return replace(clip, notes=[*clip.notes, *(note for note in missing if note.code not in noted)])
