"""Stage one, first half: media files to a store of frozen-backbone tokens."""

from __future__ import annotations

from caeav.manifests.clip import Manifest
from caeav.manifests.home import Home
from caeav.pipeline.recipes import TokenOptions, token_recipe
from caeav.pipeline.stage import run_stage
from caeav.pipeline.summary import Remark, Report, RunOptions, StageSummary, unheard


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
    recipe = token_recipe(manifest.segments, manifest.segment_s, options)
    return run_stage(manifest, recipe, home, run, list, report, remark)
