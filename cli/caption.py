"""`caeav caption`: write captions of every clip and store them with their embeddings.

`caeav caption show|export|embed` print them, write them to a file for other programs, and embed them with other models.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from caeav.cli import datasets, stage
from caeav.cli.console import print_json, print_table, printable, say
from caeav.cli.datasets import KEEPS, LOOKS, source
from caeav.cli.options import (
    AudioTextWeightsOption,
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
    VisualTextWeightsOption,
    VisualWeightsOption,
    choose,
)
from caeav.manifests.core.atomic import publish_text
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted
from caeav.pipeline.extract.cluster.options import LOCAL
from caeav.pipeline.extract.context import DEFAULT_DEADLINE_S, DEFAULT_MAX_FAILED, RunContext
from caeav.pipeline.extract.device.options import DEFAULT_BATCH
from caeav.pipeline.media.registry import DEFAULT_DECODER
from caeav.pipeline.store import StoreReader, find_store, list_stores
from caeav.pipeline.store.backend import DEFAULT_BACKEND
from caeav.pipeline.store.dtypes import dtype_name
from caeav.pipeline.store.recipe import MODALITIES

StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Which caption store: name, folder or beginning of the fingerprint."),
]


def register(app: typer.Typer) -> None:
    """Add the command, which does the captioning unless a sub-command is named."""
    group = typer.Typer(invoke_without_command=True, callback=caption, subcommand_metavar="[COMMAND] ...")
    for command in (show, export, embed):
        group.command()(command)
    app.add_typer(group, name="caption")


def caption(
    context: typer.Context,
    dataset: DatasetOption = "",
    root: RootOption = None,
    home: HomeOption = None,
    visual: Annotated[str, typer.Option("--visual", help="Captioner of the frames.")] = "descriptor",
    visual_weights: VisualWeightsOption = None,
    audio: Annotated[str, typer.Option("--audio", help="Captioner of the audio.")] = "descriptor",
    audio_weights: AudioWeightsOption = None,
    visual_text: Annotated[
        str, typer.Option("--visual-text", help="Text backbone of visual captions.")
    ] = "hashed",
    visual_text_weights: VisualTextWeightsOption = None,
    audio_text: Annotated[
        str, typer.Option("--audio-text", help="Text backbone of audio captions.")
    ] = "hashed",
    audio_text_weights: AudioTextWeightsOption = None,
    settings: SetOption = None,
    decoder: stage.DecoderOption = DEFAULT_DECODER,
    dtype: stage.DtypeOption = "float16",
    shard_clips: stage.ShardClipsOption = 64,
    backend: stage.BackendOption = DEFAULT_BACKEND,
    batch: stage.BatchOption = DEFAULT_BATCH,
    precision: stage.PrecisionOption = "fp32",
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
    """Caption the frames and the audio of every clip; store the captions and their embeddings."""
    if _sub_command_named(context):
        return
    from caeav.pipeline.extract.captions import caption as run_caption
    from caeav.pipeline.extract.device.options import ComputeOptions
    from caeav.pipeline.extract.jobs import CaptionOptions

    place = Home.find(home)
    cluster = stage.cluster_options(engine, actors, workers, devices, accelerator, mixed_devices)
    run = stage.run_options(
        workers, deadline_s, retry_failed, max_failed, devices, part, changed, relabel, cluster
    )
    run = stage.with_publishing(run, publish)
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
    loaded = stage.load(dataset, given, place, LOOKS if dry_run else KEEPS, relabel=relabel, limit=limit)
    manifest, called = loaded.manifest, loaded.called
    if dry_run:
        stage.say_plan(RunContext(manifest, place, run), [options], as_json)
        return
    with stage.telling_changes(as_json):
        summary = stage.with_bar(
            "caption", lambda *tell: run_caption(RunContext(manifest, place, run, *tell), options)
        )
    step = stage.train_step(called, home)
    stage.finish(summary, as_json, stage.merge_step(manifest.dataset, home) if part else step)


def _sub_command_named(context: typer.Context) -> bool:
    """Whether a sub-command was named; options then belong behind it."""
    if context.invoked_subcommand is None:
        return False
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            command = f"caeav caption {context.invoked_subcommand}"
            context.fail(f"{parameter.opts[0]} belongs after the command: {command} {parameter.opts[0]} ...")
    return True


def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A clip's key.")],
    dataset: DatasetOption = "",
    store: StoreOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a clip's captions in every caption store of the data set: text, captioner and embedding."""
    readers = [StoreReader.open(path, allow_partial=True) for path in _stores(dataset, store, home)]
    if len(readers) > 1 and any(key in reader for reader in readers):
        readers = [reader for reader in readers if key in reader]
    shown = [_caption_json(reader, key) for reader in readers]
    if as_json:
        print_json(shown)
        return
    for facts in shown:
        print(facts["path"])
        rows = [(name, value) for modality in MODALITIES for name, value in _lines(modality, facts[modality])]
        print_table((printable(key), ""), rows)


