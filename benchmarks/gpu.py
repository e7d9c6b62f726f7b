"""Everything that differs on a GPU, checked against the CPU and then timed: one command for whoever has one.

    python benchmarks/gpu.py [--json FILE]                 # all parts on the first GPU, at most eight minutes
    python benchmarks/gpu.py --only streams,processes      # some of them
    python benchmarks/gpu.py --device cpu                  # in small, where there is no GPU: does the script run?

The first parts compare, the others measure. `difference` is the largest one relative to the largest value, and must
stay below `allowed`. Random weights throughout; nothing is downloaded. Each part runs in a process of its own (in
small, all in this one), so that one which fails, or runs out of memory or time, costs no other.

    streams     a device worker, with its streams and pinned memory, against the same network on the CPU
    autocast    bf16 and fp16 networks against float32
    compile     a compiled network against the plain one
    ladder      losses and gradients of `full` beside cached taps, against the CPU in float64; then a step in bf16
    inject      the same inside live backbones (needs timm)
    processes   two processes that share a batch, against one process
    extraction  clips/s of Swin-V2-L and HTS-AT through a device worker, and the share of time the device computes
    captioning  BLIP-2 and an audio captioner: tokens/s
    training    a step of `full` at real sizes: samples/s and memory, float32 and bf16
    modules     CASTE, CASE and AVMoE against their literal formulas, with the share of the device's limits
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import modules
import placements
from gauges import PeakWatch, machine_rates

from caeav.model.adapters.batch import CaptionSpec, Inputs, InputSpec, TokenBatch
from caeav.model.adapters.whole_batch import Part
from caeav.model.tasks.base import TASKS
from caeav.model.train.config_file import resolve_config
from caeav.model.train.evaluate import autocast
from caeav.model.train.launch import VISIBLE, environments
from caeav.model.train.network import Network, build_network
from caeav.model.train.processes import ONE, Processes, from_environment, joined
from caeav.model.train.shared_step import StepLosses
from caeav.pipeline.backbones.base import TorchBackbone
from caeav.pipeline.extract.device.batches import Batch, Unit
from caeav.pipeline.extract.device.isolate import BatchSizes
from caeav.pipeline.extract.device.network import TokenNetwork
from caeav.pipeline.extract.device.options import ComputeOptions
from caeav.pipeline.extract.device.streams import DeviceWorker, networks
from caeav.pipeline.extract.progress import Meter
from caeav.pipeline.store.record import Tap

TOTAL_S, PART_S = 480.0, 120.0
"""For all parts together, and for one of them."""
SHARE_S = {True: 600.0, False: 100.0}
"""For the two processes of `processes`, in small and at real sizes."""
SEGMENTS, WORDS = 10, (77, 768)
SMALL_VISUAL, SMALL_AUDIO = ((16, 8), (4, 16)), ((16, 8), (4, 16))
COLUMNS = ("part", "what", "value", "unit", "difference", "allowed", "state")
Row = dict[str, Any]


class Given:
    """What a part is told: the device, and whether to run in small."""

    def __init__(self, device: torch.device, small: bool) -> None:
        self.device, self.small = device, small

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def compared(what: str, got: Sequence[Tensor], want: Sequence[Tensor], allowed: float) -> Row:
    """The largest difference of any tensor, relative to that tensor's largest value."""
    scale = max(float(x.double().abs().max()) for x in want)
    worst = 0.0
    for ours, theirs in zip(got, want, strict=True):
        size = max(float(theirs.double().abs().max()), 1e-3 * scale)
        worst = max(worst, float((ours.double().cpu() - theirs.double().cpu()).abs().max()) / size)
    return {
        "what": what,
        "difference": worst,
        "allowed": allowed,
        "state": "ok" if worst <= allowed else "WRONG",
    }


def measured(what: str, value: float, unit: str) -> Row:
    return {"what": what, "value": value, "unit": unit, "state": "measured"}


