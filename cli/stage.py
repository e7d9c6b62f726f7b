"""What `extract` and `caption` share: their options, the progress bar, and the summary printed at the end."""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from caeav.cli import datasets
from caeav.cli.console import print_json, printable, say
from caeav.cli.job_array import is_auto, slice_of_task
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import age_text, counted, size_text, usable_cores
from caeav.manifests.dataset import Source
from caeav.manifests.findings import warning_lines
from caeav.manifests.manifest import with_lazy_clips
from caeav.model.tasks.datasets import task_for_dataset
from caeav.pipeline.extract.cluster.options import ClusterOptions, address_of
from caeav.pipeline.extract.context import WHOLE, RunOptions
from caeav.pipeline.extract.device.options import AUTO
from caeav.pipeline.extract.progress import OnClip, Progress, Remark, StageSummary
from caeav.pipeline.store.media_record import MediaChange
from caeav.pipeline.store.remote.bucket import Bucket
from caeav.pipeline.store.remote.url import url_of_path
from caeav.pipeline.store.slices import Slice

if TYPE_CHECKING:
    from caeav.pipeline.extract.context import RunContext
    from caeav.pipeline.extract.jobs import StoreOptions

Made = TypeVar("Made")

DecoderOption = Annotated[str, typer.Option("--decoder", help="pyav, decord or torchcodec.")]
DtypeOption = Annotated[
    str, typer.Option("--dtype", help="Number format of stored tokens: float16, bfloat16, float32 or int8.")
]
BackendOption = Annotated[str, typer.Option("--backend", help="Format of the shards: webdataset or zarr.")]
ShardClipsOption = Annotated[int, typer.Option("--shard-clips", min=1, help="Clips per shard.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Decoding processes.", show_default="one per CPU core")
]
DeadlineOption = Annotated[
    float, typer.Option("--deadline", min=0.1, help="Seconds after which a clip's process is killed.")
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try the quarantined clips again.")]
MaxFailedOption = Annotated[
    str,
    typer.Option(
        "--max-failed",
        help="Exit with status 1 when more clips than this are quarantined: a number, or N% of all.",
    ),
]

DevicesOption = Annotated[
    str,
    typer.Option(
        "--devices", help="Where torch models compute: auto, cpu, cpu,cpu, or GPUs by number, as 0,1."
    ),
]
BatchOption = Annotated[
    int, typer.Option("--batch", min=1, help="Clips computed together on a device; part of the recipe.")
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="Of torch models: fp32, bf16 or fp16; part of the recipe.")
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Let torch compile the models first; part of the recipe.")
]
SliceOption = Annotated[
    str | None,
    typer.Option(
        "--slice",
        metavar="I/N|auto",
        help="Make every N-th shard only, for job arrays: 1/4 to 4/4; then `caeav store merge`. auto: as the batch "
        "system says; auto/N: its tasks are numbered 1 to N.",
    ),
]

LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, metavar="N", help="Only the first N clips of each split, as a data set of its own."
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print how many clips and bytes the run would make and how long it would take; make nothing.",
    ),
]
PublishOption = Annotated[
    str,
    typer.Option(
        "--publish",
        metavar="URL",
        help="Also put each finished shard below this address: s3://bucket/prefix, gs://, az:// or file://.",
        show_default=False,
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="local|ray|ray://HOST:PORT",
        help="Where clips are made: this machine, or a Ray cluster (RAY_ADDRESS, or the one of this machine).",
    ),
]
ActorsOption = Annotated[
    int | None,
    typer.Option("--actors", min=1, help="With ray: how many actors.", show_default="as many as fit"),
]
AcceleratorOption = Annotated[
    str, typer.Option("--accelerator-type", help="With ray: the type of GPU, as Ray names it, such as A100.")
]
MixedDevicesOption = Annotated[
    bool,
    typer.Option("--mixed-devices", help="With ray: allow devices of several kinds, whose bytes may differ."),
]

MAX_REASONS = 8
TICK_S = 1.0
LOG_EVERY_S = 20.0  # a log file gets a line now and then instead of a bar that redraws itself


def run_options(
    workers: int | None,
    deadline_s: float,
    retry_failed: bool,
    max_failed: str,
    devices: str = "auto",
    part: str | None = None,
    changed: str = "",
    relabel: bool = False,
    cluster: ClusterOptions | None = None,
) -> RunOptions:
    """How to run; by default one worker per core this process may use. Says which slice `auto` is."""
    chosen = WHOLE
    if part and is_auto(part):
        chosen, why = slice_of_task(part, os.environ)
        say(f"slice {chosen.number}/{chosen.count}, from {why}")
    elif part:
        chosen = Slice.parse(part)
    return RunOptions(
        workers or usable_cores(),
        deadline_s,
        retry_failed,
        max_failed,
        tuple(name.strip() for name in devices.split(",")) if cluster is None else (AUTO,),
        chosen,
        changed,
        relabel,
        cluster,
    )


