"""How fast clips become stored tokens, by stage and end to end, against the loop people write today.

    python benchmarks/extract.py [--clips 64] [--rounds 3] [--media FOLDER] [--workers 2]
    python benchmarks/extract.py --visual swinv2-large --audio hts-at --weights random:0 --devices 0 --batch 16

Without a folder it writes a synthetic set (10 s a clip, 128x128, 10 fps) and takes the real clips below CAEAV_SHARED
that decode. Today's loop: per clip two ffmpeg commands (a jpeg a second, a wav file), files read back, one forward
pass, `np.save`. Both see the same clips and the same backbones, take turns, and start from nothing each round. Other
work on the machine slows both; processor seconds a clip (all processes and threads) do not count it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import usable_cores
from caeav.manifests.dataset import load_dataset
from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.device.options import DEFAULT_BATCH, ComputeOptions
from caeav.pipeline.extract.jobs import DEFAULT_RATE_HZ, Job, TokenOptions
from caeav.pipeline.extract.progress import STAGES
from caeav.pipeline.extract.tokens import extract

SEGMENTS = 10
REPEATS = 4
"""Times each real clip is taken, since there are few and starting up is to be measured as it counts."""


@dataclass
class Round:
    """One way through all clips: wall and processor seconds, clips done, seconds by stage, and what limited it."""

    wall_s: float
    processor_s: float
    done: int
    stages_s: dict[str, float]
    note: str = ""


@dataclass
class Today:
    """The loop as it is found in the field's repositories, its stages timed."""

    job: Job
    device: str
    stages_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def clip(self, path: Path, clip: Clip, work: Path) -> bool:
        """One clip from file to file; False when ffmpeg refuses it."""
        for old in work.glob("*"):
            old.unlink()
        began = time.perf_counter()
        rate_hz = self.job.parts["audio"].rate_hz or DEFAULT_RATE_HZ
        span = ["-ss", str(clip.start_s), "-t", str(clip.seconds)]
        picture = [
            "ffmpeg",
            "-v",
            "error",
            *span,
            "-i",
            str(path),
            "-r",
            "1",
            "-q:v",
            "2",
            str(work / "%03d.jpg"),
        ]
        sound = [
            "ffmpeg",
            "-v",
            "error",
            *span,
            "-i",
            str(path),
            "-ac",
            "1",
            "-ar",
            str(rate_hz),
            str(work / "a.wav"),
        ]
        if any(subprocess.run(command, capture_output=True).returncode for command in (picture, sound)):
            return False
        decoded = time.perf_counter()
        frames, windows = _read_back(work, rate_hz)
        read = time.perf_counter()
        visual, audio = self._forward(frames, windows)
        computed = time.perf_counter()
        for name, tokens in (visual | audio).items():
            np.save(work / f"{clip.key}.{name}.npy", tokens.astype(np.float16))
        spent = (decoded - began, read - decoded, computed - read, time.perf_counter() - computed)
        for stage, seconds in zip(STAGES, spent, strict=True):
            self.stages_s[stage] += seconds
        return True

    def _forward(self, frames: np.ndarray, windows: np.ndarray) -> tuple[dict[str, np.ndarray], ...]:
        """Both backbones on one clip, on the device where they want one."""
        found = []
        for modality, seen in (("visual", frames), ("audio", windows)):
            part = self.job.parts[modality]
            if hasattr(part, "module"):
                part.module().to(self.device)
            found.append(part.tokens([seen])[0])  # type: ignore[union-attr]
        return tuple(found)


def _read_back(work: Path, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames `[T, H, W, 3]` and windows `[T, samples]` from the files that ffmpeg wrote."""
    from PIL import Image

    images = [np.asarray(Image.open(path)) for path in sorted(work.glob("*.jpg"))[:SEGMENTS]]
    images += [images[-1]] * (SEGMENTS - len(images))
    with wave.open(str(work / "a.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    wanted = np.zeros(SEGMENTS * rate_hz, np.float32)
    wanted[: samples.size] = samples[: wanted.size]
    return np.stack(images), wanted.reshape(SEGMENTS, rate_hz)


def timed(work: Callable[[], tuple[int, dict[str, float], str]]) -> Round:
    """Run one way and take wall and processor time, child processes included."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)

    def processor_s() -> float:
        return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))

    before, began = processor_s(), time.perf_counter()
    done, stages_s, note = work()
    return Round(time.perf_counter() - began, processor_s() - before, done, stages_s, note)


