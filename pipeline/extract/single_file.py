"""Process media files by the recipes of existing stores, for prediction; nothing is stored.

The components are built anew from the recipes and must describe themselves as they did then, or tokens would
silently differ from those a model was trained on. What computes on a device gets batches of one clip, so its tokens may
differ from stored ones in the last bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
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
from caeav.pipeline.media.workers.pool import Outcome, Request, WorkerPool
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


@dataclass(frozen=True)
class Part:
    """A part of a file to process: from `start_s` on. `features`: tap -> file, for imported stores."""

    path: Path
    start_s: float = 0.0
    features: Mapping[str, Path] = field(default_factory=dict)


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
    with FileProcessor(token_recipe, caption_recipe, deadline_s=deadline_s, device=device) as processor:
        [(_, found)] = processor.process_each([Part(path, start_s, features or {})])
    if isinstance(found, CaeavError):
        raise found
    return found


class FileProcessor:
    """Makes what the stores of these recipes hold, of one file after the other: components are loaded once.

    Used in a `with` statement. `workers` child processes decode; raises `CaeavError` when a component is no longer what
    its recipe says.
    """

    def __init__(
        self,
        token_recipe: Recipe | Sequence[Recipe],
        caption_recipe: Recipe | None = None,
        *,
        deadline_s: float = DEFAULT_DEADLINE_S,
        device: str = "auto",
        workers: int = 1,
    ) -> None:
        recipes = [token_recipe] if isinstance(token_recipe, Recipe) else list(token_recipe)
        self._imported = [recipe for recipe in recipes if is_imported(recipe)]
        self._token_jobs = [job_of(recipe) for recipe in recipes if not is_imported(recipe)]
        self._caption_jobs = [job_of(caption_recipe)] if caption_recipe else []
        self._groups = [
            _Group(jobs, device, deadline_s, workers)
            for jobs in _by_decoder([*self._token_jobs, *self._caption_jobs])
        ]
        self._open = ExitStack()

    def __enter__(self) -> FileProcessor:
        for group in self._groups:
            self._open.enter_context(group.pool)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def nudge(self) -> None:
        """Ask for parts again, after a None."""
        for group in self._groups:
            group.pool.nudge()

    def process_each(self, parts: Iterable[Part | None]) -> Iterator[tuple[Part, Processed | CaeavError]]:
        """What becomes of each part, as they are done; the error of a file that cannot be processed is its result.

        `parts` may give None for "none at the moment, wait for `nudge`".
        """
        if not self._groups:
            for part in parts:
                if part is not None:
                    yield part, self._settled(part, None)
            return
        asked: dict[str, Part] = {}

        def requests() -> Iterator[Request | None]:
            for number, part in enumerate(parts):
                if part is None:
                    yield None
                    continue
                asked[str(number)] = part
                yield self._groups[0].request(str(number), part)

        for outcome in self._groups[0].pool.map(requests()):
            part = asked.pop(outcome.id)
            yield part, self._settled(part, outcome)

    def _settled(self, part: Part, first: Outcome | None) -> Processed | CaeavError:
        try:
            return self._processed(part, first)
        except CaeavError as error:
            return error

    def _processed(self, part: Part, first: Outcome | None) -> Processed:
        """`first`: the reply of the first group's child; the other groups decode now."""
        key = slug(part.path.stem)
        imported = features_of(self._imported, part.features, key)
        made: dict[int, Record] = {}
        frames: NDArray[np.uint8] = np.zeros((0, 1, 1, 3), np.uint8)
        silent: list[bool] = []
        for number, group in enumerate(self._groups):
            outcome = first if number == 0 and first is not None else group.decode(part)
            group.check(part.path, outcome)
            if not len(frames):
                clip, sampling = decoded(outcome, group.jobs[0]), group.jobs[0].sampling
                frames = frames_of(clip, sampling)
                silent = [bool(window.max() < SILENT_PEAK) for window in np.abs(windows_of(clip, sampling))]
            found = group.records(part.path, replace(outcome, id=key))
            made |= {id(job): record for job, record in zip(group.jobs, found, strict=True)}
        tokens = [made[id(job)] for job in self._token_jobs] + ([imported] if imported else [])
        captions = made[id(self._caption_jobs[0])] if self._caption_jobs else None
        return Processed(_together(tokens, silent), captions, frames)


