"""What is a true agreement of audio and frames worth? Prints the tables of docs/VARIANTS.md and docs/ROBUSTNESS.md.

    python benchmarks/agreement.py --home caeav_home/agreement [--only ave avvp] [--seeds 0,1,2,3,4] [--jobs 2]

On generated sets, whose every second is known, CASTE alone (no AVMoE, CASE, captions) is trained with the gates of
the published method, with the one agreement that `loss.correspondence` teaches, and with the truth handed in, which is
an upper bound: it tells more than a model can know. In `ave` and `ave-weak` the head reads the agreement in two more
rows. `--only stress` trains the full model on `ave` with and without the objective and scores it under swapped sound.
With `--material` the set is the one of drawings and recordings that `benchmarks/material.py` has made in `--home`, with
its learned tokens and settings.

Truth is handed in here alone: the benchmark puts it into batches and replaces the trunk's `match`; no setting of the
product does that. The checkpoint is chosen on val, test is scored once. It can be interrupted: a finished cell is a
file in `<home>/cells`. `--tables` prints what is there and trains nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import material
from cells import cell_file, spread, train_cell, train_cells

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from caeav.model.adapters.batch import ClipData, Epoch, TokenBatch
    from caeav.model.adapters.correspondence import Match
    from caeav.model.train.experiment import Experiment
    from caeav.model.train.runs import Run

SPLITS = "0.6,0.15,0.25"
SETS: dict[str, tuple[str, ...]] = {
    "ave": ("--clips", "320"),
    "llp": ("--clips", "320"),
    "avs-ms3": ("--clips", "400", "--size", "128"),
    "music-avqa": (
        "--clips",
        "480",
        "--size",
        "128",
        "--seconds",
        "6",
        "--questions",
        "14",
        "--classes",
        "5",
    ),
}
SET_OF = {"ave": "ave", "ave-weak": "ave", "avvp": "llp", "avs-ms3": "avs-ms3", "avqa": "music-avqa"}
DEEPEST = "stores.taps=[visual.stage3,visual.stage4,audio.stage3,audio.stage4]"
SETTINGS: dict[str, tuple[str, ...]] = {
    "ave": (DEEPEST, "training.epochs=10"),
    "ave-weak": (DEEPEST, "training.epochs=10"),
    "avvp": (DEEPEST, "training.epochs=12"),
    "avs-ms3": (
        "stores.taps=[visual.stage1,visual.stage2,audio.stage3,audio.stage4]",
        "training.epochs=8",
        "model.head.mask_size=32",
        "optimiser.lr=0.003",
        "optimiser.head_lr_factor=1",
    ),
    "avqa": (
        "stores.taps=[visual.stage1,visual.stage2,audio.stage1,audio.stage2]",
        "training.epochs=10",
        "training.batch_size=96",
        "training.samples_per_clip=14",
    ),
    "stress": (DEEPEST, "training.epochs=10", "model.adapters.case.width=64"),
}
ALONE = ("captions=false", "model.adapters.avmoe.enabled=false")
UNTOLD = ("model.head.reads_agreement=false",)
ORACLE = ("loss.correspondence=0", "model.adapters.caste.shared_agreement=true")
GATES = {
    "gates of their own": ("loss.correspondence=0",),
    "learned": (),
    "true": ORACLE,
}
HEADS_THAT_READ = ("ave", "ave-weak")
READ = ", read by the head"
FULL = {
    "without the objective": ("loss.correspondence=0",),
    "full": (),
}
TRUTH = "truth.together"
SURE = 5.0
"""The logit of what is true; -5 of what is not."""
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Of Student's t at 97.5 %, for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Cell:
    """One training: its row and all that decides its result."""

    row: str
    task: str
    recipe: str
    seed: int
    assignments: tuple[str, ...]
    oracle: bool = False

    def file(self, home: Path) -> Path:
        """Where its result lies."""
        name = f"{self.task}-{self.row.replace(' ', '-').replace(',', '')}-s{self.seed}"
        decides = [self.recipe, self.assignments, self.seed, self.oracle, SPLITS, SETS[SET_OF[self.task]]]
        return cell_file(home, name, decides)


def cells(part: str, seeds: Sequence[int], settings: tuple[str, ...]) -> list[Cell]:
    """The rows of a task, or of `stress`, seed by seed."""
    if part == "stress":
        return [
            Cell(row, "ave", "full", seed, (*settings, *more)) for seed in seeds for row, more in FULL.items()
        ]
    reads, common = part in HEADS_THAT_READ, (*settings, *ALONE)
    found = []
    for seed in seeds:
        found.append(Cell("none", part, "none", seed, settings))
        for row, more in GATES.items():
            oracle = row == "true"
            shared = row != "gates of their own"
            untold = UNTOLD if reads and shared else ()
            found.append(Cell(row, part, "caste", seed, (*common, *more, *untold), oracle))
            if reads and shared:
                found.append(Cell(row + READ, part, "caste", seed, (*common, *more), oracle))
    return found


def material_settings(home: Path, task: str) -> tuple[str, ...]:
    """What `benchmarks/material.py` sets on learned tokens, for models without captions."""
    store = material.store_of(home, material.DATASET[task], material.PAIR).name
    return (*material.settings_of(task, material.PAIR), f"stores.tokens={store}")


def make_set(home: Path, layout: str, *, captions: bool) -> None:
    """Clips, tokens and, if wanted, captions of one set, through the program."""
    dataset = "synthetic" if layout == "ave" else f"synthetic-{layout}"
    at = ("--home", str(home))
    made = ("synthesise", "--dataset", layout, *SETS[layout], "--splits", SPLITS)
    material.caeav(*made, *at)
    material.caeav("extract", "--dataset", dataset, *at)
    if captions:
        material.caeav("caption", "--dataset", dataset, *at)


# ---- the truth, handed in -------------------------------------------------------------------------------------------


class Told:
    """A `BatchTransform`: adds what is true of every clip, `[B, T]` in 0/1, to the batch's extra inputs."""

    def __init__(self, together: Tensor) -> None:
        self.together = together

    def __call__(
        self, batch: TokenBatch, rows: Sequence[int], data: ClipData, epoch: Epoch | None
    ) -> TokenBatch:
        """Rows of one clip share its truth."""
        batch.extra = {**batch.extra, TRUTH: self.together[data.clips_of(rows)]}
        return batch


