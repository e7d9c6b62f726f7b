"""Time and peak memory of CASTE, CASE and the AVMoE layer against a literal transcription of their formulas.

    python benchmarks/modules.py [--rows caste] [--repeats 7] [--threads 2]
    python benchmarks/modules.py --device cuda [--bf16]

Real sizes: Swin-V2-L and HTS-AT stages, 2 clips of 10 segments, float32 or bfloat16 autocast. Every cell runs in a
fresh process: the first call gives the peak memory above what was allocated before it (the process's resident set, on
a GPU the allocator's bytes), parameter gradients included (`share`; in `no grads` both peaks are taken less the size
of those gradients, which are the same and cannot be avoided), then two warm-ups, then the median wall time and the
least CPU time; last calls count the bytes alive at once (`live`, the same at every run) and the arithmetic. `of limit`
is the time that the machine's rates allow as a share of ours, see `gauges.py`. On a shared machine compare by CPU time
with one thread: idle threads spin. The training cells run forward and backward, to inputs and parameters, in training
mode. At the end the sums over all stages, as a network has all of them.

Both sides are compared in eval mode and float64, outputs and gradients: `difference` is the largest one relative to the
largest entry.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import literal
from gauges import PeakWatch, count_products, live_peak, machine_rates

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


def build(row: str, device: torch.device, *, training: bool, dtype: torch.dtype = torch.float32) -> Subject:
    """The subject of a row, its gates open, on the device."""
    torch.manual_seed(0)
    subject = subjects()[row]()
    open_gates(subject.module)
    subject.module.to(device, dtype).train(training)
    subject.inputs = [x.to(device, dtype).requires_grad_(training) for x in subject.inputs]
    return subject


def run_cell(
    row: str, side: str, training: bool, repeats: int, device: torch.device, autocast: torch.dtype | None
) -> dict[str, float]:
    """One cell, in this process."""
    subject = build(row, device, training=training)
    forward = getattr(subject, side)
    sources = (*subject.module.parameters(), *subject.inputs)
    given = sum(x.nbytes for x in sources)
    traffic = 0

    def once() -> None:
        nonlocal traffic
        for source in sources:
            source.grad = None
        with torch.set_grad_enabled(training):
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                outputs = forward(*subject.inputs)
            traffic = (given + sum(y.nbytes for y in outputs)) * (3 if training else 1)
            if training:
                sum(y.float().sum() for y in outputs).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    torch.randn(64, 64, device=device) @ torch.randn(64, 64, device=device)  # loads the math libraries
    with PeakWatch(device) as watch:
        once()
    walls, cpus = [], []
    for i in range(repeats + 2):
        wall, cpu = time.perf_counter(), time.process_time()
        once()
        if i >= 2:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    for source in sources:
        source.grad = None
    return {
        "ms": 1000 * statistics.median(walls),
        "cpu_ms": 1000 * min(cpus) / torch.get_num_threads(),
        "peak_mib": watch.peak / 2**20,
        "live_mib": live_peak(once, device) / 2**20,
        "gradients_mib": training * sum(p.nbytes for p in subject.module.parameters()) / 2**20,
        "operations": count_products(once),
        "bytes": traffic,
    }


def run_comparison(row: str, device: torch.device) -> dict[str, float]:
    """Largest relative difference of outputs and gradients between the two sides, in eval mode and float64.

    In float32 a hidden unit within rounding of zero is rectified on one side and not on the other, and one such unit
    of CASE moves a gradient by some per cent.
    """
    subject = build(row, device, training=False, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in subject.inputs]
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
        if size > 1e-12 * scale and ours.shape == theirs.shape:  # smaller ones are zero but for rounding
            worst = max(worst, (ours - theirs).abs().max().item() / size)
    return {"difference": worst}


def in_fresh_process(arguments: list[str]) -> dict[str, float]:
    """What one cell prints, from a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