def _by_decoder(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that can share one decoding."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.recipe.fields["decoder"]["name"], []).append(job)
    return list(groups.values())


class _Group:
    """Jobs that share one decoding, with their child processes and what they have on devices."""

    def __init__(self, jobs: Sequence[Job], device: str, deadline_s: float, workers: int) -> None:
        self.jobs = jobs
        self.pool = WorkerPool(
            SETUP, worker_settings(jobs, keep_media=True), workers=workers, deadline_s=deadline_s
        )
        self._device = device
        self._units = make_units(jobs)
        self._backbones: dict[int, TokenNetwork] = {}
        self._captioners: dict[int, CaptionNetwork] = {}
        self._complete = [job.complete((device,)) for job in jobs]

    def request(self, name: str, part: Part) -> Request:
        """What a child is asked."""
        jobs = list(range(len(self.jobs)))
        return {"id": name, "path": str(part.path), "start_s": part.start_s, "jobs": jobs}

    def decode(self, part: Part) -> Outcome:
        """The reply of a child about one part."""
        [outcome] = self.pool.map([self.request(part.path.name, part)])
        return outcome

    def check(self, path: Path, outcome: Outcome) -> None:
        """Raise `CaeavError` for a reply that is none."""
        failure = outcome.failure
        wrong = failure.reason if failure else validate_reply(outcome, dict(enumerate(self.jobs)))
        if wrong:
            raise CaeavError(
                f"{path}: {wrong}",
                hint="choose another file or start; caeav doctor shows which decoders work here",
            )

    def records(self, path: Path, outcome: Outcome) -> list[Record]:
        """The record that each job's store would hold, as a reader returns it."""
        settled: dict[int, Record | Quarantined] = {}
        builder = RecordBuilder(self.jobs, lambda job, _, result: settled.update({job: result}))
        waiting = builder.add_reply(outcome, range(len(self.jobs)))
        if waiting:
            self._compute({job: decoded(outcome, self.jobs[job]) for job in waiting}, outcome.id, builder)
        found = []
        for number, job in enumerate(self.jobs):
            result = settled[number]
            if isinstance(result, Quarantined):
                raise CaeavError(
                    f"{path}: {result.stage}: {result.reason}", hint="choose another file or start"
                )
            [result] = self._complete[number]([result], lambda _: 0)
            reason = unfit(result)
            if reason:
                raise CaeavError(
                    f"{path}: {reason}", hint="the file is decoded to something no backbone can use"
                )
            remark = decoder_remark(job.recipe)
            noted = [{"code": "decoder_version", "detail": remark}] if remark else []
            info = {**result.info, "notes": [*result.info["notes"], *noted]}
            found.append(Record(result.key, floats(result.arrays), info))
        return found

    def _compute(self, clips: Mapping[int, DecodedClip], key: str, builder: RecordBuilder) -> None:
        """Give to `builder` what the device parts make of a clip, decoded for each job in `clips`."""
        where = choose_devices([self._device])[0]
        facts = {"name": device_name(where), "torch": torch.__version__.partition("+")[0], "rows": 1}
        for number, clip in clips.items():
            for unit in self._units[number]:
                try:
                    with steady():
                        result: object = self._computed(unit, where, clip, self.jobs[number].sampling)
                except Exception as error:  # noqa: BLE001 - becomes the reason why there is no record
                    result = error
                builder.add_result(unit, key, result, facts)

    def _computed(self, unit: Unit, device: torch.device, clip: DecodedClip, sampling: Sampling) -> object:
        """Taps `[T, L, C]` as stored, or a text."""
        part = unit.part
        if not isinstance(part, TorchBackbone):
            if unit.number not in self._captioners:
                self._captioners[unit.number] = CaptionNetwork(part, device, unit.compute)
            return self._captioners[unit.number]([clip])[0]
        if unit.number not in self._backbones:
            self._backbones[unit.number] = TokenNetwork(part, device, unit.compute, unit.dtype)
        with torch.inference_mode():
            prepared = part.prepare(media_input(clip, unit.modality, sampling))
            taps = self._backbones[unit.number](prepared.unsqueeze(0).to(device))  # [1, T, L, C] each
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
