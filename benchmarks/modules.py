"""Time and peak memory of CASTE, CASE and the AVMoE layer against a literal transcription of their formulas.

    python benchmarks/modules.py [--rows caste] [--repeats 7] [--threads 2] [--device cpu]

Real sizes: Swin-V2-L and HTS-AT stages, 2 clips of 10 segments, float32. Every cell runs in a fresh process: the
first call gives the peak memory above what was allocated before it, parameter gradients included (`share`; in
`without grads` both peaks are taken less the size of those gradients, which are the same and cannot be avoided), then
two warm-ups, then the median wall time and the least CPU time. On a shared machine compare by CPU time with one
thread: idle threads spin. The training cells run forward and backward, to inputs and parameters, in training mode.
Both sides are compared in eval mode, outputs and gradients: `difference` is the largest one relative to the largest
entry.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import literal

from caeav.model.adapters.case import Case
from caeav.model.adapters.caste import Caste
from caeav.model.adapters.moe import AvMoe

CLIPS, SEGMENTS, CAPTION = 2, 10, 77
ROWS = CLIPS * SEGMENTS
VISUAL = ((2304, 192), (576, 384), (144, 768), (36, 1536))
AUDIO = ((4096, 96), (1024, 192), (256, 384), (64, 768))


@dataclass
class Subject:
    """A module, its inputs, and the two ways of running it; each returns the tensors that are summed."""

    module: nn.Module
    inputs: list[Tensor]
    ours: Callable[..., tuple[Tensor, ...]]
    literal: Callable[..., tuple[Tensor, ...]]


def subjects() -> dict[str, Callable[[], Subject]]:
    """Row name -> what builds it."""
    rows: dict[str, Callable[[], Subject]] = {}
    for stage in range(4):
        for name, own, other in (("visual", VISUAL, AUDIO), ("audio", AUDIO, VISUAL)):
            shapes = (own[stage], other[stage])
            rows[f"caste_{name}_stage{stage + 1}"] = lambda s=shapes: make_caste(*s)  # type: ignore[misc]
            rows[f"avmoe_{name}_stage{stage + 1}"] = lambda s=shapes: make_moe(*s)  # type: ignore[misc]
    rows["case"] = make_case
    return dict(sorted(rows.items(), key=lambda row: ("caste", "case", "avmoe").index(row[0].split("_")[0])))


def open_gates(module: nn.Module) -> None:
    """Gates at zero would make the comparison of numbers empty."""
    for name, p in module.named_parameters():
        if name.endswith(("gamma", "gate")):
            nn.init.constant_(p, 0.5)


def make_caste(own: tuple[int, int], other: tuple[int, int]) -> Subject:
    m = Caste(own[1], other[1])
    for part in (m.spatial.attn.key, m.spatial.attn.value, m.spatial.attn.out):
        nn.init.normal_(part.weight, std=own[1] ** -0.5)  # as if trained: at std 0.001 the branch is silent
    inputs = [torch.randn(ROWS, *own), torch.randn(ROWS, *other)]
    return Subject(
        m, inputs, lambda *x: (m(*x, SEGMENTS).residual,), lambda *x: (literal.caste(m, *x, SEGMENTS),)
    )


def make_moe(own: tuple[int, int], other: tuple[int, int]) -> Subject:
    m = AvMoe(own[1], own[0], other[1], other[0], bottleneck=own[1] // 8, batch_norm=True)
    inputs = [torch.randn(ROWS, *own), torch.randn(ROWS, *other)]
    return Subject(m, inputs, lambda *x: (m(*x).residual,), lambda *x: (literal.moe(m, *x),))


def make_case() -> Subject:
    (_, c), (_, d) = VISUAL[3], AUDIO[3]
    m = Case(c, d)
    for norm in (m.get_submodule("temporal_visual").norm, m.get_submodule("temporal_audio").norm):
        nn.init.normal_(norm.weight, mean=1.0, std=0.2)  # fresh unit weights give all tokens the same energy
    captions = [torch.randn(CLIPS, CAPTION, c), torch.randn(CLIPS, CAPTION, d)]
    inputs = [torch.randn(ROWS, *VISUAL[3]), torch.randn(ROWS, *AUDIO[3]), *captions]

    def ours(*x: Tensor) -> tuple[Tensor, ...]:
        out = m(*x, SEGMENTS)
        # Captions stand for all segments of their clip, as the repeated ones of the other side do.
        vc, ac = out.visual_caption * SEGMENTS, out.audio_caption * SEGMENTS
        pvc, pac = out.proj_visual_caption * SEGMENTS, out.proj_audio_caption * SEGMENTS
        return out.visual, vc, out.proj_visual, pvc, out.audio, ac, out.proj_audio, pac

    return Subject(m, inputs, ours, lambda *x: literal.case(m, *x, SEGMENTS))


class PeakWatch:
    """Largest memory use above the start while inside: resident set on the CPU, allocator's bytes on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0

    def __enter__(self) -> PeakWatch:
        self.start = self._now()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self.stop = threading.Event()
            self.thread = threading.Thread(target=self._watch)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() - self.start
        else:
            self.stop.set()
            self.thread.join()

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def _watch(self) -> None:
        while not self.stop.is_set():
            self.peak = max(self.peak, self._now() - self.start)
            time.sleep(0.0005)


