"""`caeav extract`: media files to a store of frozen-backbone tokens."""

from __future__ import annotations

from typing import Annotated

import typer

from caeav.cli import stages
from caeav.cli.choices import WEIGHTS_HELP, SetOption, choose
from caeav.cli.options import DatasetOption, HomeOption, JsonOption, RootOption
from caeav.manifests.home import Home
from caeav.pipeline.decode.registry import DEFAULT_DECODER
from caeav.pipeline.store.backend import DEFAULT_BACKEND
from caeav.pipeline.summary import DEFAULT_DEADLINE_S, DEFAULT_MAX_FAILED


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(extract)


def extract(
    dataset: DatasetOption,
    root: RootOption = None,
    home: HomeOption = None,
    visual: Annotated[str, typer.Option("--visual", help="Visual backbone.")] = "classic",
    visual_weights: Annotated[str | None, typer.Option("--visual-weights", help=WEIGHTS_HELP)] = None,
    audio: Annotated[str, typer.Option("--audio", help="Audio backbone.")] = "classic",
    audio_weights: Annotated[str | None, typer.Option("--audio-weights", help=WEIGHTS_HELP)] = None,
    settings: SetOption = None,
    decoder: stages.DecoderOption = DEFAULT_DECODER,
    dtype: stages.DtypeOption = "float16",
    shard_clips: stages.ShardClipsOption = 64,
    backend: stages.BackendOption = DEFAULT_BACKEND,
    labels: stages.LabelsOption = None,
    segments: stages.SegmentsOption = None,
    segment_s: stages.SegmentSecondsOption = None,
    workers: stages.WorkersOption = None,
    deadline_s: stages.DeadlineOption = DEFAULT_DEADLINE_S,
    retry_failed: stages.RetryOption = False,
    max_failed: stages.MaxFailedOption = DEFAULT_MAX_FAILED,
    as_json: JsonOption = False,
) -> None:
    """Decode every clip, run the frozen backbones, store their tokens. Interrupted or repeated, it goes on."""
    from caeav.pipeline.extract import extract as run_extract
    from caeav.pipeline.recipes import TokenOptions

    place = Home.find(home)
    run = stages.run_options(workers, deadline_s, retry_failed, max_failed)
    parts = choose({"visual": (visual, visual_weights), "audio": (audio, audio_weights)}, settings)
    options = TokenOptions(
        parts["visual"],
        parts["audio"],
        decoder=decoder,
        dtype=dtype,
        shard_clips=shard_clips,
        backend=backend,
    )
    manifest = stages.load(dataset, root, place, labels, segments, segment_s)
    summary = stages.with_bar("extract", lambda *tell: run_extract(manifest, place, options, run, *tell))
    stages.finish(summary, as_json, stages.next_step("caption", dataset, root, home))
