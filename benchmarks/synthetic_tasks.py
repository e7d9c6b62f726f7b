"""How well does each model solve each task's synthetic set? Prints the table of docs/TASKS.md.

    python benchmarks/synthetic_tasks.py --home caeav_home/tasks

Makes the sets, their tokens and captions (finished steps are gone over quickly), trains every task's recipes with every
seed, and prints mean and deviation over the seeds as a Markdown table. Checkpoints are chosen on validation, test is
scored once. All recipes of a task share head, optimiser, schedule and epochs. A recipe whose group of seeds is there
already is not trained again; other clips, taps or settings need another home.

Tasks whose heads average the tokens of the deepest tap get the first two taps of `classic`, whose tokens know their own
place alone: in every token of the last tap the whole picture is summed up already (docs/TASKS.md). `avs-ms3` gets
four of eight, `avqa` the first. `--taps all` gives them all four.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SETS = {
    "ave": ("ave", "synthetic"),
    "ave-weak": ("ave", "synthetic"),
    "avvp": ("llp", "synthetic-llp"),
    "avs-s4": ("avs-s4", "synthetic-avs-s4"),
    "avs-ms3": ("avs-ms3", "synthetic-avs-ms3"),
    "avqa": ("music-avqa", "synthetic-music-avqa"),
}
"""Task -> what `synthesise` calls its layout, and what the set is called."""
SPLITS, SPLITS_OF = "0.5,0.15,0.35", {"avs-ms3": "0.6,0.15,0.25", "avqa": "0.7,0.15,0.15"}
CLIPS, CLIPS_OF = 480, {"avs-s4": 400, "avs-ms3": 800, "avqa": 2400}
MADE_WITH = {
    "avs-s4": ("--size", "128"),
    "avs-ms3": ("--size", "128"),
    "avqa": ("--seconds", "6", "--questions", "14", "--classes", "5"),
}
"""Pictures smaller than the official 224 pixels: comparing masks is half the work of a training. Many questions: the
head of `avqa` learns them from many, and adapters run once a video for all of its own."""
RECIPES = ("visual", "audio", "none", "full")
OWN_RECIPES = {"avqa": ("question", "avmoe", "case")}
SMALL = ("model.adapters.case.width=64",)
"""CASE at the tokens' own width has three million parameters and takes twice the time."""
FIRST_TWO = "stores.taps=[visual.stage1,visual.stage2,audio.stage1,audio.stage2]"
TAPS_OF = {
    "ave": FIRST_TWO,
    "ave-weak": FIRST_TWO,
    "avvp": FIRST_TWO,
    "avs-ms3": "stores.taps=[visual.stage1,visual.stage2,audio.stage3,audio.stage4]",
    "avqa": "stores.taps=[visual.stage1,audio.stage1]",
}
"""Heads other than those of `avs` see means of the deepest tap's tokens, and next to nothing else of them; what `avqa`
asks for is nearly all in the mean of the second tap, and lost in that of the first. `avs-ms3`: fine grids of the
picture, sounds told apart best."""
LOCAL = ("model.adapters.avmoe.num_skip=1", "model.adapters.avmoe.reduction=4")
OWN = {
    "avvp": ("training.epochs=12",),
    "avs-ms3": (
        "training.epochs=24",
        "model.head.mask_size=32",
        "optimiser.lr=0.003",
        "optimiser.head_lr_factor=1",
    ),
    "avqa": (
        "training.epochs=24",
        "training.batch_size=96",
        "training.samples_per_clip=14",
        "model.adapters.avmoe.reduction=1",
    ),
}
"""In `avs-ms3` and `avqa` the score on val still rose after the recipe's epochs, for every model; in `avvp` the best
epoch is among the first twelve. Half the mask size halves the time of
`avs-ms3`; its head learns at 0.003 as in the recipe, its adapters too. A batch of `avqa` is some seven videos; experts
a quarter as wide as the first tap would have eight channels."""


def caeav(*arguments: str) -> str:
    """Run one command of the program; its standard output."""
    print("$ caeav", *arguments, file=sys.stderr)
    command = [sys.executable, "-m", "caeav.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def finished_groups(home: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(task, recipe, seeds) -> summary of what was trained before."""
    groups = [json.loads(path.read_text()) for path in sorted((home / "runs").glob("*.group.json"))]
    return {(g["task"], g["recipe"], ",".join(map(str, g["seeds"]))): g for g in groups}


def prepare(task: str, clips: int | None, at: list[str]) -> None:
    """The task's set, tokens and captions."""
    layout, dataset = SETS[task]
    made = ["--clips", str(clips or CLIPS_OF.get(task, CLIPS)), "--splits", SPLITS_OF.get(task, SPLITS)]
    made += MADE_WITH.get(task, ())
    caeav("synthesise", "--dataset", layout, *made, "--json", *at)
    caeav("extract", "--dataset", dataset, *at)
    caeav("caption", "--dataset", dataset, *at)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path("caeav_home/tasks"))
    parser.add_argument("--clips", type=int, help="default: 480; avs-s4: 400, avs-ms3: 800, avqa: 2400")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--tasks", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--recipes", nargs="+", help="default: visual audio none full, and the task's own")
    parser.add_argument("--taps", choices=("local", "all"), default="local")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    at = ["--home", str(options.home)]

    print("| task | metric | model | val | test | test by seed |\n|---|---|---|---|---|---|")
    for task in options.tasks:
        prepare(task, options.clips, at)
        recipes = options.recipes or [*OWN_RECIPES.get(task, ()), *RECIPES]
        local = (TAPS_OF[task], *LOCAL) if task in TAPS_OF and options.taps == "local" else ()
        for recipe in recipes:
            if (task, recipe, options.seeds) not in finished_groups(options.home):
                settings = (*SMALL, *local, *OWN.get(task, ()), *options.assignments)
                changes = [part for one in settings for part in ("--set", one)]
                what = ["--task", task, "--dataset", SETS[task][1], "--recipe", recipe]
                caeav("train", *what, "--seeds", options.seeds, *changes, *at)
        groups = finished_groups(options.home)
        first = groups[task, recipes[0], options.seeds]
        majority = " | ".join(f"{first['majority'][split]:.1f}" for split in ("val", "test"))
        print(f"| {task} | {first['metric']} | majority | {majority} | |")
        for recipe in recipes:
            val, test = (groups[task, recipe, options.seeds]["scores"][split] for split in ("val", "test"))
            by_seed = " ".join(f"{value:.1f}" for value in test["values"])
            cells = (
                f"{val['mean']:.1f} ± {val['std']:.1f} | {test['mean']:.1f} ± {test['std']:.1f} | {by_seed}"
            )
            print(f"| | | {recipe} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