def skipped(what: str, why: str) -> Row:
    return {"what": what, "state": f"skipped: {why}"}


def best_s(given: Given, run: Callable[[], object], rounds: int) -> float:
    """The least wall time of `rounds` calls, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        run()
        given.wait()
        times.append(time.perf_counter() - began)
    return min(times[1:])


# ---- networks that extract -----------------------------------------------------------------------------------


class Patches(TorchBackbone):
    """A small backbone: patches of 16 x 16 frames, convolved."""

    name, modality = "patches", "visual"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._net = (
            nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.GELU(), nn.Conv2d(32, 32, 1))
            .eval()
            .requires_grad_(False)
        )

    def taps(self) -> tuple[Tap, ...]:
        return (Tap("visual.stage1", 16, 32),)

    def describe(self) -> dict[str, Any]:
        return {}

    def module(self) -> nn.Module:
        return self._net

    def prepare(self, clip: np.ndarray) -> Tensor:
        return torch.from_numpy(clip.copy()).permute(0, 3, 1, 2).float() / 255

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        x = self._net(batch.flatten(0, 1)).flatten(2).transpose(1, 2)
        return {"visual.stage1": x.unflatten(0, batch.shape[:2])}


def backbones(given: Given, *, large: bool) -> dict[str, Callable[[], TorchBackbone]]:
    """Name -> what builds it: the small one, or the papers' pair."""
    if given.small or not large:
        return {"patches": Patches}
    from caeav.pipeline.backbones import audio_backbones, visual_backbones
    from caeav.pipeline.backbones.choice import ModelChoice

    swin: Any = visual_backbones
    htsat: Any = audio_backbones
    return {
        "swinv2-large": lambda: swin["swinv2-large"](ModelChoice("swinv2-large", "random:0")),
        "hts-at": lambda: htsat["hts-at"](ModelChoice("hts-at", "random:0")),
    }


def some_clips(part: TorchBackbone, count: int, small: bool) -> Tensor:
    """Prepared clips `[count, T, ...]`, no two alike."""
    rng = np.random.default_rng(0)
    side = (16, 16) if small else (360, 640)
    clips = []
    for _ in range(count):
        if part.modality == "visual":
            clip = rng.integers(0, 256, (SEGMENTS, *side, 3), dtype=np.uint8)
        else:
            clip = rng.normal(0, 0.1, (SEGMENTS, part.rate_hz or 0)).astype(np.float32)
        clips.append(part.prepare(clip))
    return torch.stack(clips)


def through_worker(
    given: Given,
    build: Callable[[], TorchBackbone],
    clips: Tensor,
    rows: int,
    precision: str,
    passes: int = 1,
) -> tuple[dict[str, dict[str, Tensor]], float, float]:
    """The clips' taps by key, seconds, and the share of them in which the device computed."""
    part = build()
    compute = ComputeOptions(batch=rows, precision=precision)
    unit = Unit(0, 0, part.modality, part, build, compute, "float32", rows)
    made: dict[str, dict[str, Tensor]] = {}
    failures: list[BaseException] = []

    def finished(batch: Batch, found: Any, reasons: Any) -> None:
        made.update({key: found[row] for row, key in batch.keys.items()})

    def batches(count: int) -> None:
        ready: queue.Queue[Batch | None] = queue.Queue()
        for turn in range(count):
            for start in range(0, len(clips), rows):
                host = clips[start : start + rows]
                host = host.pin_memory() if given.device.type == "cuda" else host
                ready.put(Batch(unit, {i: f"{turn} {start + i}" for i in range(len(host))}, host))
        ready.put(None)
        DeviceWorker(given.device, nets, ready, sizes, finished, failures.append, meter).thread.join()
        if failures:
            raise failures[0]

    nets, sizes, meter = networks([unit], given.device, first=True), BatchSizes(print), Meter({"device": 1})
    batches(1)  # to warm up
    made.clear()
    meter = Meter({"device": 1})
    began = time.perf_counter()
    batches(passes)
    given.wait()
    passed = time.perf_counter() - began
    return made, passed, sum(meter.seconds().values()) / passed