def export(
    dataset: DatasetOption = "",
    form: Annotated[str, typer.Option("--format", help="csv or jsonl.")] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default="stdout")
    ] = None,
    store: StoreOption = None,
    home: HomeOption = None,
) -> None:
    """Write all captions of a store as a table of key, visual, audio, which `--visual file` reads back."""
    from caeav.pipeline.captioners.export import FORMATS, render, rows_of

    if form not in FORMATS:
        raise CaeavError(f"unknown format {form!r}", hint=f"choose one of: {', '.join(FORMATS)}")
    place = Home.find(home)
    path = find_store(place.stores, datasets.name(dataset, place), "captions", store)
    reader = StoreReader.open(path, allow_partial=True)
    text = render(rows_of(reader), form)
    if output is not None:
        publish_text(output, text)
    elif sys.stdout.isatty():  # the file as it is could steer a terminal
        print("\n".join(map(printable, text.splitlines())))
    else:
        sys.stdout.buffer.write(text.encode())
    for count, what in ((len(reader.quarantined), "in quarantine"), (len(reader.missing), "not yet made")):
        if count:
            say(f"{count} of {counted(len(reader.manifest.clips), 'clip')} have no captions: {what}")
    if output is not None:
        say(f"{counted(len(reader), 'clip')} written to {printable(output)}")


def embed(
    dataset: DatasetOption = "",
    store: StoreOption = None,
    visual_text: Annotated[
        str | None,
        typer.Option("--visual-text", help="Text backbone of visual captions.", show_default="the store's"),
    ] = None,
    visual_text_weights: VisualTextWeightsOption = None,
    audio_text: Annotated[
        str | None,
        typer.Option("--audio-text", help="Text backbone of audio captions.", show_default="the store's"),
    ] = None,
    audio_text_weights: AudioTextWeightsOption = None,
    settings: SetOption = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float16, bfloat16, float32 or int8.", show_default="the store's"),
    ] = None,
    home: HomeOption = None,
    devices: stage.DevicesOption = "auto",
    max_failed: stage.MaxFailedOption = DEFAULT_MAX_FAILED,
    as_json: JsonOption = False,
) -> None:
    """Embed the captions of a store with other text backbones, into a new store; nothing is captioned again."""
    from caeav.pipeline.extract.captions import reembed

    place = Home.find(home)
    called = datasets.name(dataset, place)
    source = StoreReader.open(find_store(place.stores, called, "captions", store))
    named = {
        "visual-text": (visual_text or "", visual_text_weights),
        "audio-text": (audio_text or "", audio_text_weights),
    }
    parts = {part: choice for part, choice in choose(named, settings).items() if choice.name}
    for part, (name, weights) in named.items():
        if weights and not name:
            raise CaeavError(
                f"--{part}-weights without --{part}", hint=f"name the text backbone: --{part} NAME"
            )
    run = stage.run_options(1, 1.0, False, max_failed, devices)
    summary = stage.with_bar(
        "embed",
        lambda *tell: reembed(
            RunContext(source.manifest, place, run, *tell),
            source,
            parts.get("visual-text"),
            parts.get("audio-text"),
            dtype,
        ),
    )
    stage.finish(summary, as_json, stage.train_step(called, home))


def _stores(dataset: str, store: str | None, home: Path | None) -> list[Path]:
    """The caption store called `store`, or all of the data set, at least one."""
    place = Home.find(home)
    named, stores = datasets.name(dataset, place), place.stores
    there = [info.path for info in list_stores(stores) if info.dataset == named and info.kind == "captions"]
    return there if store is None and there else [find_store(stores, named, "captions", store)]


def _caption_json(reader: StoreReader, key: str) -> dict[str, Any]:
    record = reader.read(key)
    facts: dict[str, dict[str, Any]] = {}
    for modality in MODALITIES:
        tokens, mask = record.arrays[f"{modality}_caption"], record.arrays[f"{modality}_caption_mask"]
        described = dict(reader.recipe.fields[modality])
        facts[modality] = {
            "text": record.info["texts"][modality],
            "text_backbone": described.pop("text"),
            "captioner": described,
            "tokens": int(mask.astype(bool).sum()),
            "shape": list(tokens.shape),
            "dtype": dtype_name(tokens),
        }
    return {"path": str(reader.path), "key": key, **facts}


def _lines(modality: str, facts: dict[str, Any]) -> list[tuple[str, str]]:
    captioner, encoder = facts["captioner"], facts["text_backbone"]
    settings = {**{k: v for k, v in captioner.items() if k not in ("name", "settings", "weights")}}
    settings |= captioner.get("settings", {})
    shown = ", ".join(f"{name} {value!r}" for name, value in settings.items())
    width = " x ".join(map(str, facts["shape"]))
    lines = [
        (modality, facts["text"] or "(none)"),
        ("  written by", captioner["name"] + _source(captioner)),
        *([("  with", shown)] if shown else []),
        (
            "  embedded by",
            f"{encoder['name']}{_source(encoder)}: {facts['tokens']} tokens of {width} {facts['dtype']}",
        ),
    ]
    return lines


def _source(described: dict[str, Any]) -> str:
    weights = described.get("weights", {})
    return f" ({weights['source']}, {weights['digest'][:19]})" if weights else ""
