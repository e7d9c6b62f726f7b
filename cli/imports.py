"""`caeav import`: features made elsewhere, in files or one file, to a store of tokens that training joins."""

from __future__ import annotations

from typing import Annotated

import typer

from caeav.cli import stage
from caeav.cli.datasets import IS_LAST, source
from caeav.cli.options import (
    DatasetOption,
    HomeOption,
    JsonOption,
    LabelsOption,
    RelabelOption,
    RootOption,
    SegmentSecondsOption,
    SegmentsOption,
    StrideOption,
    paths_of_taps,
)
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.train.store_choice import join_setting
from caeav.pipeline.extract.context import DEFAULT_MAX_FAILED, RunContext, RunOptions
from caeav.pipeline.store.backend import DEFAULT_BACKEND
from caeav.pipeline.store.recipe import MODALITIES


def register(app: typer.Typer) -> None:
    """Add the command as `import`."""
    app.command("import")(import_folders)


def import_folders(
    taps: Annotated[
        list[str],
        typer.Option(
            "--tap",
            metavar="TAP=PATH",
            help="Folder with one file per clip (.npy, .npz, .pt, .h5), named by its key, id or media file, also with "
            "one suffix (ID_vggish.npy); FOLDER/*_rgb.npy where there are several; or one file of all clips, as "
            "AVE's audio_feature.h5. PATH#NAME names one of several arrays. A clip's array: [T, F], [T, L, F], "
            "[T, h, w, F], or n T rows of F. TAP: visual.NAME, audio.NAME or motion.NAME. Repeatable: one store.",
            show_default=False,
        ),
    ],
    dataset: DatasetOption = "",
    name: Annotated[
        str, typer.Option("--name", help="Name of the store.", show_default="the taps' names")
    ] = "",
    root: RootOption = None,
    home: HomeOption = None,
    dtype: stage.DtypeOption = "float16",
    shard_clips: stage.ShardClipsOption = 64,
    backend: stage.BackendOption = DEFAULT_BACKEND,
    labels: LabelsOption = None,
    segments: SegmentsOption = None,
    segment_s: SegmentSecondsOption = None,
    stride_s: StrideOption = None,
    relabel: RelabelOption = False,
    max_failed: stage.MaxFailedOption = DEFAULT_MAX_FAILED,
    as_json: JsonOption = False,
) -> None:
    """Store features made elsewhere, such as published ones; no media is read."""
    from caeav.pipeline.extract.features import FeatureOptions, import_features

    place = Home.find(home)
    options = FeatureOptions(paths_of_taps("--tap", taps), name, dtype, shard_clips, backend)
    given = source(root, labels, segments, segment_s, stride_s)
    loaded = stage.load(dataset, given, place, IS_LAST, relabel)
    manifest, called = loaded.manifest, loaded.called
    run = RunOptions(workers=1, max_failed=max_failed, relabel=relabel)
    summary = stage.with_bar(
        "import", lambda *tell: import_features(RunContext(manifest, place, run, *tell), options)
    )
    motion = "motion" in summary.recipe.fields  # which only video parsing reads
    step = (
        stage.next_step("train --task avvp", called, None, home) if motion else stage.train_step(called, home)
    )
    if summary.stored and not set(MODALITIES) <= summary.recipe.fields.keys():  # adapters need both
        step += f" --set stores.tokens={join_setting(place.stores, summary.path)}"
    if motion:
        step += " --set model.head.motion=true"
    try:
        stage.finish(summary, as_json, step)
    except CaeavError as error:  # nothing is made of media here, and corrected features are another store
        raise CaeavError(
            error.problem,
            hint=f"reasons are in {summary.path / 'quarantine.jsonl'}; fix the features and import again, or allow "
            "more by --max-failed",
        ) from error
