"""Stage one, second half: media files to a store of captions, their texts and their token embeddings.

Shapes: `W` caption tokens, `C` channels. Texts are written beside the decoder or on a device, and embedded here, a
shard at a time.

The texts of a caption store embedded by other text backbones, into a store of its own. Nothing is captioned again.

The new store is the one that captioning anew with these text backbones would give, byte for byte, and has its recipe,
which names captioners with prompts, settings and weights. Neither media nor captioners need to be on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted
from caeav.pipeline.backbones.base import TextBackbone
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.describe import random_remarks
from caeav.pipeline.backbones.weights import remember_at
from caeav.pipeline.captioners.from_file import CaptionFileError, FileCaptioner, some
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.engine import other_recipes, run_stage
from caeav.pipeline.extract.features import run_lookup
from caeav.pipeline.extract.jobs import CaptionOptions, Job, caption_job, texts_job
from caeav.pipeline.extract.options import Remark, Report, RunOptions, StageSummary, failure_limit, unheard
from caeav.pipeline.store import Quarantined, Record, StoreReader
from caeav.pipeline.store.dtypes import stored
from caeav.pipeline.store.layout import shard_clips
from caeav.pipeline.store.media_record import carry_record

Encoded = tuple[NDArray[np.float32], NDArray[np.bool_]]


def caption(
    manifest: Manifest,
    home: Home,
    options: CaptionOptions,
    run: RunOptions,
    report: Report,
    remark: Remark = unheard,
) -> StageSummary:
    """Write and embed one visual and one audio caption of every clip; what is stored already is not done again.

    Where both come from files, no media is read. `report` is told after every clip, `remark` before any work. Raises
    `CaeavError` (unknown names, a changed recipe, a busy store, a file without rows for the clips).
    """
    remember_at(home, remark)
    job = caption_job(manifest.segments, manifest.segment_s, options)
    for text in random_remarks(job.recipe.fields):
        remark(text)
    embed = Embedder(job, run.devices).embed
    files = look_through(job, manifest, run, remark)
    if len(files) == len(job.parts):
        for text in other_recipes(home, manifest.dataset, job.recipe):
            remark(text)
        return run_lookup(manifest, job.recipe, home, run, partial(_read, files), embed, report, remark)
    [summary] = run_stage(manifest, [(job, embed)], home, run, report, remark)
    return summary


def look_through(job: Job, manifest: Manifest, run: RunOptions, remark: Remark) -> dict[str, FileCaptioner]:
    """The files among a job's captioners, by modality; says which clips have no row in them and which rows no clip.

    Raises `CaeavError` when too many clips have none.
    """
    files = {modality: part for modality, part in job.parts.items() if isinstance(part, FileCaptioner)}
    for file in files.values():
        _compare_keys(file, manifest, run, remark)
    return files


def _compare_keys(part: FileCaptioner, manifest: Manifest, run: RunOptions, remark: Remark) -> None:
    keys = manifest.keys
    missing, unknown = part.captions.missing(keys), part.captions.unknown(keys)
    name = f"{part.weights.source} ({part.modality})"
    others = f"; {_unknown(unknown)} no clip of it" if unknown else ""
    if len(missing) > failure_limit(run.max_failed, len(keys)):
        raise CaeavError(
            f"{name} has no row for {some(missing)} of {counted(len(keys), 'clip')} of {manifest.dataset}{others}",
            hint="a row a clip, with its key as `caeav manifest show` has it; an empty text where the clip lacks the "
            "modality; or allow more quarantined clips by --max-failed",
        )
    if missing:
        of = counted(len(keys), "clip")
        remark(f"{name} has no row for {some(missing)} of {of}, to be quarantined{others}")
    elif unknown:
        remark(f"{name}: {_unknown(unknown)} no clip of {manifest.dataset} and will not be used")


def _unknown(keys: Sequence[str]) -> str:
    return f"{some(keys)} {'row names' if len(keys) == 1 else 'rows name'}"


def _read(files: Mapping[str, FileCaptioner], key: str) -> Record | Quarantined:
    """A clip's texts, or why there are none."""
    try:
        return Record(
            key,
            {},
            {
                "texts": {modality: part.text(key) for modality, part in files.items()},
                "notes": [],
                "facts": {},
            },
        )
    except CaptionFileError as error:
        return Quarantined(key, "captions", error.problem, 1)


