"""The texts of a caption store embedded by other text backbones, into a store of its own. Nothing is captioned again.

The new store is the one that captioning anew with these text backbones would give, byte for byte, and has its recipe,
which names captioners with prompts, settings and weights. Neither media nor captioners need to be on this machine.
"""

from __future__ import annotations

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.extract.captions import Embedder
from caeav.pipeline.lookup import run_lookup
from caeav.pipeline.backbones.describe import random_remarks
from caeav.pipeline.extract.jobs import texts_job
from caeav.pipeline.store import Quarantined, Record, StoreReader
from caeav.pipeline.store.media_record import carry_record
from caeav.pipeline.extract.options import Remark, Report, RunOptions, StageSummary, unheard
from caeav.pipeline.backbones.weights import remember_at


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
