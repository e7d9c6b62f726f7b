"""What caching buys: a training step with adapters beside cached taps, behind cached stages, and in the whole networks.

    python benchmarks/placements.py [--steps 2] [--threads 2] [--device cpu] [--rows ladder stage4 ...]

Swin-V2-L at 192 pixels and HTS-AT at their real sizes with random weights (needs the `learned` extra), the reference's
AVE adapters (AVMoE skips stages 2 and 4), CASE and head, one clip of 10 segments, float32. A step is forward,
loss, backward and Adam. `ladder` adapts all four taps as `full` adapts all four stages; `ladder4` only the deepest, as
`stage4`. Every row runs in a fresh process: one step to warm up, then the median of `--steps`; peak
memory is the process's (on a GPU the allocator's), weights and optimiser included. On a shared machine compare by
CPU time. Nothing is read from disk: what loading taps costs is the store benchmark's business.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from caeav.model.adapters.batch import CaptionSpec, Inputs, InputSpec, TokenBatch
from caeav.model.adapters.config import AdapterConfig, MoeConfig
from caeav.model.adapters.inject import FRAMES, WINDOWS
from caeav.model.adapters.live import Live
from caeav.model.tasks.ave.loss import ave_loss
from caeav.model.tasks.base import TASKS
from caeav.model.train.config_file import model_class
from caeav.model.train.network import Network, build_network
from caeav.pipeline.store.record import Tap

ROWS = ("ladder4", "ladder", "stage4", "stage3", "stage2", "full")
SEGMENTS, CAPTION, CLASSES = 10, (77, 768), tuple(f"class{i}" for i in range(28))
VISUAL = ((2304, 192), (576, 384), (144, 768), (36, 1536))
AUDIO = ((4096, 96), (1024, 192), (256, 384), (64, 768))


def taps(modality: str, shapes: tuple[tuple[int, int], ...]) -> tuple[Tap, ...]:
    return tuple(Tap(f"{modality}.stage{i}", *shape) for i, shape in enumerate(shapes, start=1))


def live_backbones() -> Live:
    """Both networks with random weights."""
    from caeav.pipeline.backbones.htsat.network import Htsat, LiveHtsat
    from caeav.pipeline.backbones.timm_models import LiveSwinV2, import_timm

    swin = import_timm().create_model("swinv2_large_window12_192", num_classes=0)
    return Live(LiveSwinV2(swin), LiveHtsat(Htsat()))


def build_ave(spec: InputSpec, adapters: AdapterConfig, live: Live | None = None) -> Network:
    """The AVE network of these adapters."""
    config = model_class("ave")(adapters=adapters)
    return build_network(TASKS["ave"], Inputs("none", CLASSES, 1.0, spec), config, live)


def build(row: str) -> torch.nn.Module:
    """The row's model."""
    captions = {"visual_caption": CaptionSpec(*CAPTION), "audio_caption": CaptionSpec(*CAPTION)}
    moe = MoeConfig(num_skip=2)
    spec = InputSpec(SEGMENTS, taps("visual", VISUAL), taps("audio", AUDIO), **captions)
    if row.startswith("ladder"):
        first = int(row.removeprefix("ladder") or 1) - 1
        spec = replace(spec, visual=spec.visual[first:], audio=spec.audio[first:])
        moe = moe if row == "ladder" else MoeConfig(enabled=False)  # stage 4 is one that AVMoE skips
        return build_ave(spec, AdapterConfig(avmoe=moe))
    if row == "full":
        spec = InputSpec(SEGMENTS, (Tap(FRAMES, 1, 1),), (Tap(WINDOWS, 1, 1),), **captions)
    start: Any = "stage1" if row == "full" else row
    adapters = AdapterConfig(placement="inject", inject_from=start, avmoe=moe)
    return build_ave(spec, adapters, live_backbones())