def on_cpu(build: Callable[[], TorchBackbone], clips: Tensor, **options: Any) -> list[dict[str, Tensor]]:
    network = TokenNetwork(build(), torch.device("cpu"), ComputeOptions(**options), "float32")
    return [network(clip.unsqueeze(0)) for clip in clips]


def streams(given: Given) -> list[Row]:
    rows = []
    for name, build in backbones(given, large=True).items():
        clips = some_clips(build(), 4 if given.small else 6, given.small)
        made, _, _ = through_worker(given, build, clips, 2, "fp32")
        want = on_cpu(build, clips[:3])
        got = [made[f"0 {i}"] for i in range(3)]
        pairs = [(a[tap], b[tap][0]) for a, b in zip(got, want, strict=True) for tap in b]
        rows.append(compared(f"{name}, batches of 2", [a for a, _ in pairs], [b for _, b in pairs], 2e-3))
    return rows


def autocast_part(given: Given) -> list[Row]:
    rows = []
    for precision, allowed in (("bf16", 0.1), ("fp16", 0.02)):
        for name, build in backbones(given, large=True).items():
            if precision == "fp16" and given.device.type == "cpu":
                rows.append(skipped(f"{name}, fp16", "on GPUs only"))
                continue
            clips = some_clips(build(), 2, given.small)
            made, _, _ = through_worker(given, build, clips, 2, precision)
            want = on_cpu(build, clips)
            got = [made["0 0"][tap] for tap in want[0]]
            rows.append(compared(f"{name}, {precision}", got, [x[0] for x in want[0].values()], allowed))
    return rows


def compile_part(given: Given) -> list[Row]:
    clips = some_clips(Patches(), 2, True).to(given.device)
    plain = TokenNetwork(Patches(), given.device, ComputeOptions(), "float32")(clips)
    try:
        found = TokenNetwork(Patches(), given.device, ComputeOptions(compile=True), "float32")(clips)
    except Exception as error:
        return [skipped("patches, compiled", " ".join(str(error).split())[:80])]
    return [compared("patches, compiled", list(found.values()), list(plain.values()), 1e-3)]


# ---- networks that learn -------------------------------------------------------------------------------------


def full(given: Given, clips: int) -> tuple[Any, Network, TokenBatch]:
    """Configuration, network and a batch of task `ave` with the recipe `full`."""
    shapes = (SMALL_VISUAL, SMALL_AUDIO) if given.small else (placements.VISUAL, placements.AUDIO)
    words = (5, 16) if given.small else WORDS
    visual, audio = (
        tuple(Tap(f"{kind}.stage{i}", *shape) for i, shape in enumerate(held, 1))
        for kind, held in zip(("visual", "audio"), shapes, strict=True)
    )
    caption = CaptionSpec(*words)
    inputs = Inputs("none", placements.CLASSES, 1.0, InputSpec(SEGMENTS, visual, audio, caption, caption))
    config = resolve_config("ave", options={"dataset": "none"})
    torch.manual_seed(0)
    network = build_network(TASKS["ave"], inputs, config.model)
    for name, p in network.named_parameters():
        if name.endswith(("gamma", "gate")):
            nn.init.constant_(p, 0.3)  # closed gates would hide what lies behind them
    batch = placements.make_batch("ladder", clips, torch.device("cpu"))
    torch.manual_seed(1)
    batch.visual = {tap.name: torch.randn(clips, SEGMENTS, tap.tokens, tap.channels) for tap in visual}
    batch.audio = {tap.name: torch.randn(clips, SEGMENTS, tap.tokens, tap.channels) for tap in audio}
    for name in ("visual_caption", "audio_caption"):
        setattr(batch, name, torch.randn(clips, *words))
        setattr(batch, f"{name}_mask", torch.ones(clips, words[0], dtype=torch.bool))
    return config, network, batch


