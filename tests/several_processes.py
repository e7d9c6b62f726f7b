"""Run by `test_several_processes.py` in two processes: trains each case in one process and in both, and compares.

It computes in float64, which the product does not use: `Tensor.float` keeps doubles here, and batches become doubles.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from module_files import load_module
from stopping import StopAt, StopError

from caeav.manifests.core.home import Home
from caeav.model.adapters.batch import TokenBatch
from caeav.model.train.checkpoint import read_tensors
from caeav.model.train.config_file import resolve_config
from caeav.model.train.experiment import Experiment, prepare
from caeav.model.train.log import MetricsLog, read_metrics
from caeav.model.train.processes import ONE, Processes, from_environment, joined
from caeav.model.train.resume import LAST
from caeav.model.train.runs import METRICS, Run, create_run
from caeav.model.train.session import train
from caeav.pipeline.store import Recipe, Record, open_for_writing

CAPTION_WORDS, CAPTION_WIDTH = 5, 16
TRAINING = [
    "training.batch_size=4",
    "training.epochs=1",
    "training.workers=0",
    "schedule.warmup_epochs=0",
    "optimiser.lr=0.0005",
]
FULL = [
    "model.adapters.avmoe.latents=3",
    "model.adapters.avmoe.num_skip=1",
    "model.adapters.case.proj_dim=16",
    "model.adapters.case.caption_bottleneck=4",
    "model.adapters.ladder.rank=4",
    "loss.load_balance=0.1",
    "loss.caption_contrast=0.2",
    "loss.consistency=0.3",
    "loss.selection_entropy=0.1",
    "loss.correspondence=1.0",
]
HEADS = {
    "ave": [
        "model.head.width=16",
        "model.head.hidden=16",
        "model.head.visual_in=16",
        "model.head.audio_in=16",
    ],
    "ave-weak": ["model.head.width=16"],
    "avvp": ["model.head.width=16", "model.head.drop_path=0.3"],
    "avs-s4": ["model.head.channels=8", "model.head.mask_size=8", "model.head.out_channels=[8,4]"],
    "avs-ms3": ["model.head.channels=8", "model.head.mask_size=8", "model.head.out_channels=[8,4]"],
    "avqa": ["model.head.match_widths=[16,8,8]", "model.head.answer_hidden=16", "loss.match=0.5"],
}
REFERENCE = "model.variant=reference"
NOISY = ["model.adapters.avmoe.router_noise=0.1", "model.adapters.avmoe.uni_attention=frame"]
PEERS = ("lavish", "dg-sct")
TWICE = ["training.epochs=2", "training.checkpoint_every_steps=1"]
CASES: dict[str, tuple[str, int, list[str]]] = {
    "ave": ("ave", 9, ["training.accumulation=2", "augment.swap=0.4", "augment.mute=0.3", "augment.shift=1"]),
    "ave reference": ("ave", 11, [REFERENCE, *NOISY]),
    "ave-weak": ("ave-weak", 11, []),
    "avvp": ("avvp", 9, []),
    "avvp reference": ("avvp", 10, [REFERENCE]),
    "avs-s4": ("avs-s4", 11, ["loss.masked=0.3", "loss.masked_kind=similarity"]),
    "avs-ms3": ("avs-ms3", 10, ["loss.masked=0.3", "loss.masked_kind=nearest"]),
    "avqa": ("avqa", 13, ["training.samples_per_clip=3"]),
    "avqa reference": ("avqa", 11, [REFERENCE, "training.batch_size=6"]),
    "stopped in two, resumed in one": ("ave-weak", 9, TWICE),
    "stopped in one, resumed in two": ("ave-weak", 9, TWICE),
    "ave lavish": ("ave", 9, []),
    "avqa dg-sct": ("avqa", 9, []),
    "bf16": ("ave", 8, ["training.precision=bf16"]),
}
"""Name -> task, training samples, settings."""


def write_home(root: Path, task: str) -> Home:
    """Write token and caption stores of a small data set for `task`."""
    path = Path(__file__).parent / "model" / "tasks" / "test_tasks_end_to_end.py"
    source = load_module("tasks_end_to_end", path)
    rows = (source.WORLDS | {"ave": source.ave_rows})[task](24)
    home: Home = source.write_home(root, "hand", rows, () if task == "avs-ms3" else source.CLASSES)
    rng = np.random.default_rng(9)
    manifest = source.Manifest(
        "hand", len(rows[0][1]), 1.0, source.CLASSES, tuple(clip for clip, _, _ in rows)
    )
    recipe = Recipe("captions", "hand", {"made": "by the tests", "shard_clips": 16})
    with open_for_writing(home.stores / "hand", recipe, manifest) as writer:
        for plan in writer.plan():
            writer.publish(plan, {key: caption(key, int(key[1:]) % 5, rng) for key in plan.missing})
        writer.finish()
    return home


def caption(key: str, kind: int, rng: np.random.Generator) -> Record:
    """One of five captions of different lengths, so that some clips share a caption."""
    arrays: dict[str, Any] = {}
    for modality in ("visual_caption", "audio_caption"):
        x = np.random.default_rng([kind, len(modality)]).normal(size=(CAPTION_WORDS, CAPTION_WIDTH))
        mask = np.arange(CAPTION_WORDS) < 2 + kind % 3
        arrays |= {modality: (x * mask[:, None]).astype(np.float16), f"{modality}_mask": mask}
    return Record(key, arrays, {"texts": {"visual": "", "audio": ""}, "notes": []})


@contextmanager
def doubles() -> Iterator[None]:
    """Compute in float64."""
    real_float, real_to = torch.Tensor.float, TokenBatch.to

    def wide(x: torch.Tensor) -> torch.Tensor:
        return x if x.dtype == torch.float64 else real_float(x)

    def to(batch: TokenBatch, device: torch.device, dtype: torch.dtype | None = None) -> TokenBatch:
        return real_to(batch, device, torch.float64 if dtype == torch.float32 else dtype)

    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = wide  # type: ignore[method-assign]
    TokenBatch.to = to  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.Tensor.float = real_float  # type: ignore[method-assign]
        TokenBatch.to = real_to  # type: ignore[method-assign]


def shortened(made: Experiment, samples: int) -> Experiment:
    """Keep the first `samples` training samples, so that the last batch is ragged."""
    splits = {**made.joined.splits, "train": made.joined.splits["train"][:samples]}
    return replace(made, joined=replace(made.joined, splits=splits))


def new_run(home: Home, made: Experiment, processes: Processes) -> Run:
    return Run(home.runs / processes.agree(lambda: create_run(home, made.config).name))


def stopped(home: Home, made: Experiment, processes: Processes) -> Run:
    """A run that was interrupted within an epoch, in all processes alike."""
    run = new_run(home, made, processes)
    watchers = [StopAt(2, 2), *([MetricsLog(run.folder / METRICS)] if processes.main else [])]
    try:
        train(replace(made, processes=processes), run, watchers)
    except StopError:
        return run
    raise AssertionError("the run was not stopped")


def trained(home: Home, made: Experiment, processes: Processes, run: Run | None = None) -> dict[str, Any]:
    """Train, or resume `run`, and return all results: weights, optimiser state, losses, scores."""
    run = run or new_run(home, made, processes)
    watchers = [MetricsLog(run.folder / METRICS)] if processes.main else []
    result = train(replace(made, processes=processes), run, watchers)
    if not processes.main:
        return {}
    records = [
        {k: v for k, v in r.items() if not k.endswith("_s")} for r in read_metrics(run.folder / METRICS)
    ]
    return {
        "state": read_tensors(run.checkpoints / LAST)[0],
        "records": records,
        "losses": [{name: record[name] for name in ("loss", "losses")} for record in records],
        "scores": {k: result[k] for k in ("scores", "details", "intervals", "per_class", "best_epoch")},
        "agreement": run.read("agreement.json") if (run.folder / "agreement.json").exists() else {},
    }


def numbers(value: Any) -> list[float]:
    """All numbers of a JSON value, in order."""
    if isinstance(value, dict):
        return [x for name in sorted(value) for x in numbers(value[name])]
    if isinstance(value, list):
        return [x for item in value for x in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def difference(alone: dict[str, Any], shared: dict[str, Any]) -> dict[str, float]:
    """The largest differences: of the checkpoint, the logged records, their losses, the scores, the agreement."""
    found = {}
    assert alone["state"].keys() == shared["state"].keys(), "the checkpoints hold different tensors"
    found["state"] = max(
        float((x.double() - shared["state"][name].double()).abs().max()) for name, x in alone["state"].items()
    )
    for what in ("records", "losses", "scores", "agreement"):
        one, two = numbers(alone[what]), numbers(shared[what])
        assert len(one) == len(two), what
        found[what] = max((abs(a - b) for a, b in zip(one, two, strict=True)), default=0.0)
    return found


def compared(
    name: str, home: Home, made: Experiment, processes: Processes
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of one undisturbed process and of several; both empty outside the main process."""
    alone = trained(home, made, ONE) if processes.main else {}
    if name == "stopped in two, resumed in one":
        run = stopped(home, made, processes)
        return alone, trained(home, made, ONE, run) if processes.main else {}
    if name == "stopped in one, resumed in two":
        begun = processes.agree(lambda: stopped(home, made, ONE).name)
        return alone, trained(home, made, processes, Run(home.runs / begun))
    return alone, trained(home, made, processes)


def main(root: Path, names: list[str]) -> None:
    """Print a line of JSON per case."""
    processes = from_environment()
    with joined(processes):
        for name in names:
            task, samples, sets = CASES[name]
            began = time.process_time()
            home = Home(root / task)
            recipe = name.split()[-1] if name.split()[-1] in PEERS else "full"
            small = [*TRAINING, *HEADS[task], *(FULL if recipe == "full" else [])]
            config = resolve_config(task, recipe, None, [*small, *sets], {"dataset": "hand"})
            with nullcontext() if name == "bf16" else doubles():
                made = shortened(prepare(home, config), samples)
                alone, shared = compared(name, home, made, processes)
            if processes.main:
                line = {"case": name, "steps": shared["records"][-1]["step"], **difference(alone, shared)}
                line["cpu_s"] = round(time.process_time() - began, 2)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