HEADS = "literal ms|ours ms|faster|by CPU|of limit|lit. MiB|ours MiB|share|no grads|lit. live|ours live|share"


def figures(literal: dict[str, float], ours: dict[str, float]) -> str:
    """The numbers of one line, in the order of `HEADS`."""
    kept = [side["peak_mib"] - side["gradients_mib"] for side in (ours, literal)]
    cells = [
        *(f"{side['ms']:.1f}" for side in (literal, ours)),
        f"{literal['ms'] / ours['ms']:.2f}x",
        f"{literal['cpu_ms'] / ours['cpu_ms']:.2f}x",
        f"{ours['limit_ms'] / ours['ms']:.0%}",
        *(f"{side['peak_mib']:.0f}" for side in (literal, ours)),
        f"{ours['peak_mib'] / literal['peak_mib']:.0%}",
        f"{kept[0] / kept[1]:.0%}",
        *(f"{side['live_mib']:.0f}" for side in (literal, ours)),
        f"{ours['live_mib'] / literal['live_mib']:.0%}",
    ]
    return "".join(f"{cell:>11}" for cell in cells)


def total(cells: Sequence[dict[str, float]]) -> dict[str, float]:
    """The sum of every figure, as for a network that has all these layers."""
    return {name: sum(cell[name] for cell in cells) for name in cells[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="run both sides under bfloat16 autocast")
    parser.add_argument("--json", action="store_true", help="print the table as JSON lines")
    parser.add_argument("--cell", nargs=2, metavar=("ROW", "SIDE"), help=argparse.SUPPRESS)
    parser.add_argument("--training", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device, autocast = torch.device(given.device), torch.bfloat16 if given.bf16 else None
    if given.cell:
        torch.set_num_threads(given.threads)
        row, side = given.cell
        if side == "compare":
            print(json.dumps(run_comparison(row, device)))
        elif side == "rates":
            print(json.dumps(machine_rates(device, autocast or torch.float32)))
        else:
            print(json.dumps(run_cell(row, side, given.training, given.repeats, device, autocast)))
        return

    common = ["--repeats", str(given.repeats), "--threads", str(given.threads), "--device", given.device]
    common += ["--bf16"] * given.bf16
    rates = in_fresh_process(["--cell", "machine", "rates", *common])
    if given.json:
        print(json.dumps({"row": "machine", **rates}))
    else:
        speed = f"{rates['operations'] / 1e9:.0f} GFLOP/s in plain products, {rates['bytes'] / 1e9:.1f} GB/s in copies"
        print(f"of limit: with {speed}\n{'row':22}{'mode':9}", end="")
        print("".join(f"{head:>11}" for head in HEADS.split("|")) + f"{'difference':>12}")
    done: dict[tuple[str, str], list[dict[str, dict[str, float]]]] = {}
    for row in (name for name in subjects() if given.rows in name):
        difference = in_fresh_process(["--cell", row, "compare", *common])["difference"]
        for mode, flags in (("forward", []), ("training", ["--training"])):
            sides = {
                side: in_fresh_process(["--cell", row, side, *flags, *common]) for side in ("literal", "ours")
            }
            for cell in sides.values():
                cell["limit_ms"] = 1000 * max(cell[of] / rate for of, rate in rates.items())
            done.setdefault((row.split("_")[0], mode), []).append(sides)
            if given.json:
                print(json.dumps({"row": row, "mode": mode, **sides, "difference": difference}), flush=True)
            else:
                print(f"{row:22}{mode:9}{figures(**sides)}{difference:12.1e}", flush=True)
    for (module, mode), rows in done.items():
        if len(rows) > 1:
            sums = {side: total([sides[side] for sides in rows]) for side in ("literal", "ours")}
            if given.json:
                print(json.dumps({"row": f"{module}, sum of {len(rows)}", "mode": mode, **sums}))
            else:
                print(f"{f'{module}, sum of {len(rows)}':22}{mode:9}{figures(**sums)}")


if __name__ == "__main__":
    main()