def with_publishing(run: RunOptions, url: str) -> RunOptions:
    """The same run, with finished shards put below an address; raises `CaeavError` for what is none, at once."""
    return replace(run, publish=str(Bucket(url).url)) if url else run


def cluster_options(
    engine: str, actors: int | None, workers: int | None, devices: str, accelerator: str, mixed_devices: bool
) -> ClusterOptions | None:
    """What is asked of a cluster; None for the local engine, which has no such options (`CaeavError`)."""
    address = address_of(engine)
    if address is not None:
        return ClusterOptions(address, actors, workers, devices, accelerator, mixed_devices)
    for given, name in (
        (actors, "actors"),
        (accelerator, "accelerator-type"),
        (mixed_devices, "mixed-devices"),
    ):
        if given:
            raise CaeavError(f"--{name} without a cluster", hint="add --engine ray")
    return None


def load(
    dataset: str,
    given: Source,
    home: Home,
    does: str = datasets.KEEPS,
    relabel: bool = False,
    limit: int | None = None,
) -> datasets.Loaded:
    """Load the data set; print findings that may make every number wrong, and count the others."""
    loaded = datasets.load(dataset, given, home, does, relabel, limit)
    for text in warning_lines(loaded.manifest):
        say(f"remark: {printable(text)}")
    if loaded.manifest.findings:
        named = None if home == Home.find() else home.root
        command = next_step("manifest check", loaded.called, given.root, named, **cut_of(given))
        say(f"remarks on the data set: {len(loaded.manifest.findings)}, shown by {command}")
    return replace(loaded, manifest=with_lazy_clips(loaded.manifest))


def cut_of(given: Source) -> dict[str, Any]:
    """The options besides the folder, for `next_step`."""
    return {
        "labels": given.labels,
        "segments": given.segments,
        "segment_seconds": given.segment_s,
        "stride_seconds": given.stride_s,
    }


def with_bar(what: str, work: Callable[[OnClip, Remark], Made]) -> Made:
    """Run a stage under a progress bar: clips/s, remaining, failed, what limits; the clock always runs."""
    from tqdm import tqdm

    bar: tqdm[Any] | None = None
    over = threading.Event()
    every_s = 0.5 if sys.stderr.isatty() else LOG_EVERY_S

    def tick() -> None:
        redrawn = 0.0
        while not over.wait(TICK_S):  # a slow model says nothing for minutes
            if bar is not None and time.time() - max(bar.last_print_t, redrawn) >= every_s:
                bar.refresh()
                redrawn = time.time()

    def on_clip(progress: Progress) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=progress.total, desc=what, unit="clip", mininterval=every_s)
        failed = [f"failed={progress.failed}"] if progress.failed else []
        limit = [f"limit: {progress.limit}"] if progress.limit else []
        bar.set_postfix_str(", ".join(failed + limit), refresh=False)
        bar.update(progress.done - bar.n)

    def remark(text: str) -> None:
        with tqdm.external_write_mode(file=sys.stderr):  # not in the middle of the bar's line
            say(printable(text))

    ticking = threading.Thread(target=tick, name="caeav-bar", daemon=True)
    ticking.start()
    try:
        return work(on_clip, remark)
    except KeyboardInterrupt:
        say("\nfinished clips are kept; run the same command again to continue")
        raise
    finally:
        over.set()
        ticking.join()
        if bar is not None:
            bar.close()


def next_step(
    command: str, dataset: str | None, root: Path | None, home: Path | None, **cut: Path | str | float | None
) -> str:
    """The next command to type, with this command's folders and its options for cutting clips (`labels`, ...)."""
    given = {"dataset": dataset, "root": root, "home": home, **cut}
    if home is not None and os.environ.get("CAEAV_HOME") == str(home):
        given.pop("home")
    options = [
        f"--{name.replace('_', '-')} {shlex.quote(_as_typed(x))}"
        for name, x in given.items()
        if x is not None
    ]
    return " ".join(["caeav", command, *options])


def _as_typed(value: Path | str | float) -> str:
    if isinstance(value, Path):
        return url_of_path(value) or str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def train_step(dataset: str, home: Path | None) -> str:
    """The command that trains on a data set; without `--task` where `train` must find the task by the labels."""
    task = task_for_dataset(dataset)
    return next_step(f"train --task {task}" if task else "train", dataset, None, home)


def merge_step(dataset: str, home: Path | None) -> str:
    """The command that merges slices, once all are made."""
    return next_step(f"store merge {shlex.quote(dataset)}", None, None, home)


def finish(summary: StageSummary, as_json: bool, next_command: str) -> None:
    """Print the summary; raises `CaeavError` when more clips are quarantined than was allowed."""
    if as_json:
        print_json(_as_json(summary))
    else:
        _print(summary, next_command)
    _refuse_too_many(summary)