def losses_and_gradients(
    config: Any,
    network: nn.Module,
    batch: TokenBatch,
    processes: Processes = ONE,
    part: Part | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Of one backward pass, in the network's mode; gradients by name. `part`: which of a batch this is."""
    part = part or ONE.part(range(len(batch.keys)))
    step = StepLosses(TASKS["ave"], network, config, processes)
    losses = step(batch, part)
    torch.stack([loss.double() for loss in losses.values()]).sum().backward()
    named = sorted((name, p) for name, p in network.named_parameters() if p.grad is not None)
    return [losses[name].detach() for name in sorted(losses)], [
        p.grad for _, p in named if p.grad is not None
    ]


def step_rows(
    given: Given, what: str, config: Any, make: Callable[[], Network], batch: TokenBatch
) -> list[Row]:
    """Eval mode, where nothing is drawn, against the CPU; then one training step in bf16, which must stay finite."""
    reference = make().eval()
    want = losses_and_gradients(config, reference, batch)
    network = make().to(given.device)
    there = batch.to(given.device)
    got = losses_and_gradients(config, network.eval(), there)
    rows = [
        compared(f"{what}: {name}", a, b, allowed)
        for name, a, b, allowed in zip(("losses", "gradients"), got, want, (1e-4, 2e-2), strict=True)
    ]
    with autocast(given.device, "bf16"):
        losses = StepLosses(TASKS["ave"], network.train(), config, ONE)(
            there, ONE.part(range(len(batch.keys)))
        )
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
    total.backward()
    finite = bool(total.isfinite()) and all(
        bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None
    )
    return [*rows, {"what": f"{what}: a step in bf16 is finite", "state": "ok" if finite else "WRONG"}]


def ladder(given: Given) -> list[Row]:
    config, _, batch = full(given, 2)
    return step_rows(given, "ladder", config, lambda: full(given, 2)[1], batch)


def inject(given: Given) -> list[Row]:
    if given.small:
        return [skipped("inject", "the live backbones have one size, too large for this")]
    batch = placements.make_batch("stage4", 1, torch.device("cpu"))
    config = resolve_config("ave", options={"dataset": "none"})

    def make() -> Any:
        torch.manual_seed(0)
        return placements.build("stage4")

    return step_rows(given, "inject from stage4", config, make, batch)


def processes(given: Given) -> list[Row]:
    """Two processes: over NCCL on two GPUs where there are two, else over gloo on the one device."""
    on_gpu = given.device.type == "cuda"
    two_gpus = on_gpu and torch.cuda.device_count() > 1
    outer = dict(os.environ)
    environment = environments([0, 1] if two_gpus else [None, None], outer)
    if on_gpu and not two_gpus:
        for each in environment:
            each[VISIBLE] = outer.get(VISIBLE, "0").split(",")[0]
    command = [sys.executable, __file__, "--share", "--device", given.device.type]
    command += ["--small"] if given.small else []
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for env in environment]
    try:
        said, _ = (process.communicate(timeout=SHARE_S[given.small])[0] for process in running)
    finally:
        for process in running:
            process.kill()
    rows: list[Row] = json.loads(said.splitlines()[-1])
    return rows


