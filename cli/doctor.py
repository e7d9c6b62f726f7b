"""`caeav doctor`: what this machine has, and whether it works. One check per line; no check changes anything.

A check that finds something missing says what it is needed for; only what the default commands need is a problem.
Decoders are not just imported: each decodes a sample made on the spot, in a killable process as extraction uses.
"""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray

from caeav.cli.console import print_json, print_table, say
from caeav.cli.options import HomeOption, JsonOption
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import counted, usable_cores
from caeav.manifests.synthetic.media import mp4
from caeav.pipeline.media.clip import Sampling
from caeav.pipeline.media.registry import DEFAULT_DECODER, decoders
from caeav.pipeline.media.workers.pool import WorkerPool

Status = Literal["ok", "absent", "low", "problem"]
OPTIONAL = {
    "decord": "--decoder decord",
    "torchcodec": "--decoder torchcodec",
    "torchvision": "learned visual backbones",
    "torchaudio": "learned audio backbones",
    "timm": "swinv2-*, timm:<name>",
    "open_clip_torch": "clip-*, open_clip:<name>",
    "transformers": "clap and learned captioners",
    "webdataset": "streaming shards with that library",
    "zarr": "reading zarr shards with that library",
}
LOW_DISK_BYTES = 5 * 2**30
SAMPLE = Sampling(segments=3, segment_s=1.0, rate_hz=16_000)
SAMPLE_SIDE_PX = 64
SAMPLE_FPS = 8


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Versions, devices, decoders, disk, weights, and a sample decoded. Exit status 1 when something is wrong."""

    checks = list(examine(Home.find(home)))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        print_table(["what", "status", "detail"], [[c.about, c.status, c.detail] for c in checks])
    problems = [check.about for check in checks if check.status == "problem"]
    if problems:
        say(f"to fix: {', '.join(problems)}")
        raise typer.Exit(1)


@dataclass(frozen=True)
class Check:
    """One line of the table: `ok`, `absent` (an option that is not there), `low` (it works, but may not be enough) or
    `problem` (something to fix)."""

    about: str
    status: Status
    detail: str


def examine(home: Home) -> Iterator[Check]:
    """Make all checks, one after the other."""
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield from _packages()
    yield from _devices()
    yield _disk(home)
    yield from _weights()
    with tempfile.TemporaryDirectory(prefix="caeav-doctor-") as folder:
        sample = Path(folder) / "sample.mp4"
        sample.write_bytes(_sample())
        for name in decoders.names():
            yield _decoder(name, sample)


def _packages() -> Iterator[Check]:
    """What the program was installed with, and what may be there beside it."""
    needed = [text for text in requires("caeav") or () if "extra ==" not in text]
    for name in [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in needed]:
        try:
            yield Check(name, "ok", version(name))
        except PackageNotFoundError:
            yield Check(name, "problem", f"not installed; pip install {name}")
    for name, use in OPTIONAL.items():
        try:
            yield Check(name, "ok", version(name))
        except PackageNotFoundError:
            yield Check(name, "absent", f"only needed for {use}")


def _devices() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a build for another machine, say
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        yield Check("devices", "problem", f"torch does not load: {reason}")
        return
    threads = counted(torch.get_num_threads(), "thread")
    yield Check("cpu", "ok", f"{counted(usable_cores(), 'core')} usable, torch uses {threads}")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield Check(
            "cuda", "absent", f"no device; torch is built {f'for CUDA {built}' if built else 'for CPU only'}"
        )
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        yield Check(f"cuda:{i}", "ok", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")


def _disk(home: Home) -> Check:
    """Free space and write permission where the home folder is or would be made."""
    place = home.root
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Check(
            "home", "problem", f"{home.root}: {place} cannot be written to; choose another with --home"
        )
    free = shutil.disk_usage(place).free
    told = f"{home.root}, {free / 2**30:.1f} GiB free"
    if free >= LOW_DISK_BYTES:
        return Check("home", "ok", told)
    return Check(
        "home", "low", f"{told}; below {LOW_DISK_BYTES >> 30} GiB choose another with --home for large sets"
    )


def _weights() -> Iterator[Check]:
    """A line per kind: its models by the state of their weights; looks at the hub's cache only."""
    from caeav.pipeline.backbones.catalogue import REGISTRIES
    from caeav.pipeline.backbones.describe import weights_state
    from caeav.pipeline.backbones.facts import MODELS

    for kind in REGISTRIES:
        states: dict[str, list[str]] = {}
        for row in MODELS:
            if row.kind == kind:
                name = f"{row.name}<name>" if row.name.endswith(":") else row.name
                states.setdefault(weights_state(row), []).append(name)
        told = "; ".join(f"{state}: {', '.join(names)}" for state, names in states.items())
        yield Check(f"weights, {kind}s", "ok", told)


def _sample() -> bytes:
    """Three seconds: brightness rises by a third a second, under a 440 Hz tone."""
    seconds = np.arange(SAMPLE.samples) / SAMPLE.rate_hz
    frames = (
        np.full((SAMPLE_SIDE_PX, SAMPLE_SIDE_PX, 3), 60 + 60 * (i // SAMPLE_FPS), dtype=np.uint8)
        for i in range(SAMPLE.segments * SAMPLE_FPS)
    )
    tone = (0.5 * np.sin(2 * math.pi * 440 * seconds)).astype(np.float32)
    return mp4(frames, tone, size_px=SAMPLE_SIDE_PX, fps=SAMPLE_FPS, rate_hz=SAMPLE.rate_hz)


def setup(
    settings: Mapping[str, Any],
) -> Callable[[Mapping[str, Any]], tuple[dict[str, NDArray[Any]], dict[str, Any]]]:
    """Child side: decode the sample with one decoder and measure what came out."""
    decoder = decoders[settings["decoder"]]()

    def measure(request: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        clip = decoder.decode(request["path"], 0.0, SAMPLE)
        if clip.frames is None or clip.wave is None:
            missing = "frames" if clip.frames is None else "audio"
            return {}, {"problem": f"no {missing} came out"}
        levels = [float(frame.mean()) for frame in clip.frames]
        crossings = int(np.count_nonzero(np.diff(np.signbit(clip.wave))))
        hz = crossings / 2 / SAMPLE.seconds
        info = {
            "version": decoder.version(),
            "frames": len(levels),
            "samples": len(clip.wave),
            "hz": round(hz),
        }
        if not levels[0] + 30 < levels[1] < levels[2] - 30:
            info["problem"] = f"frames come out in the wrong order or shade: {[round(x) for x in levels]}"
        elif abs(hz - 440) > 5:
            info["problem"] = f"a tone of 440 Hz comes out as {hz:.0f} Hz"
        return {}, info

    return measure


def _decoder(name: str, sample: Path) -> Check:
    about = f"decoder {name}" + (" (default)" if name == DEFAULT_DECODER else "")
    bad: Status = "problem" if name == DEFAULT_DECODER else "absent"
    with WorkerPool(f"{__name__}:setup", {"decoder": name}, deadline_s=60.0) as pool:
        for outcome in pool.map([{"id": "sample", "path": str(sample)}]):
            if outcome.failure is not None:
                why = [line.strip().removeprefix("next: ") for line in outcome.failure.reason.splitlines()]
                return Check(about, bad, "; ".join(why[:2]))  # what is wrong, and what to do
            info = outcome.info
            if "problem" in info:
                return Check(about, "problem", str(info["problem"]))
            return Check(
                about, "ok", f"{info['version']}; sample: {info['frames']} frames, {info['samples']} samples"
            )
    return Check(about, bad, "no answer")
