"""Media files to stores of frozen-backbone tokens, and to stores of captions in the same pass."""

from __future__ import annotations

from collections.abc import Sequence

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.describe import random_remarks
from caeav.pipeline.backbones.weights import remember_at
from caeav.pipeline.extract.context import RunContext
from caeav.pipeline.extract.engine import run_stage
from caeav.pipeline.extract.forecast import record_rate
from caeav.pipeline.extract.jobs import StoreOptions, TokenOptions
from caeav.pipeline.extract.progress import StageSummary


def extract(context: RunContext, options: TokenOptions) -> StageSummary:
    """Decode every clip and store its taps, `[T, L, C]` each; what is stored already is not made again.

    Raises `CaeavError` (unknown names, a changed recipe, a busy store).
    """
    [summary] = extract_all(context, [options])
    return summary


def extract_all(context: RunContext, options: Sequence[StoreOptions]) -> list[StageSummary]:
    """Fill several stores while each clip is decoded once; each store is the one that a run of its own makes.

    All must name the same decoder. Errors as `extract`.
    """
    if not options:
        raise CaeavError("no store is asked for", hint="name a backbone")
    remember_at(context.home, context.remark)
    jobs = []
    for each in options:
        job = each.job(context.manifest.segments, context.manifest.segment_s)
        job.check(context)
        jobs.append(job)
    for job in jobs:
        for text in random_remarks(job.recipe.fields):
            context.remark(text)
    summaries = run_stage(context, jobs)
    record_rate(context, summaries)
    return summaries