class Embedder:
    """Adds `visual_caption` and `audio_caption` `[W, C]` with their masks `[W]` to records that hold `texts`.

    An empty text (a missing modality) gives zeros and a mask without a true value. Text backbones of torch modules
    are moved to the first of `devices` and get batches of one size, each text in the place of its clip in its shard.
    """

    def __init__(self, job: Job, devices: Sequence[str] = ("cpu",)) -> None:
        fields = job.recipe.fields
        self._texts = job.texts
        self._dtype: str = fields["dtype"]
        self._compute = ComputeOptions(**fields.get("compute", {}))
        self._rows = min(self._compute.batch, shard_clips(job.recipe))
        self._devices = tuple(devices)
        self._encode: dict[int, Callable[[Sequence[str]], Encoded]] = {}

    def embed(self, records: Sequence[Record], place: Callable[[str], int]) -> list[Record]:
        """Records with `info["texts"]` -> the same with arrays; `place(key)` is a clip's place in its shard."""
        arrays: list[dict[str, Any]] = [{} for _ in records]
        for modality, backbone in self._texts.items():
            texts = {place(record.key): record.info["texts"][modality] for record in records}
            tokens, masks = (
                self._in_rows(backbone, texts) if hasattr(backbone, "module") else _at_once(backbone, texts)
            )
            for record, found in zip(records, arrays, strict=True):
                at = place(record.key)
                found |= stored({f"{modality}_caption": tokens[at]}, self._dtype)
                found[f"{modality}_caption_mask"] = masks[at]
        return [Record(r.key, found, r.info) for r, found in zip(records, arrays, strict=True)]

    def _in_rows(
        self, backbone: TextBackbone, texts: Mapping[int, str]
    ) -> tuple[dict[int, NDArray[np.float32]], dict[int, NDArray[np.bool_]]]:
        """Texts by place in a shard -> tokens and masks by place, from batches of one size with fixed rows."""
        encode = self._encoder(backbone)
        tokens: dict[int, NDArray[np.float32]] = {}
        masks: dict[int, NDArray[np.bool_]] = {}
        for start in sorted({at - at % self._rows for at in texts}):
            found, mask = encode([texts.get(at, "") for at in range(start, start + self._rows)])
            for at in range(start, start + self._rows):
                if at in texts:
                    tokens[at], masks[at] = found[at - start], mask[at - start]
        return tokens, masks

    def _encoder(self, backbone: TextBackbone) -> Callable[[Sequence[str]], Encoded]:
        """`backbone.encode` on a device, made ready once."""
        if id(backbone) not in self._encode:
            from caeav.pipeline.extract.device.network import text_encoder

            self._encode[id(backbone)] = text_encoder(backbone, self._devices, self._compute)
        return self._encode[id(backbone)]


def _at_once(
    backbone: TextBackbone, texts: Mapping[int, str]
) -> tuple[dict[int, NDArray[np.float32]], dict[int, NDArray[np.bool_]]]:
    tokens, masks = backbone.encode(list(texts.values()))
    return dict(zip(texts, tokens, strict=True)), dict(zip(texts, masks, strict=True))


def reembed(
    source: StoreReader,
    home: Home,
    visual_text: ModelChoice | None,
    audio_text: ModelChoice | None,
    dtype: str | None,
    run: RunOptions,
    report: Report,
    remark: Remark = unheard,
) -> StageSummary:
    """Make the store of `source`'s texts with other text backbones (None: those of the source) below `home`.

    Clips quarantined in the source are so in the new store. Raises `CaeavError` when `source` holds no captions or
    nothing is asked to differ.
    """
    if source.recipe.kind != "captions":
        raise CaeavError(
            f"{source.path} is a store of {source.recipe.kind}, not of captions", hint="name a caption store"
        )
    remember_at(home, remark)
    job = texts_job(source.recipe, visual_text, audio_text, dtype)
    if job.recipe.fingerprint == source.recipe.fingerprint:
        raise CaeavError(
            f"{source.path.name} is embedded that way already",
            hint="name another text backbone: --visual-text NAME, --audio-text NAME",
        )
    for text in random_remarks(job.recipe.fields):
        remark(text)
    lost = {entry.key: entry for entry in source.quarantined}

    def find(key: str) -> Record | Quarantined:
        return lost[key] if key in lost else Record(key, {}, source.info(key))

    embed = Embedder(job, run.devices).embed
    made = run_lookup(source.manifest, job.recipe, home, run, find, embed, report, remark)
    carry_record([source.path], made.path)
    return made
