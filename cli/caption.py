"""`caeav caption`: media files to a store of captions and their embeddings."""

from __future__ import annotations

from typing import Annotated

import typer

from caeav.cli import stages
from caeav.cli.options import DatasetOption, HomeOption, JsonOption, RootOption
from caeav.manifests.home import Home
from caeav.pipeline.decode.registry import DEFAULT_DECODER
from caeav.pipeline.summary import DEFAULT_DEADLINE_S, DEFAULT_MAX_FAILED


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(caption)


def caption(
    dataset: DatasetOption,
    root: RootOption = None,
    home: HomeOption = None,
    visual: Annotated[str, typer.Option("--visual", help="Captioner of pictures.")] = "descriptor",
    audio: Annotated[str, typer.Option("--audio", help="Captioner of sound.")] = "descriptor",
    visual_text: Annotated[
        str, typer.Option("--visual-text", help="Text backbone of visual captions.")
    ] = "hashed",
    audio_text: Annotated[
        str, typer.Option("--audio-text", help="Text backbone of audio captions.")
    ] = "hashed",
    decoder: stages.DecoderOption = DEFAULT_DECODER,
    dtype: stages.DtypeOption = "float16",
    shard_clips: stages.ShardClipsOption = 64,
    labels: stages.LabelsOption = None,
    segments: stages.SegmentsOption = None,
    segment_s: stages.SegmentSecondsOption = None,
    workers: stages.WorkersOption = None,
    deadline_s: stages.DeadlineOption = DEFAULT_DEADLINE_S,
    retry_failed: stages.RetryOption = False,
    max_failed: stages.MaxFailedOption = DEFAULT_MAX_FAILED,
    as_json: JsonOption = False,
) -> None:
    """Write a caption of the picture and one of the sound of every clip, and store them embedded."""
    from caeav.pipeline.caption import caption as run_caption
    from caeav.pipeline.recipes import CaptionOptions

    place = Home.find(home)
    run = stages.run_options(workers, deadline_s, retry_failed, max_failed)
    options = CaptionOptions(visual, audio, visual_text, audio_text, decoder, dtype, shard_clips)
    manifest = stages.load(dataset, root, place, labels, segments, segment_s)
    summary = stages.with_bar("caption", lambda *tell: run_caption(manifest, place, options, run, *tell))
    stages.finish(summary, as_json, stages.next_step("train --task ave", dataset, None, home))
