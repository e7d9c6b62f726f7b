"""`caeav caption`: media files to a store of captions and their embeddings; `captions.py` has its sub-commands."""

from __future__ import annotations

from typing import Annotated

import typer

from caeav.cli import captions, stage as stages
from caeav.cli.choices import WEIGHTS_HELP, SetOption, choose
from caeav.cli.datasets import source
from caeav.cli.options import (
    ChangedOption,
    DatasetOption,
    HomeOption,
    JsonOption,
    LabelsOption,
    RelabelOption,
    RootOption,
    SegmentSecondsOption,
    SegmentsOption,
    StrideOption,
)
from caeav.manifests.core.home import Home
from caeav.pipeline.media.registry import DEFAULT_DECODER
from caeav.pipeline.extract.device.options import DEFAULT_BATCH
from caeav.pipeline.store.backend import DEFAULT_BACKEND
from caeav.pipeline.extract.options import DEFAULT_DEADLINE_S, DEFAULT_MAX_FAILED


def register(app: typer.Typer) -> None:
    """Add the command, which does the captioning unless a sub-command is named."""
    group = typer.Typer(invoke_without_command=True, callback=caption, subcommand_metavar="[COMMAND] ...")
    captions.register(group)
    app.add_typer(group, name="caption")


def caption(
    context: typer.Context,
    dataset: DatasetOption = "",
    root: RootOption = None,
    home: HomeOption = None,
    visual: Annotated[str, typer.Option("--visual", help="Captioner of pictures.")] = "descriptor",
    visual_weights: Annotated[str | None, typer.Option("--visual-weights", help=WEIGHTS_HELP)] = None,
    audio: Annotated[str, typer.Option("--audio", help="Captioner of sound.")] = "descriptor",
    audio_weights: Annotated[str | None, typer.Option("--audio-weights", help=WEIGHTS_HELP)] = None,
    visual_text: Annotated[
        str, typer.Option("--visual-text", help="Text backbone of visual captions.")
    ] = "hashed",
    visual_text_weights: Annotated[
        str | None, typer.Option("--visual-text-weights", help=WEIGHTS_HELP)
    ] = None,
    audio_text: Annotated[
        str, typer.Option("--audio-text", help="Text backbone of audio captions.")
    ] = "hashed",
    audio_text_weights: Annotated[str | None, typer.Option("--audio-text-weights", help=WEIGHTS_HELP)] = None,
    settings: SetOption = None,
    decoder: stages.DecoderOption = DEFAULT_DECODER,
    dtype: stages.DtypeOption = "float16",
    shard_clips: stages.ShardClipsOption = 64,
    backend: stages.BackendOption = DEFAULT_BACKEND,
    batch: stages.BatchOption = DEFAULT_BATCH,
    precision: stages.PrecisionOption = "fp32",
    labels: LabelsOption = None,
    segments: SegmentsOption = None,
    segment_s: SegmentSecondsOption = None,
    stride_s: StrideOption = None,
    relabel: RelabelOption = False,
    changed: ChangedOption = "",
    workers: stages.WorkersOption = None,
    devices: stages.DevicesOption = "auto",
    part: stages.SliceOption = None,
    deadline_s: stages.DeadlineOption = DEFAULT_DEADLINE_S,
    retry_failed: stages.RetryOption = False,
    max_failed: stages.MaxFailedOption = DEFAULT_MAX_FAILED,
    as_json: JsonOption = False,
) -> None:
    """Write a caption of the picture and one of the sound of every clip, and store them embedded."""
    if captions.asked_for(context):
        return
    from caeav.pipeline.extract.captions import caption as run_caption
    from caeav.pipeline.extract.device.options import ComputeOptions
    from caeav.pipeline.extract.jobs import CaptionOptions

    place = Home.find(home)
    run = stages.run_options(workers, deadline_s, retry_failed, max_failed, devices, part, changed, relabel)
    parts = choose(
        {
            "visual": (visual, visual_weights),
            "audio": (audio, audio_weights),
            "visual-text": (visual_text, visual_text_weights),
            "audio-text": (audio_text, audio_text_weights),
        },
        settings,
    )
    options = CaptionOptions(
        visual=parts["visual"],
        audio=parts["audio"],
        visual_text=parts["visual-text"],
        audio_text=parts["audio-text"],
        decoder=decoder,
        dtype=dtype,
        shard_clips=shard_clips,
        backend=backend,
        compute=ComputeOptions(batch, precision),
    )
    given = source(root, labels, segments, segment_s, stride_s)
    loaded = stages.load(dataset, given, place, relabel=relabel)
    manifest, called = loaded.manifest, loaded.called
    with stages.telling_changes(as_json):
        summary = stages.with_bar("caption", lambda *tell: run_caption(manifest, place, options, run, *tell))
    step = stages.train_step(called, home)
    stages.finish(summary, as_json, stages.merge_step(manifest.dataset, home) if part else step)
