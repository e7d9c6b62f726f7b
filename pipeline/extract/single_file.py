"""Process one media file by the recipes of existing stores, for prediction; nothing is stored.

The components are built anew from the recipes and must describe themselves as they did then, or tokens would
silently differ from those a model was trained on. What computes on a device gets batches of one clip, so its tokens may
differ from stored ones in the last bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.keys import slug
from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.extract.collect import unfit
from caeav.pipeline.extract.components import decoder_remark, frames_of, media_input, windows_of
from caeav.pipeline.extract.context import DEFAULT_DEADLINE_S
from caeav.pipeline.extract.decode_job import SETUP, worker_settings
from caeav.pipeline.extract.device.batches import Unit, make_units
from caeav.pipeline.extract.device.devices import choose_devices, device_name, steady
from caeav.pipeline.extract.device.network import CaptionNetwork, TokenNetwork, as_stored
from caeav.pipeline.extract.features import features_of, is_imported
from caeav.pipeline.extract.jobs import Job, job_of
from caeav.pipeline.extract.records import RecordBuilder, decoded, validate_reply
from caeav.pipeline.media.audio import SILENT_PEAK
from caeav.pipeline.media.clip import DecodedClip, Sampling
from caeav.pipeline.media.workers.pool import Outcome, WorkerPool
from caeav.pipeline.store import Quarantined, Recipe, Record
from caeav.pipeline.store.dtypes import floats


class Processed(NamedTuple):
    """What became of one file.

    `tokens`: its info also says which segments are `silent`. `captions`: None without a recipe of captions. `frames`:
    uint8 `[T, H, W, 3]`, black where the file has none; `T` is 0 where nothing was decoded.
    """

    tokens: Record
    captions: Record | None
    frames: NDArray[np.uint8]


def process_file(
    path: Path,
    token_recipe: Recipe | Sequence[Recipe],
    caption_recipe: Recipe | None = None,
    start_s: float = 0.0,
    deadline_s: float = DEFAULT_DEADLINE_S,
    device: str = "auto",
    features: Mapping[str, Path] | None = None,
) -> Processed:
    """Decode `path` from `start_s` and make what the stores of these recipes hold for a clip.

    `features`: tap -> file, for imported stores; if there are no others, nothing is decoded and there are no frames.
    Decodes in killable child processes; `device` is for components that need one (`auto`, `cpu`, `cuda`, or a GPU's
    number). Raises `CaeavError` when the file is missing or cannot be decoded, or when a component is no longer what
    its recipe says, naming the fields. Another version of the decoder is not an error; the record's notes say so
    (`decoder_version`).
    """
    if not path.is_file():
        raise CaeavError(f"no file {path}", hint="give the path of a media file")
    recipes = [token_recipe] if isinstance(token_recipe, Recipe) else list(token_recipe)
    key = slug(path.stem)
    imported = features_of([r for r in recipes if is_imported(r)], features or {}, key)
    token_jobs = [job_of(recipe) for recipe in recipes if not is_imported(recipe)]
    caption_jobs = [job_of(caption_recipe)] if caption_recipe else []
    made: dict[int, Record] = {}
    frames: NDArray[np.uint8] = np.zeros((0, 1, 1, 3), np.uint8)
    silent: list[bool] = []
    for group in _by_decoder([*token_jobs, *caption_jobs]):
        outcome = _decode(path, group, start_s, deadline_s)
        if not len(frames):
            clip, sampling = decoded(outcome, group[0]), group[0].sampling
            frames = frames_of(clip, sampling)
            silent = [bool(window.max() < SILENT_PEAK) for window in np.abs(windows_of(clip, sampling))]
        found = _records(path, replace(outcome, id=key), group, device)
        made |= {id(job): record for job, record in zip(group, found, strict=True)}
    tokens = [made[id(job)] for job in token_jobs] + ([imported] if imported else [])
    captions = made[id(caption_jobs[0])] if caption_jobs else None
    return Processed(_together(tokens, silent), captions, frames)


def _by_decoder(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that can share one decoding."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.recipe.fields["decoder"]["name"], []).append(job)
    return list(groups.values())


def _decode(path: Path, jobs: Sequence[Job], start_s: float, deadline_s: float) -> Outcome:
    settings = worker_settings(jobs, keep_media=True)
    request = {"id": path.name, "path": str(path), "start_s": start_s, "jobs": list(range(len(jobs)))}
    with WorkerPool(SETUP, settings, workers=1, deadline_s=deadline_s) as pool:
        [outcome] = pool.map([request])
    wrong = outcome.failure.reason if outcome.failure else validate_reply(outcome, dict(enumerate(jobs)))
    if wrong:
        raise CaeavError(
            f"{path}: {wrong}",
            hint="choose another file or start; caeav doctor shows which decoders work here",
        )
    return outcome


def _records(path: Path, outcome: Outcome, jobs: Sequence[Job], device: str) -> list[Record]:
    """The record that each job's store would hold, as a reader returns it."""
    settled: dict[int, Record | Quarantined] = {}
    builder = RecordBuilder(jobs, lambda job, _, result: settled.update({job: result}))
    waiting = builder.add_reply(outcome, range(len(jobs)))
    if waiting:
        _compute(jobs, {job: decoded(outcome, jobs[job]) for job in waiting}, outcome.id, builder, device)
    found = []
    for number, job in enumerate(jobs):
        result = settled[number]
        if isinstance(result, Quarantined):
            raise CaeavError(f"{path}: {result.stage}: {result.reason}", hint="choose another file or start")
        [result] = job.complete((device,))([result], lambda _: 0)
        reason = unfit(result)
        if reason:
            raise CaeavError(f"{path}: {reason}", hint="the file is decoded to something no backbone can use")
        remark = decoder_remark(job.recipe)
        noted = [{"code": "decoder_version", "detail": remark}] if remark else []
        info = {**result.info, "notes": [*result.info["notes"], *noted]}
        found.append(Record(result.key, floats(result.arrays), info))
    return found