def run_cell(
    row: str, side: str, training: bool, repeats: int, threads: int, device: torch.device
) -> dict[str, float]:
    """One cell, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    subject = subjects()[row]()
    open_gates(subject.module)
    subject.module.to(device).train(training)
    subject.inputs = [x.to(device).requires_grad_(training) for x in subject.inputs]
    forward = getattr(subject, side)

    def once() -> None:
        if not training:
            with torch.no_grad():
                forward(*subject.inputs)
        else:
            sum(y.sum() for y in forward(*subject.inputs)).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    torch.randn(64, 64, device=device) @ torch.randn(64, 64, device=device)  # loads the math libraries
    with PeakWatch(device) as watch:
        once()
    walls, cpus = [], []
    for i in range(repeats + 2):
        for p in (*subject.module.parameters(), *subject.inputs):
            p.grad = None
        wall, cpu = time.perf_counter(), time.process_time()
        once()
        if i >= 2:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return {
        "ms": 1000 * statistics.median(walls),
        "cpu_ms": 1000 * min(cpus) / threads,
        "peak_mib": watch.peak / 2**20,
        "gradients_mib": training * sum(p.nbytes for p in subject.module.parameters()) / 2**20,
    }


def run_comparison(row: str, threads: int, device: torch.device) -> dict[str, float]:
    """Largest relative difference of outputs and gradients between the two sides, in eval mode."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    subject = subjects()[row]()
    open_gates(subject.module)
    subject.module.to(device).eval()
    inputs = [x.to(device).requires_grad_() for x in subject.inputs]
    found: list[list[Tensor]] = []
    for forward in (subject.ours, subject.literal):
        outputs = forward(*inputs)
        torch.manual_seed(1)
        scalar = sum((y * torch.randn(y.shape[1:], device=device)).sum() for y in outputs)
        # A factor without the row axis: repeated captions then count as often as the one they stand for.
        sources = [*inputs, *subject.module.parameters()]
        gradients = torch.autograd.grad(scalar, sources, allow_unused=True)  # type: ignore[arg-type]
        found.append([torch.zeros(1) if g is None else g for g in gradients])
        found[-1] += outputs  # repeated captions differ in shape and are compared by their gradients
    scale = max(x.abs().max().item() for x in found[1])
    worst = 0.0
    for ours, theirs in zip(*found, strict=True):
        size = theirs.abs().max().item()
        if size > 1e-6 * scale and ours.shape == theirs.shape:  # smaller ones are zero but for rounding
            worst = max(worst, (ours - theirs).abs().max().item() / size)
    return {"difference": worst}


def in_fresh_process(arguments: list[str]) -> dict[str, float]:
    """What one cell prints, from a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the table as JSON lines")
    parser.add_argument("--cell", nargs=2, metavar=("ROW", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--training", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.cell:
        row, side = given.cell
        if side == "compare":
            print(json.dumps(run_comparison(row, given.threads, device)))
        else:
            print(json.dumps(run_cell(row, side, given.training, given.repeats, given.threads, device)))
        return

    common = ["--repeats", str(given.repeats), "--threads", str(given.threads), "--device", given.device]
    heads = (
        "literal ms",
        "ours ms",
        "faster",
        "by CPU time",
        "literal MiB",
        "ours MiB",
        "share",
        "without grads",
    )
    if not given.json:
        print(f"{'row':22}{'mode':9}" + "".join(f"{head:>13}" for head in heads) + f"{'difference':>12}")
    for row in (name for name in subjects() if given.rows in name):
        difference = in_fresh_process(["--cell", row, "compare", *common])["difference"]
        for mode, flags in (("forward", []), ("training", ["--training"])):
            cells: dict[str, Any] = {
                side: in_fresh_process(["--cell", row, side, *flags, *common]) for side in ("literal", "ours")
            }
            a, b = cells["literal"], cells["ours"]
            faster, share = a["ms"] / b["ms"], b["peak_mib"] / a["peak_mib"]
            kept = (b["peak_mib"] - b["gradients_mib"]) / (a["peak_mib"] - a["gradients_mib"])
            if given.json:
                print(json.dumps({"row": row, "mode": mode, **cells, "difference": difference}), flush=True)
                continue
            time_part = f"{a['ms']:13.1f}{b['ms']:13.1f}{faster:12.2f}x{a['cpu_ms'] / b['cpu_ms']:12.2f}x"
            numbers = f"{time_part}{a['peak_mib']:13.0f}{b['peak_mib']:13.0f}{share:13.0%}{kept:14.0%}"
            print(f"{row:22}{mode:9}{numbers}{difference:13.1e}", flush=True)


if __name__ == "__main__":
    main()