def true_match(together: Tensor) -> Match:
    """A `Match` whose logits are `SURE` where audio and frames belong together, else `-SURE`."""
    import torch

    from caeav.model.adapters.correspondence import Match

    visual = torch.ones_like(together).unsqueeze(-1)
    audio = (2 * together - 1).unsqueeze(-1)
    return Match(visual, audio, together.new_tensor(SURE), together.new_zeros(()))


def with_truth(experiment: Experiment) -> Experiment:
    """The same experiment, in which every adapter and the head get the truth for the shared agreement."""
    import torch

    from caeav.model.train.agreement import generated_truth
    from caeav.model.train.experiment import Experiment

    told = {}
    for split, data in experiment.data.items():
        truths = generated_truth(experiment, split)
        assert truths is not None, f"{split} is not of a generated set"
        told[split] = data.transformed(Told(torch.tensor([truth.together for truth in truths]).float()))

    class Knowing(Experiment):
        def build(self) -> Any:
            network = super().build()
            network.trunk.match = lambda batch: true_match(batch.extra[TRUTH])
            return network

    held = {field.name: getattr(experiment, field.name) for field in dataclasses.fields(experiment)}
    knowing = Knowing(**held)
    knowing.__dict__["data"] = told
    return knowing


# ---- training and scoring -------------------------------------------------------------------------------------------


def look(experiment: Experiment, run: Run) -> dict[str, Any]:
    """How true the agreement is on test, and the score there under swapped sound with labels that follow."""
    from caeav.model.tasks.config import StressConfig
    from caeav.model.train.agreement import judge, read_calibration
    from caeav.model.train.examine import examine
    from caeav.model.train.session import load_best

    if TRUTH in experiment.data["test"].batch([0]).extra:
        return {}  # the truth that was handed in would not follow
    model: Module = experiment.build()
    load_best(run, model)
    judged = judge(experiment, model, "test", read_calibration(run))
    found: dict[str, Any] = {}
    if judged is not None:
        found |= {"auc": judged.auc, "calibration_error": judged.calibration_error}
    if experiment.task.tracks(experiment.targets["test"]) is not None:
        for name, strengths in (("swap", StressConfig(swap=1.0)), ("shift", StressConfig(shift=2))):
            found[name] = examine(experiment, model, "test", strengths=strengths, follow=True).scores.value
    return found