def _refuse_too_many(summary: StageSummary) -> None:
    if summary.too_many_failed:
        raise CaeavError(
            f"{len(summary.quarantined)} of {counted(summary.expected, 'clip')} are quarantined; --max-failed allows "
            f"{summary.max_failed}",
            hint=f"reasons are in {summary.path / 'quarantine.jsonl'}; fix the media and give --retry-failed, "
            "or allow more by --max-failed",
        )


def say_plan(context: RunContext, wanted: Sequence[StoreOptions], as_json: bool) -> None:
    """What a run would do (`--dry-run`)."""
    from caeav.pipeline.extract.forecast import forecast

    plan = forecast(context, wanted)
    if as_json:
        stores = [{**asdict(store), "path": str(store.path)} for store in plan.stores]
        print_json({"dataset": context.manifest.dataset, "seconds": plan.seconds, "stores": stores})
        return
    for store in plan.stores:
        each = store.clip_bytes
        print(store.path)
        held = f"{store.stored} stored, {store.quarantined} in quarantine"
        print(f"clips        {store.due} to make of {store.clips}; {held}")
        size = f"{size_text(each * store.due)}, {size_text(each)} per clip" if each else "not known"
        print(f"bytes        {size}")
        if store.problem:
            print(f"problem      {printable(store.problem)}")
    if plan.seconds is None:
        print(
            "time         not known: no run here has made these stores this way; a run with --limit 20 would show it"
        )
    else:
        print(f"time         about {age_text(plan.seconds)}, at the speed of the last run here")


def finish_all(summaries: Sequence[StageSummary], as_json: bool, next_command: str) -> None:
    """`finish` for several stores made together: JSON is a list. Raises for the first with too many failures."""
    if len(summaries) == 1:
        finish(summaries[0], as_json, next_command)
        return
    if as_json:
        print_json([_as_json(summary) for summary in summaries])
    else:
        for summary in summaries:
            _print(summary, "")
            print()
        print(f"next         {next_command}")
    for summary in summaries:
        _refuse_too_many(summary)


def _print(summary: StageSummary, next_command: str) -> None:
    if summary.due:
        rate = summary.due / max(summary.seconds, 1e-3)
        speed = f"{rate:.1f} clips/s" if rate >= 1 else f"{1 / rate:.1f} s per clip"
        print(f"{counted(summary.due, 'clip')} in {summary.seconds:.1f} s ({speed})")
        if summary.limit:
            shown = ", ".join(f"{stage} {s:.1f}" for stage, s in summary.busy_s.items() if s >= 0.05)
            print(f"limited by   {summary.limit}" + (f" (seconds of work: {shown})" if shown else ""))
    else:
        print("nothing to do: every clip is stored or quarantined already")
    each = f", {size_text(summary.bytes / summary.stored)} per clip" if summary.stored else ""
    print(f"stored       {summary.stored} of {summary.expected}{each}")
    if summary.quarantined:
        print(f"quarantined  {len(summary.quarantined)}")
        reasons = list(summary.reasons().items())
        for reason, n in reasons[:MAX_REASONS]:
            print(f"  {n} x {printable(reason)}")
        if len(reasons) > MAX_REASONS:
            print(f"  and {len(reasons) - MAX_REASONS} other reasons, see quarantine.jsonl")
    for code, n in summary.notes.items():
        print(f"noted        {n} x {code}")
    print(f"store        {summary.path}")
    if summary.stored and next_command:
        print(f"next         {next_command}")


def _as_json(summary: StageSummary) -> dict[str, Any]:
    return {
        "path": str(summary.path),
        "fingerprint": summary.recipe.fingerprint,
        "expected": summary.expected,
        "stored": summary.stored,
        "bytes": summary.bytes,
        "quarantined": [
            {"key": q.key, "stage": q.stage, "reason": q.reason, "attempts": q.attempts}
            for q in summary.quarantined
        ],
        "due": summary.due,
        "seconds": round(summary.seconds, 3),
        "busy_s": {stage: round(seconds, 3) for stage, seconds in summary.busy_s.items()},
        "limit": summary.limit,
        "notes": dict(summary.notes),
        "remarks": list(summary.remarks),
        "media": [media_json(change) for change in summary.media],
    }


def media_json(change: MediaChange) -> dict[str, str]:
    """A clip whose media changed, as JSON."""
    return {"key": change.key, "media": change.media, "what": change.what, "detail": change.detail}


@contextmanager
def telling_changes(as_json: bool) -> Iterator[None]:
    """Where the work inside is refused because media changed, print the changes as JSON, clip by clip."""
    from caeav.pipeline.extract.identity import MediaChanged

    try:
        yield
    except MediaChanged as refused:
        if as_json:
            print_json({"refused": refused.problem, "media": [media_json(x) for x in refused.changes]})
        raise
