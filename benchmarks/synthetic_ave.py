"""How well does each model solve the synthetic set? Prints the table of docs/RESULTS.md.

    python benchmarks/synthetic_ave.py --home caeav_home/results

Makes the set, its tokens and captions (finished steps are gone over quickly), trains every recipe with every seed,
and prints mean and deviation over the seeds as a Markdown table. Checkpoints are chosen on validation, test is scored
once. A recipe whose group of seeds is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

RECIPES = ("visual", "audio", "none", "avmoe", "full")


def caeav(*arguments: str) -> str:
    """Run one command of the program; its standard output."""
    print("$ caeav", *arguments, file=sys.stderr)
    command = [sys.executable, "-m", "caeav.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def finished_groups(home: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(recipe, seeds) -> summary of what was trained before."""
    groups = [json.loads(path.read_text()) for path in sorted((home / "runs").glob("*.group.json"))]
    return {(group["recipe"], ",".join(map(str, group["seeds"]))): group for group in groups}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path("caeav_home/results"))
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--misaligned", type=float, default=0.6)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    at = ("--home", str(options.home))

    made = ("--clips", str(options.clips), "--misaligned", str(options.misaligned))
    oracles = json.loads(caeav("synthesise", *made, "--json", *at))
    caeav("extract", "--dataset", "synthetic", *at)
    caeav("caption", "--dataset", "synthetic", *at)
    for recipe in options.recipes:
        if (recipe, options.seeds) not in finished_groups(options.home):
            changes = [part for one in options.assignments for part in ("--set", one)]
            train = (
                "train",
                "--task",
                "ave",
                "--dataset",
                "synthetic",
                "--recipe",
                recipe,
                "--seeds",
                options.seeds,
            )
            caeav(*train, *changes, *at)

    groups = finished_groups(options.home)
    first = groups[options.recipes[0], options.seeds]
    print(f"\n| model | val % | test % | test by seed ({options.seeds}) |")
    print("|---|---|---|---|")
    print(f"| majority | {first['majority']['val']:.1f} | {first['majority']['test']:.1f} | |")
    for recipe in options.recipes:
        val, test = (groups[recipe, options.seeds]["scores"][split] for split in ("val", "test"))
        by_seed = " ".join(f"{value:.1f}" for value in test["values"])
        print(
            f"| {recipe} | {val['mean']:.1f} ± {val['std']:.1f} | {test['mean']:.1f} ± {test['std']:.1f} | {by_seed} |"
        )
    print("\nWhat perfect knowledge would reach on all clips:", end=" ")
    print("; ".join(f"{score['knows']} {100 * score['accuracy']:.1f} %" for score in oracles["bounds"]))


if __name__ == "__main__":
    main()
