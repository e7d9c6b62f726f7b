"""`caeav extract`: media files to stores of frozen-backbone tokens, as many as are asked for in one pass."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer

from caeav.cli import stage
from caeav.cli.console import say
from caeav.cli.datasets import IS_LAST, LOOKS, source
from caeav.cli.options import (
    WEIGHTS_HELP,
    AudioWeightsOption,
    ChangedOption,
    DatasetOption,
    HomeOption,
    JsonOption,
    LabelsOption,
    RelabelOption,
    RootOption,
    SegmentSecondsOption,
    SegmentsOption,
    SetOption,
    StrideOption,
    VisualWeightsOption,
    choose,
)
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted
from caeav.manifests.readers import OFFICIAL
from caeav.pipeline.extract.cluster.options import LOCAL
from caeav.pipeline.extract.context import DEFAULT_DEADLINE_S, DEFAULT_MAX_FAILED, RunContext
from caeav.pipeline.extract.device.options import DEFAULT_BATCH
from caeav.pipeline.media.registry import DEFAULT_DECODER
from caeav.pipeline.store.backend import DEFAULT_BACKEND
from caeav.pipeline.store.recipe import MODALITIES

if TYPE_CHECKING:
    from caeav.pipeline.backbones.choice import ModelChoice

NONE = "none"
SEVERAL = (
    " Several, separated by commas, give one store each, paired with --audio by place; none leaves it out."
)


def _like_caption(flag: str, what: str = WEIGHTS_HELP, default: str | None = None) -> Any:
    """An option of `caeav caption`, used with `--captions`."""
    return typer.Option(flag, help=what, show_default=default or False)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(extract)


def extract(
    dataset: DatasetOption = "",
    root: RootOption = None,
    home: HomeOption = None,
    visual: Annotated[str, typer.Option("--visual", help="Visual backbone." + SEVERAL)] = "classic",
    visual_weights: VisualWeightsOption = None,
    audio: Annotated[str, typer.Option("--audio", help="Audio backbone, likewise.")] = "classic",
    audio_weights: AudioWeightsOption = None,
    captions: Annotated[
        bool,
        typer.Option("--captions", help="Write captions too, from the same decoding, as `caeav caption`."),
    ] = False,
    caption_visual: Annotated[
        str | None, _like_caption("--caption-visual", "Captioner of the frames.", "descriptor")
    ] = None,
    caption_visual_weights: Annotated[str | None, _like_caption("--caption-visual-weights")] = None,
    caption_audio: Annotated[
        str | None, _like_caption("--caption-audio", "Captioner of the audio.", "descriptor")
    ] = None,
    caption_audio_weights: Annotated[str | None, _like_caption("--caption-audio-weights")] = None,
    caption_visual_text: Annotated[
        str | None, _like_caption("--caption-visual-text", "Text backbone of visual captions.", "hashed")
    ] = None,
    caption_visual_text_weights: Annotated[str | None, _like_caption("--caption-visual-text-weights")] = None,
    caption_audio_text: Annotated[
        str | None, _like_caption("--caption-audio-text", "Text backbone of audio captions.", "hashed")
    ] = None,
    caption_audio_text_weights: Annotated[str | None, _like_caption("--caption-audio-text-weights")] = None,
    settings: SetOption = None,
    decoder: stage.DecoderOption = DEFAULT_DECODER,
    dtype: stage.DtypeOption = "float16",
    shard_clips: stage.ShardClipsOption = 64,
    backend: stage.BackendOption = DEFAULT_BACKEND,
    batch: stage.BatchOption = DEFAULT_BATCH,
    precision: stage.PrecisionOption = "fp32",
    compiled: stage.CompileOption = False,
    labels: LabelsOption = None,
    segments: SegmentsOption = None,
    segment_s: SegmentSecondsOption = None,
    stride_s: StrideOption = None,
    relabel: RelabelOption = False,
    changed: ChangedOption = "",
    workers: stage.WorkersOption = None,
    devices: stage.DevicesOption = "auto",
    engine: stage.EngineOption = LOCAL,
    actors: stage.ActorsOption = None,
    accelerator: stage.AcceleratorOption = "",
    mixed_devices: stage.MixedDevicesOption = False,
    part: stage.SliceOption = None,
    deadline_s: stage.DeadlineOption = DEFAULT_DEADLINE_S,
    retry_failed: stage.RetryOption = False,
    max_failed: stage.MaxFailedOption = DEFAULT_MAX_FAILED,
    publish: stage.PublishOption = "",
    limit: stage.LimitOption = None,
    dry_run: stage.DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode every clip once, run the frozen backbones, store their tokens. Run again, it continues."""
    from caeav.pipeline.extract.device.options import ComputeOptions
    from caeav.pipeline.extract.jobs import CaptionOptions, StoreOptions, TokenOptions
    from caeav.pipeline.extract.tokens import extract_all

    place = Home.find(home)
    cluster = stage.cluster_options(engine, actors, workers, devices, accelerator, mixed_devices)
    run = stage.run_options(
        workers, deadline_s, retry_failed, max_failed, devices, part, changed, relabel, cluster
    )
    run = stage.with_publishing(run, publish)
    compute = ComputeOptions(batch, precision, compiled)
    written = _written(
        captions,
        {
            "caption-visual": (caption_visual, caption_visual_weights),
            "caption-audio": (caption_audio, caption_audio_weights),
            "caption-visual-text": (caption_visual_text, caption_visual_text_weights),
            "caption-audio-text": (caption_audio_text, caption_audio_text_weights),
        },
    )
    modalities = {
        "visual": _several("visual", visual, visual_weights),
        "audio": _several("audio", audio, audio_weights),
    }
    named = {
        f"{modality}{i or ''}": pair for modality, pairs in modalities.items() for i, pair in pairs.items()
    }
    chosen = choose({**named, **written}, settings)
    wanted: list[StoreOptions] = [
        TokenOptions(
            one,
            other,
            decoder=decoder,
            dtype=dtype,
            shard_clips=shard_clips,
            backend=backend,
            compute=compute,
        )
        for one, other in _pairs(chosen)
    ]
    if captions:
        wanted.append(
            CaptionOptions(
                visual=chosen["caption-visual"],
                audio=chosen["caption-audio"],
                visual_text=chosen["caption-visual-text"],
                audio_text=chosen["caption-audio-text"],
                decoder=decoder,
                dtype=dtype,
                shard_clips=shard_clips,
                backend=backend,
                compute=compute,
            )
        )
    given = source(root, labels, segments, segment_s, stride_s)
    loaded = stage.load(dataset, given, place, LOOKS if dry_run else IS_LAST, relabel=relabel, limit=limit)
    manifest, called = loaded.manifest, loaded.called
    if dry_run:
        stage.say_plan(RunContext(manifest, place, run), wanted, as_json)
        return
    with stage.telling_changes(as_json):
        done = stage.with_bar(
            "extract", lambda *tell: extract_all(RunContext(manifest, place, run, *tell), wanted)
        )
    if part:
        step = stage.merge_step(manifest.dataset, home)
    elif captions:
        step = stage.train_step(called, home)
    else:
        step = stage.next_step("caption", called, root, home, **stage.cut_of(given))
    stage.finish_all(done, as_json, step)
    longer = max(summary.notes.get("longer_media", 0) for summary in done)
    if (
        longer
        and loaded.source.stride_s is None
        and manifest.dataset not in OFFICIAL
        and _begin_files(manifest)
    ):
        seconds = manifest.segments * manifest.segment_s
        say(
            f"{counted(longer, 'clip')} of files longer than their clip (longer_media): to cut each whole file "
            f"into clips, add --stride-seconds {seconds:g}"
        )