def train_one(home: Path, cell: Cell, result: Path) -> float:
    """Train one cell; CPU seconds it took."""
    dataset = SET_OF[cell.task]
    training = {
        "task": cell.task,
        "recipe": cell.recipe,
        "dataset": "synthetic" if dataset == "ave" else f"synthetic-{dataset}",
        "assignments": (*cell.assignments, "training.workers=0", "training.device=cpu"),
        "seed": cell.seed,
    }
    told = {"row": cell.row, "task": cell.task, "seed": cell.seed}
    return train_cell(home, training, told, result, look, with_truth if cell.oracle else None)


# ---- tables ---------------------------------------------------------------------------------------------------------


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> str:
    """Mean difference over common seeds and its 95 % interval, by Student's t; a dash for fewer than two."""
    gaps = [values[seed] - base[seed] for seed in values if seed in base]
    if len(gaps) < 2:
        return "-"
    mean = statistics.fmean(gaps)
    half = QUANTILES[len(gaps) - 2] * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def mean_of(results: Sequence[Mapping[str, Any]], name: str, digits: int) -> str:
    values = [result[name] for result in results if result.get(name) is not None]
    return f"{statistics.fmean(values):.{digits}f}" if values else ""


def print_part(part: str, results: Mapping[Cell, Mapping[str, Any]]) -> None:
    """A row for each model: scores, and the paired difference from the first row."""
    rows = list(dict.fromkeys(cell.row for cell in results))
    tests = {
        row: {cell.seed: found["scores"]["test"] for cell, found in results.items() if cell.row == row}
        for row in rows
    }
    swaps = {
        row: {
            cell.seed: found["swap"] for cell, found in results.items() if cell.row == row and "swap" in found
        }
        for row in rows
    }
    print(
        f"\n| {part} | seeds | val | test | minus {rows[0]} | AUC | calibration error | swap=1 | minus {rows[0]} |"
    )
    print("|---" * 9 + "|")
    for row in rows:
        own = [found for cell, found in results.items() if cell.row == row]
        first = row == rows[0]
        cells_of_row = (
            row,
            str(len(own)),
            *(spread([found["scores"][split] for found in own]) for split in ("val", "test")),
            "" if first else paired(tests[row], tests[rows[0]]),
            mean_of(own, "auc", 3),
            mean_of(own, "calibration_error", 3),
            spread(list(swaps[row].values())) if swaps[row] else "",
            "" if first or not swaps[row] else paired(swaps[row], swaps[rows[0]]),
        )
        print("| " + " | ".join(cells_of_row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path("caeav_home/agreement"))
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--tables", action="store_true", help="train nothing")
    parser.add_argument("--material", action="store_true", help="ave-weak, ave, avvp on drawings")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    known = tuple(material.DATASET if options.material else SETTINGS)
    only = options.only or known
    if unknown := [part for part in only if part not in known]:
        parser.error(f"--material has {', '.join(known)}, not {', '.join(unknown)}")
    given = {
        part: material_settings(options.home, part) if options.material else SETTINGS[part] for part in only
    }
    wanted = {part: cells(part, seeds, given[part]) for part in only}
    todo = [(c, c.file(options.home)) for part in wanted.values() for c in part]
    todo = [] if options.tables else [(cell, file) for cell, file in todo if not file.exists()]
    made_here = () if options.material else todo
    for layout in dict.fromkeys(SET_OF[cell.task] for cell, _ in made_here):
        captions = any(cell.recipe == "full" and SET_OF[cell.task] == layout for cell, _ in todo)
        make_set(options.home, layout, captions=captions)
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    train_cells(
        [
            (f"{cell.task} {cell.row} seed {cell.seed}", train_one, (options.home, cell, file))
            for cell, file in todo
        ],
        options.jobs,
    )
    for part, own in wanted.items():
        files = {cell: cell.file(options.home) for cell in own}
        results = {cell: json.loads(file.read_text()) for cell, file in files.items() if file.exists()}
        if results:
            print_part(part, results)


if __name__ == "__main__":
    main()
