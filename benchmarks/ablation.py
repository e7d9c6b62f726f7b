"""Does each part help, and does each fix? Trains the grid and prints the tables of docs/VARIANTS.md.

    python benchmarks/ablation.py --home caeav_home/ablation [--only grid|fixes|objectives] [--jobs 2]

Grid: {none, avmoe, +caste, +case, full} x {reference, revised} x misaligned clips {0, 30, 60 %} x seeds. `none`
has no adapter, hence no variant, and is trained once. Fixes: `full` revised with one fix turned back, at 60 %.
Objectives: the same with one or all of the light objectives off. The clips of a level are made once (finished
steps are gone over quickly). A finished cell is a file in `<home>/cells` and is not trained again, whatever else
is asked for; cells of other clips, epochs or settings have other names, but after a change of the code the folder
must be deleted by hand. Each of `--jobs` processes runs on one thread; a cell takes 5 (none) to 70 (full) seconds
of one core. Checkpoints are chosen on validation; the test split, larger than usual here, is scored once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import cell_file, spread, train_cell, train_cells

LEVELS = (0.0, 0.3, 0.6)
HARDEST = 0.6
SPLITS = "0.6,0.12,0.28"
# Row -> recipe and what is set on top of it. +caste and +case each add one part to AVMoE.
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "none": ("none", ()),
    "avmoe": ("avmoe", ()),
    "+caste": ("caste", ()),
    "+case": ("full", ("model.adapters.caste.enabled=false",)),
    "full": ("full", ()),
}
OBJECTIVES = ("caption_contrast", "consistency", "selection_entropy")
AS_MEASURED = ("optimiser.head_lr_factor=1",)
"""The head's rate when the tables of docs/VARIANTS.md were made; the recipe's is three times as high by now."""
WITHOUT_EFFECT = ("avmoe.uniform_target",)
"""Fixes that change nothing at the recipe's settings: it has `loss.load_balance` at 0."""


@dataclass(frozen=True)
class Cell:
    """One training: what the table calls it, and all that decides its result."""

    label: str
    variant: str
    misaligned: float
    seed: int
    recipe: str
    assignments: tuple[str, ...]

    def file(self, home: Path, common: str) -> Path:
        """Where its result lies; `common` says what all cells of this call share."""
        name = f"{self.label}-{self.variant}-m{100 * self.misaligned:.0f}-s{self.seed}"
        return cell_file(home, name, [self.recipe, self.assignments, self.misaligned, self.seed, common])


def make_cell(label: str, variant: str, misaligned: float, seed: int, changes: Sequence[str] = ()) -> Cell:
    recipe, own = ROWS.get(label, ROWS["full"])
    return Cell(
        label, variant, misaligned, seed, recipe, (f"model.adapters.variant={variant}", *own, *changes)
    )


def grid(seeds: Sequence[int]) -> list[Cell]:
    """The hardest level first: it says most if the time runs out."""
    return [
        make_cell(row, variant, level, seed)
        for level in sorted(LEVELS, reverse=True)
        for seed in seeds
        for row in ROWS
        for variant in ("reference", "revised")
        if row != "none" or variant == "reference"
    ]


def fixes(seeds: Sequence[int]) -> list[Cell]:
    from caeav.model.adapters.config import FIXES

    return [make_cell("full", "revised", HARDEST, seed) for seed in seeds] + [
        make_cell(
            f"without-{path}", "revised", HARDEST, seed, (f"model.adapters.{path}={json.dumps(reference)}",)
        )
        for seed in seeds
        for path, (reference, _) in FIXES.items()
        if path not in WITHOUT_EFFECT
    ]


def objectives(seeds: Sequence[int]) -> list[Cell]:
    off = {f"without-{name}": (f"loss.{name}=0",) for name in OBJECTIVES}
    off["without-objectives"] = tuple(f"loss.{name}=0" for name in OBJECTIVES)
    return [make_cell("full", "revised", HARDEST, seed) for seed in seeds] + [
        make_cell(label, "revised", HARDEST, seed, changes)
        for seed in seeds
        for label, changes in off.items()
    ]


PARTS = {"grid": grid, "fixes": fixes, "objectives": objectives}


def level_home(home: Path, level: float) -> Path:
    return home / f"m{100 * level:02.0f}"


