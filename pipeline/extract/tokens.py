"""Stage one: media files to stores of frozen-backbone tokens, and of captions in the same pass."""

from __future__ import annotations

from collections.abc import Sequence

from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones.describe import random_remarks
from caeav.pipeline.backbones.weights import remember_at
from caeav.pipeline.extract.captions import Embedder, look_through
from caeav.pipeline.extract.collect import Complete
from caeav.pipeline.extract.engine import run_stage
from caeav.pipeline.extract.jobs import CaptionOptions, Job, TokenOptions, caption_job, token_job
from caeav.pipeline.extract.options import Remark, Report, RunOptions, StageSummary, unheard
from caeav.pipeline.store import Record


def extract(
    manifest: Manifest,
    home: Home,
    options: TokenOptions,
    run: RunOptions,
    report: Report,
    remark: Remark = unheard,
) -> StageSummary:
    """Decode every clip and store its taps, `[T, L, C]` each; what is stored already is not done again.

    `report` is told after every clip, `remark` before any work. Raises `CaeavError` (unknown
    names, a changed recipe, a busy store).
    """
    [summary] = extract_all(manifest, home, [options], run, report, remark)
    return summary


def extract_all(
    manifest: Manifest,
    home: Home,
    options: Sequence[TokenOptions | CaptionOptions],
    run: RunOptions,
    report: Report,
    remark: Remark = unheard,
) -> list[StageSummary]:
    """Fill several stores while each clip is decoded once; each store becomes what a run of its own makes it.

    All must name the same decoder. Errors as `extract`.
    """
    if not options:
        raise CaeavError("no store is asked for", hint="name a backbone")
    remember_at(home, remark)
    jobs = [_job(manifest, each, run, remark) for each in options]
    for job, _ in jobs:
        for text in random_remarks(job.recipe.fields):
            remark(text)
    return run_stage(manifest, jobs, home, run, report, remark)


def _job(
    manifest: Manifest, options: TokenOptions | CaptionOptions, run: RunOptions, remark: Remark
) -> tuple[Job, Complete]:
    if isinstance(options, TokenOptions):
        return token_job(manifest.segments, manifest.segment_s, options), _as_it_is
    job = caption_job(manifest.segments, manifest.segment_s, options)
    look_through(job, manifest, run, remark)
    return job, Embedder(job, run.devices).embed


def _as_it_is(records: Sequence[Record], place: object) -> list[Record]:
    return list(records)
