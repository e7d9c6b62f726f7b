"""Is what a child process sent back an answer to what it was asked? Looked at before anything in it is used.

A child belongs to whatever breaks into its decoder. Its messages are plain data already (`decode/wire.py`); here names,
shapes and facts are held against the recipes, so that a wrong answer costs its own clip. Shapes: `T` segments,
`L` tokens, `C` channels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.decode.jobs import Outcome
from caeav.pipeline.extract.jobs import Job, sampling_of
from caeav.pipeline.extract.decode_job import FRAMES, array_name, in_worker, wave_name


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
        for side in [side for side, part in job.parts.items() if in_worker(part)]:
            if job.recipe.kind == "captions":
                _text(texts[side])
                continue
            for tap in job.recipe.fields[side]["taps"]:
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