def _compute(
    jobs: Sequence[Job], clips: Mapping[int, DecodedClip], key: str, builder: RecordBuilder, device: str
) -> None:
    """Give to `builder` what the device parts of `jobs` make of a clip, decoded for each job in `clips`."""
    where = choose_devices([device])[0]
    facts = {"name": device_name(where), "torch": torch.__version__.partition("+")[0], "rows": 1}
    units = make_units(jobs)
    for number, clip in clips.items():
        for unit in units[number]:
            try:
                with steady():
                    result: object = _computed(unit, where, clip, jobs[number].sampling)
            except Exception as error:  # noqa: BLE001 - becomes the reason why there is no record
                result = error
            builder.add_result(unit, key, result, facts)


def _computed(unit: Unit, device: torch.device, clip: DecodedClip, sampling: Sampling) -> object:
    """Taps `[T, L, C]` as stored, or a text."""
    if not isinstance(unit.part, TorchBackbone):
        return CaptionNetwork(unit.part, device, unit.compute)([clip])[0]
    network = TokenNetwork(unit.part, device, unit.compute, unit.dtype)
    with torch.inference_mode():
        prepared = unit.part.prepare(media_input(clip, unit.modality, sampling))
        taps = network(prepared.unsqueeze(0).to(device))  # [1, T, L, C] each
        return as_stored({name: x[0].cpu() for name, x in taps.items()}, unit.dtype)


def _together(records: Sequence[Record], silent: Sequence[bool]) -> Record:
    """Tokens of several stores as one record; a segment is real where it is in all of them."""
    first = records[0]
    arrays: dict[str, NDArray[Any]] = {}
    info = {**first.info, **({"silent": list(silent)} if silent else {})}
    for record in records:
        arrays |= record.arrays
        for name in ("frames_ok", "audio_ok"):
            info[name] = [a and b for a, b in zip(info[name], record.info[name], strict=True)]
    return Record(first.key, arrays, info)