def run_today(manifest: Manifest, job: Job, device: str) -> tuple[int, dict[str, float], str]:
    """All clips, one after the other."""
    loop = Today(job, device)
    with tempfile.TemporaryDirectory() as work:
        done = sum(
            loop.clip(Path(manifest.media_root) / clip.media, clip, Path(work)) for clip in manifest.clips
        )
    return done, loop.stages_s, ""


def run_caeav(
    manifest: Manifest, options: TokenOptions, run: RunOptions
) -> tuple[int, dict[str, float], str]:
    """The same clips into a new store."""
    with tempfile.TemporaryDirectory() as home:
        summary = extract(RunContext(manifest, Home(Path(home)), run, lambda progress: None), options)
    return summary.stored, dict(summary.busy_s), summary.limit


def _sets(args: argparse.Namespace, work: Path) -> dict[str, Manifest]:
    """Name -> clips."""
    home = Home(work)
    if args.media:
        return {args.media.name: load_dataset(str(args.media), None, home, segments=SEGMENTS)}
    found = {}
    if args.clips:
        synthesise(home.data("synthetic"), SyntheticOptions(clips=args.clips), workers=2)
        found["synthetic"] = load_dataset("synthetic", None, home)
    shared = os.environ.get("CAEAV_SHARED")
    if shared and (Path(shared) / "data" / "media").is_dir():
        real = load_dataset(str(Path(shared) / "data" / "media"), None, home, segments=SEGMENTS)
        sound = [clip for clip in real.clips if not {"truncated", "corrupted", "silent"} & _words(clip)]
        again = [replace(clip, key=f"{clip.key}-{i}") for i in range(REPEATS) for clip in sound]
        found[f"real, each {REPEATS} times"] = replace(real, clips=tuple(again))
    return found


def _words(clip: Clip) -> set[str]:
    return set(clip.media.replace(".", "_").lower().split("_"))


def _print(name: str, ways: dict[str, list[Round]]) -> None:
    print(f"\n{name}: {ways['caeav'][0].done} clips\n")
    print(
        f"| way | clips/s | processor s a clip | {' | '.join(f'{stage} s a clip' for stage in STAGES)} | limit |"
    )
    print("|---" * (4 + len(STAGES)) + "|")
    for way, rounds in ways.items():
        rates = " ".join(f"{r.done / r.wall_s:.2f}" for r in rounds)
        middle = sorted(rounds, key=lambda r: r.processor_s)[len(rounds) // 2]
        stages = " | ".join(f"{middle.stages_s[stage] / middle.done:.4f}" for stage in STAGES)
        print(f"| {way} | {rates} | {middle.processor_s / middle.done:.3f} | {stages} | {middle.note} |")
    pairs = list(zip(ways["caeav"], ways["today"], strict=True))
    for what, ratio in (
        ("end to end", [(a.done / a.wall_s) / (b.done / b.wall_s) for a, b in pairs]),
        ("processor time", [(b.processor_s / b.done) / (a.processor_s / a.done) for a, b in pairs]),
    ):
        print(f"{what}: {statistics.median(ratio):.1f}x ({min(ratio):.1f} to {max(ratio):.1f})")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=64, help="of the synthetic set; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--media", type=Path)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--visual", default="classic")
    parser.add_argument("--audio", default="classic")
    parser.add_argument("--weights", default="", help="of both backbones")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--batch", type=int, default=DEFAULT_BATCH)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    if not shutil.which("ffmpeg"):
        parser.error("today's loop needs the ffmpeg command")
    compute = ComputeOptions(args.batch, args.precision)
    options = TokenOptions(
        ModelChoice(args.visual, args.weights), ModelChoice(args.audio, args.weights), compute=compute
    )
    run = RunOptions(args.workers, devices=tuple(args.devices.split(",")), max_failed="100%")
    first = args.devices.split(",")[0]
    device = f"cuda:{first}" if first.isdecimal() else "cpu"
    with tempfile.TemporaryDirectory() as work:
        for name, manifest in _sets(args, Path(work)).items():
            job = options.job(SEGMENTS, 1.0)
            ways: dict[str, list[Round]] = {"today": [], "caeav": []}
            for _ in range(args.rounds):
                ways["today"].append(timed(lambda m=manifest, j=job: run_today(m, j, device)))  # type: ignore[misc]
                ways["caeav"].append(timed(lambda m=manifest: run_caeav(m, options, run)))  # type: ignore[misc]
            _print(name, ways)


if __name__ == "__main__":
    main()