def make_data(home: Path, level: float, clips: int) -> None:
    """Clips, tokens and captions of one level, through the program."""
    at = ("--home", str(level_home(home, level)))
    for command in (
        ("synthesise", "--clips", str(clips), "--splits", SPLITS, "--misaligned", str(level)),
        ("extract", "--dataset", "synthetic"),
        ("caption", "--dataset", "synthetic"),
    ):
        print("$ caeav", *command, *at, file=sys.stderr)
        subprocess.run(
            [sys.executable, "-m", "caeav.cli", *command, *at], check=True, stdout=subprocess.DEVNULL
        )


def train(home: Path, cell: Cell, common: Sequence[str], result: Path) -> float:
    """Train and publish one cell; CPU seconds it took."""
    training = {
        "task": "ave",
        "recipe": cell.recipe,
        "dataset": "synthetic",
        "assignments": (*common, *cell.assignments),
        "seed": cell.seed,
    }
    told = {"label": cell.label, "variant": cell.variant, "misaligned": cell.misaligned, "seed": cell.seed}
    return train_cell(level_home(home, cell.misaligned), training, told, result)


def print_grid(results: dict[Cell, dict[str, Any]], seeds: Sequence[int]) -> None:
    def scores(row: str, variant: str, level: float) -> list[float]:
        cells = [make_cell(row, "reference" if row == "none" else variant, level, seed) for seed in seeds]
        return [results[cell]["scores"]["test"] for cell in cells if cell in results]

    variants = ("reference", "revised")
    print(
        "\n| test accuracy % | " + " | ".join(f"{100 * m:.0f} % {v}" for m in LEVELS for v in variants) + " |"
    )
    print("|---" * (1 + len(LEVELS) * len(variants)) + "|")
    majority = {cell.misaligned: result["majority"]["test"] for cell, result in results.items()}
    print(
        "| majority | "
        + " | ".join(f"{majority[m]:.1f}" if m in majority else "-" for m in LEVELS for _ in variants)
        + " |"
    )
    for row in ROWS:
        print(f"| {row} | " + " | ".join(spread(scores(row, v, m)) for m in LEVELS for v in variants) + " |")


def print_single(results: dict[Cell, dict[str, Any]], cells: Sequence[Cell], title: str) -> None:
    """One row a change, with its difference from the unchanged model seed by seed."""
    print(
        f"\n| {title}, {100 * HARDEST:.0f} % misaligned | val % | test % | test minus unchanged |\n|---|---|---|---|"
    )
    base = {c.seed: results[c]["scores"]["test"] for c in cells if c.label == "full" and c in results}
    for label in dict.fromkeys(cell.label for cell in cells):
        own = [cell for cell in cells if cell.label == label and cell in results]
        val, test = ([results[c]["scores"][split] for c in own] for split in ("val", "test"))
        gaps = [results[c]["scores"]["test"] - base[c.seed] for c in own if c.seed in base]
        print(f"| {label} | {spread(val)} | {spread(test)} | {spread(gaps) if label != 'full' else ''} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path("caeav_home/ablation"))
    parser.add_argument("--clips", type=int, default=220)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", choices=PARTS, action="append", help="default: all three")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--cells", type=int, help="train at most so many now; the tables show what is there")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    parts = {name: PARTS[name](seeds) for name in options.only or PARTS}
    common = [
        f"training.epochs={options.epochs}",
        *AS_MEASURED,
        "training.workers=0",
        "training.device=cpu",
        *options.assignments,
    ]
    shared = json.dumps([options.clips, SPLITS, common])
    files = {cell: cell.file(options.home, shared) for cells in parts.values() for cell in cells}

    todo = [(cell, file) for cell, file in files.items() if not file.exists()][: options.cells]
    for level in sorted({cell.misaligned for cell, _ in todo}):
        make_data(options.home, level, options.clips)
    named = [
        (
            f"{cell.label} {cell.variant} {100 * cell.misaligned:.0f} % seed {cell.seed}",
            train,
            (options.home, cell, common, file),
        )
        for cell, file in todo
    ]
    train_cells(named, options.jobs)

    results = {cell: json.loads(file.read_text()) for cell, file in files.items() if file.exists()}
    print(
        f"{len(results)} of {len(files)} cells, {options.clips} clips, {options.epochs} epochs, seeds {options.seeds}"
    )
    if "grid" in parts:
        print_grid(results, seeds)
    for name, title in (
        ("fixes", "full, revised, one fix turned back"),
        ("objectives", "full, revised, objectives"),
    ):
        if name in parts:
            print_single(results, parts[name], title)


if __name__ == "__main__":
    main()