def make_batch(row: str, clips: int, device: torch.device) -> TokenBatch:
    """Random tokens of what the row reads; labels of one event a clip."""

    def random(*shape: int) -> Tensor:
        return torch.randn(clips, *shape, device=device)

    if row == "full":
        visual, audio = (
            {FRAMES: random(SEGMENTS, 3, 192, 192)},
            {WINDOWS: random(SEGMENTS, 32_000)},
        )
    else:
        first, last = {"ladder": (0, 4), "ladder4": (3, 4)}.get(row) or (int(row[-1]) - 2, int(row[-1]) - 1)
        visual, audio = (
            {tap.name: random(SEGMENTS, tap.tokens, tap.channels) for tap in taps(*kind)[first:last]}
            for kind in (("visual", VISUAL), ("audio", AUDIO))
        )
    labels = torch.zeros(clips, SEGMENTS, len(CLASSES) + 1, device=device)
    labels[:, :5, 3] = 1
    labels[:, 5:, -1] = 1
    ok = torch.ones(clips, SEGMENTS, dtype=torch.bool, device=device)
    mask = torch.ones(clips, CAPTION[0], dtype=torch.bool, device=device)
    return TokenBatch(
        [""] * clips,
        visual,
        audio,
        ok,
        ok,
        random(*CAPTION),
        mask,
        random(*CAPTION),
        mask,
        {"labels": labels},
    )


def measure(row: str, steps: int, clips: int, device_name: str) -> dict[str, Any]:
    """Seconds and CPU seconds a step, peak MiB, trainable and frozen parameters."""
    device = torch.device(device_name)
    torch.manual_seed(0)
    model = build(row).to(device).train()
    batch = make_batch(row, clips, device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    walls, cpus = [], []
    for _ in range(steps + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        optimiser.zero_grad()
        out = model(batch).found
        losses = ave_loss(out.event_relevance, out.event_scores, out.av_score, batch.targets["labels"])
        torch.stack(list(losses)).sum().backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    live = getattr(getattr(model, "trunk", None), "_live", None)
    frozen = 0 if live is None else sum(p.numel() for m in live.modules for p in m.parameters())
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "wall_s": statistics.median(walls[1:]),
        "cpu_s": statistics.median(cpus[1:]),
        "peak_mib": peak,
        "trainable": sum(p.numel() for p in model.parameters()),
        "frozen": frozen,
        "input_mib": sum(x.nbytes for held in (batch.visual, batch.audio) for x in held.values()) / 2**20,
    }


def main() -> None:
    """Run every row in a process of its own and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", choices=ROWS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.one:
        print(json.dumps(measure(asked.one, asked.steps, asked.clips, asked.device)))
        return
    print(f"{asked.clips} clip(s), {asked.steps} steps, {asked.threads} threads, {asked.device}", flush=True)
    header = ("", "s/step", "CPU s", "against full", "peak MiB", "trainable M", "frozen M", "input MiB")
    print("".join(f"{name:>13}" for name in header), flush=True)
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(asked.rows, key=ROWS.index, reverse=True):  # the slowest first: ratios against it
        arguments = [f"--{name}={getattr(asked, name)}" for name in ("steps", "clips", "threads", "device")]
        done = subprocess.run(
            [sys.executable, __file__, f"--one={row}", *arguments], stdout=subprocess.PIPE, check=True
        )
        r = found[row] = json.loads(done.stdout)
        clock = "cpu_s" if asked.device == "cpu" else "wall_s"
        ratio = f"{found['full'][clock] / r[clock]:.1f}x" if "full" in found else "-"
        cells = (f"{r['wall_s']:.2f}", f"{r['cpu_s']:.2f}", ratio, f"{r['peak_mib']:.0f}")
        sizes = (f"{r['trainable'] / 1e6:.1f}", f"{r['frozen'] / 1e6:.1f}", f"{r['input_mib']:.1f}")
        print("".join(f"{cell:>13}" for cell in (row, *cells, *sizes)), flush=True)


if __name__ == "__main__":
    main()