def _begin_files(manifest: Manifest) -> bool:
    """Whether all clips are just the beginnings of files, because no label file or list says where they begin."""
    return all(clip.start_s == 0 and "id" not in clip.extra for clip in manifest.clips)


def _written(
    captions: bool, given: dict[str, tuple[str | None, str | None]]
) -> dict[str, tuple[str, str | None]]:
    """Name and weights of each part of captioning; raises `CaeavError` for parts without `--captions`."""
    if captions:
        return {
            part: (name or ("hashed" if part.endswith("text") else "descriptor"), weights)
            for part, (name, weights) in given.items()
        }
    for part, (name, weights) in given.items():
        if name or weights:
            raise CaeavError(f"--{part}{'' if name else '-weights'} without captions", hint="add --captions")
    return {}


def _several(modality: str, names: str, weights: str | None) -> dict[int, tuple[str, str | None]]:
    """Place (0, 2, 3, ...: what follows the modality's name in --set) -> name and weights of each backbone."""
    listed = [name.strip() for name in names.split(",")]
    given = [weights] if len(listed) == 1 else (weights.split(",") if weights else [])
    if len(given) > len(listed) or not all(listed):
        raise CaeavError(
            f"--{modality} names {len(listed)} backbones, --{modality}-weights {len(given)} weights",
            hint="give one per place, and nothing between two commas for the default",
        )
    pairs = zip_longest(listed, given)
    return {i + 1 if i else 0: (name, source or None) for i, (name, source) in enumerate(pairs)}


def _pairs(chosen: dict[str, ModelChoice]) -> list[tuple[ModelChoice | str, ModelChoice | str]]:
    """The visual and the audio backbone of each store; where one list is longer, its last entries stand alone."""
    lists = [
        [x for name, x in chosen.items() if name.rstrip("0123456789") == modality] for modality in MODALITIES
    ]
    return [(one or NONE, other or NONE) for one, other in zip_longest(*lists)]