def share(given: Given) -> list[Row]:
    """One of the two processes of `processes`."""
    mine = from_environment()
    device, alike = given.device, False
    if device.type == "cuda":
        alike = torch.cuda.device_count() == 1  # NCCL takes no GPU twice
        device = torch.device("cuda", 0 if alike else mine.local)
    if alike:
        dist.init_process_group("gloo")
    with nullcontext() if alike else joined(mine):
        config, network, batch = full(given, 4)
        part = mine.part(range(4))
        places = torch.tensor(part.places)
        own = batch.to(torch.device("cpu"))
        own.keys = [""] * len(places)
        for held in (own.visual, own.audio, own.targets):
            held.update({name: x[places] for name, x in held.items()})
        captions = ("visual_caption", "audio_caption", "visual_caption_mask", "audio_caption_mask")
        for name in ("frames_ok", "audio_ok", *captions):
            setattr(own, name, getattr(own, name)[places])
        network.to(device).eval()
        got = losses_and_gradients(config, network, own.to(device), mine, part)
        rows: list[Row] = []
        if mine.main:
            _, alone, whole = full(given, 4)
            want = losses_and_gradients(config, alone.to(device).eval(), whole.to(device))
            for name, a, b, allowed in zip(("losses", "gradients"), got, want, (1e-4, 2e-2), strict=True):
                rows.append(compared(f"two share a batch: {name}", a, b, allowed))
    return rows


# ---- how fast ------------------------------------------------------------------------------------------------


def extraction(given: Given) -> list[Row]:
    rows = []
    for precision in ("fp32", "bf16"):
        for name, build in backbones(given, large=True).items():
            count, size = (4, 2) if given.small else (32, 8)
            clips = some_clips(build(), count, given.small)
            _, passed, busy = through_worker(given, build, clips, size, precision, 1 if given.small else 3)
            total = count * (1 if given.small else 3)
            rows.append(measured(f"{name}, {precision}", total / passed, "clips/s"))
            rows.append(measured(f"{name}, {precision}: device busy", 100 * min(busy, 1.0), "% of the time"))
    return rows


def captioning(given: Given) -> list[Row]:
    if given.small:
        return [skipped("captioners", "their random networks have real sizes")]
    from captioners import noise

    from caeav.cli.options import choose_one
    from caeav.pipeline.captioners import audio_captioners, visual_captioners
    from caeav.pipeline.captioners.generate import Decoding, settle_decoding
    from caeav.pipeline.extract.device.network import CaptionNetwork

    rows = []
    for name, registry in (("blip2", visual_captioners), ("qwen2-audio", audio_captioners)):
        try:
            choice = choose_one(name, "random:0", ["dtype=bfloat16", "beams=1"])
            captioner: Any = registry[name](choice)
            network = CaptionNetwork(captioner, given.device, ComputeOptions(batch=1))
            taken = {}
            for length in (4, 4, 20):
                decoding = Decoding(1, length, captioner.settings["repetition_penalty"])
                settle_decoding(captioner.model, decoding, captioner.kept)
                began = time.perf_counter()
                network([noise()])
                given.wait()
                taken[length] = time.perf_counter() - began
            rows.append(measured(f"{name}, bf16, one clip", 16 / (taken[20] - taken[4]), "tokens/s"))
        except (ImportError, RuntimeError, ValueError) as error:
            rows.append(skipped(name, " ".join(str(error).split())[:80]))
    return rows


def training(given: Given) -> list[Row]:
    clips = 2 if given.small else 16
    return [row for precision in ("fp32", "bf16") for row in steps(given, clips, precision)]


def steps(given: Given, clips: int, precision: str) -> list[Row]:
    """Training steps of one precision."""
    config, network, batch = full(given, clips)
    network.to(given.device).train()
    there = batch.to(given.device)
    losses = StepLosses(TASKS["ave"], network, config, ONE)
    optimiser = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        with autocast(given.device, precision):
            found = losses(there, ONE.part(range(clips)))
            total = torch.stack([loss.float() for loss in found.values()]).sum()
        total.backward()
        optimiser.step()
        optimiser.zero_grad()

    with PeakWatch(given.device) as watch:
        seconds = best_s(given, step, 2 if given.small else 8)
    what = f"full, {clips} clips, {precision}"
    return [
        measured(what, clips / seconds, "samples/s"),
        measured(f"{what}: memory", watch.peak / 2**20, "MiB"),
    ]


