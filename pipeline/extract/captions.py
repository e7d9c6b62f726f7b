"""Stores of captions, their texts and token embeddings: from media, from a file, or from the texts of another store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.describe import random_remarks
from caeav.pipeline.backbones.weights import remember_at
from caeav.pipeline.captioners.from_file import CaptionFileError, FileCaptioner
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.engine import run_lookup, run_stage
from caeav.pipeline.extract.jobs import CaptionJob, CaptionOptions
from caeav.pipeline.extract.preflight import other_recipes
from caeav.pipeline.extract.progress import StageSummary
from caeav.pipeline.store import Quarantined, Record, StoreReader
from caeav.pipeline.store.media_record import carry_record


def caption(context: RunContext, options: CaptionOptions) -> StageSummary:
    """Write and embed one visual and one audio caption of every clip; what is stored already is not made again.

    No media is read where both captions come from files. Raises `CaeavError` (unknown names, a changed recipe, a busy
    store, a file without rows for the clips).
    """
    remember_at(context.home, context.remark)
    job = options.job(context.manifest.segments, context.manifest.segment_s)
    for text in random_remarks(job.recipe.fields):
        context.remark(text)
    job.check(context)
    if job.reads_media:
        [summary] = run_stage(context, [job])
        return summary
    for text in other_recipes(context, job.recipe):
        context.remark(text)
    if context.options.cluster is not None:
        context.remark(
            "both captions come from files: there is nothing for a cluster to decode, all is made here"
        )
    complete = job.complete(context.options.devices)
    return run_lookup(context, job.recipe, lambda key: _texts(job.files, key), complete)


def reembed(
    context: RunContext,
    source: StoreReader,
    visual_text: ModelChoice | None,
    audio_text: ModelChoice | None,
    dtype: str | None,
) -> StageSummary:
    """Embed the texts of the store `source` with other text backbones (None: the same), into a store of its own.

    The new store is the one that captioning anew with these text backbones would give, byte for byte. Neither media nor
    captioners need to be on this machine. Clips quarantined in the source are quarantined in the new store. Raises
    `CaeavError` when `source` holds no captions or nothing would differ.
    """
    if source.recipe.kind != "captions":
        raise CaeavError(
            f"{source.path} is a store of {source.recipe.kind}, not of captions", hint="name a caption store"
        )
    remember_at(context.home, context.remark)
    job = CaptionJob.reembedding(source.recipe, visual_text, audio_text, dtype)
    if job.recipe.fingerprint == source.recipe.fingerprint:
        raise CaeavError(
            f"{source.path.name} is embedded that way already",
            hint="name another text backbone: --visual-text NAME, --audio-text NAME",
        )
    for text in random_remarks(job.recipe.fields):
        context.remark(text)
    lost = {entry.key: entry for entry in source.quarantined}

    def find(key: str) -> Record | Quarantined:
        return lost[key] if key in lost else Record(key, {}, source.info(key))

    context = replace(context, manifest=source.manifest)
    made = run_lookup(context, job.recipe, find, job.complete(context.options.devices))
    carry_record([source.path], made.path)
    return made


def _texts(files: Sequence[FileCaptioner], key: str) -> Record | Quarantined:
    """A clip's texts from files, or why there are none."""
    try:
        texts = {file.modality: file.text(key) for file in files}
    except CaptionFileError as error:
        return Quarantined(key, "captions", error.problem, 1)
    return Record(key, {}, {"texts": texts, "notes": [], "facts": {}})