def modules_part(given: Given) -> list[Row]:
    if given.small:
        modules.CLIPS, modules.ROWS, modules.CAPTION = 1, SEGMENTS, 5
        modules.VISUAL, modules.AUDIO = ((16, 16),) * 4, ((16, 16),) * 4
    wanted = ("caste_visual_stage1", "case", "avmoe_visual_stage1")
    names = wanted if given.small else list(modules.subjects())
    half = None if given.small else torch.bfloat16
    rates = None if given.small else machine_rates(given.device, half or torch.float32)
    rows = []
    for name in names:
        difference = modules.run_comparison(name, given.device)["difference"]
        state = "ok" if difference < 1e-6 else "WRONG"
        rows.append({"what": f"{name}: numbers", "difference": difference, "allowed": 1e-6, "state": state})
        sides = {
            side: modules.run_cell(name, side, True, 1 if given.small else 3, given.device, half)
            for side in ("literal", "ours")
        }
        faster = sides["literal"]["ms"] / sides["ours"]["ms"]
        rows.append(measured(f"{name}: against the literal formulas", faster, "x"))
        if rates is not None:
            limit_ms = 1000 * max(sides["ours"][of] / rate for of, rate in rates.items())
            rows.append(measured(f"{name}: of the limit", 100 * limit_ms / sides["ours"]["ms"], "%"))
    return rows


PARTS: dict[str, Callable[[Given], list[Row]]] = {
    "streams": streams,
    "autocast": autocast_part,
    "compile": compile_part,
    "ladder": ladder,
    "inject": inject,
    "processes": processes,
    "extraction": extraction,
    "captioning": captioning,
    "training": training,
    "modules": modules_part,
}


def one_part(name: str, given: Given) -> list[Row]:
    """A part's rows; what ends it is a row, too."""
    try:
        return PARTS[name](given)
    except Exception as error:
        return [
            {"what": name, "state": f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        ]


def in_a_process(name: str, given: Given, limit_s: float) -> list[Row]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--part", name, "--device", str(given.device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return [{"what": name, "state": f"FAILED: not done in {limit_s:.0f} s"}]
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return [{"what": name, "state": f"FAILED: ended with status {done.returncode}: {last[0][:200]}"}]
    rows: list[Row] = json.loads(done.stdout.splitlines()[-1])
    return rows


def shown(row: Row) -> list[str]:
    cells = {name: row.get(name, "") for name in COLUMNS}
    for name, form in (("value", "{:.4g}"), ("difference", "{:.1e}"), ("allowed", "{:.0e}")):
        if cells[name] != "":
            cells[name] = form.format(cells[name])
    return [str(cells[name]) for name in COLUMNS]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--small", action="store_true", help="tiny sizes, in one process; always so on a CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    given = Given(device, asked.small or device.type == "cpu")
    if asked.share:
        try:
            print(json.dumps(share(given)), flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # the interpreter would wait for the other one
        return
    if asked.part:
        print(json.dumps(one_part(asked.part, given)))
        return
    names = asked.only.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"unknown part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    what = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, in small: nothing is claimed"
    )
    print(f"{what}, torch {torch.__version__}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    until, rows = time.monotonic() + TOTAL_S, []
    for name in names:
        left = until - time.monotonic()
        if left < 1:
            made = [skipped(name, f"the {TOTAL_S:.0f} s are over")]
        else:
            made = one_part(name, given) if given.small else in_a_process(name, given, min(left, PART_S))
        for row in ({"part": name, **row} for row in made):
            rows.append(row)
            print(f"| {' | '.join(shown(row))} |", flush=True)
    if asked.json:
        held = {"device": what, "torch": torch.__version__, "rows": rows}
        asked.json.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
    wrong = [row for row in rows if row["state"].startswith(("WRONG", "FAILED"))]
    sys.exit(f"{len(wrong)} rows are wrong or failed" if wrong else 0)


if __name__ == "__main__":
    main()
