"""Does a report find what is wrong with a data set? Plants faults in a generated set and looks for them in the page.

    python benchmarks/report_finds.py --home FOLDER [--clips 480] [--train]

480 clips, of which 30 are misaligned as the generator makes it (each kind of it); 30 others get a wrong label, and 10
test clips become copies of train clips. The set is extracted and reported by the commands a user would type, and
counted is how many of each are among the first 100 entries of their list. With `--train` a run is trained too, and
what its own lists find in the test split is printed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

DATASET = "synthetic"
LISTS = ("Annotations.txt", "trainSet.txt", "valSet.txt", "testSet.txt")


def caeav(home: Path, *arguments: str) -> None:
    """One command in a process of its own."""
    subprocess.run([sys.executable, "-m", "caeav.cli", *arguments, "--home", str(home)], check=True)


def plant(root: Path, seed: int) -> dict[str, set[str]]:
    """Change labels and copy media; returns the ids of the planted clips by list. Done once, then remembered."""
    kept = root / "planted.json"
    if kept.exists():
        return {name: set(ids) for name, ids in json.loads(kept.read_text()).items()}
    rng = np.random.default_rng(seed)
    truth = [json.loads(line) for line in (root / "truth.jsonl").read_text().splitlines()]
    apart = {row["id"] for row in truth if row["kind"] != "aligned"}
    aligned = {
        split: [r["id"] for r in truth if r["kind"] == "aligned" and r["split"] == split]
        for split in ("train", "test")
    }
    copies = [str(x) for x in rng.choice(aligned["test"], 10, replace=False)]
    sources = [str(x) for x in rng.choice(aligned["train"], 10, replace=False)]
    free = [r["id"] for r in truth if r["kind"] == "aligned" and r["id"] not in {*copies, *sources}]
    wrong = [str(x) for x in rng.choice(free, 30, replace=False)]
    rows = {line.split("&")[1]: line.split("&") for line in (root / LISTS[0]).read_text().splitlines()[1:]}
    classes = sorted({row[0] for row in rows.values()})
    for name in wrong:
        others = [cls for cls in classes if cls != rows[name][0]]
        rows[name] = [others[int(rng.integers(len(others)))], *rows[name][1:]]
    for copy, source in zip(copies, sources, strict=True):
        shutil.copyfile(root / "AVE" / f"{source}.mp4", root / "AVE" / f"{copy}.mp4")
        rows[copy] = [rows[source][0], copy, *rows[source][2:]]
    for name in LISTS:
        lines = (root / name).read_text().splitlines()
        head = lines[:1] if name == LISTS[0] else []
        body = ["&".join(rows[line.split("&")[1]]) for line in lines[len(head) :]]
        (root / name).write_text("\n".join([*head, *body]) + "\n")
    found = {"labels": set(wrong), "duplicates": set(copies), "apart": apart}
    kept.write_text(json.dumps({name: sorted(ids) for name, ids in found.items()}))
    return found


def lists_of(page: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists of cards in a page, by name."""
    held = re.search(
        r'<script type="application/json" id="page-data">(.*?)</script>', page.read_text("utf-8"), re.S
    )
    assert held is not None
    data = json.loads(held[1])
    return {one["name"]: one["entries"] for lists in data["lists"].values() for one in lists}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=480)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--train", action="store_true")
    given = parser.parse_args()
    root = given.home / "data" / DATASET
    if not (root / "truth.jsonl").exists():
        caeav(
            given.home,
            "synthesise",
            "--clips",
            str(given.clips),
            "--seed",
            str(given.seed),
            "--misaligned",
            f"{30 / given.clips}",
        )
    planted = plant(root, given.seed)
    caeav(given.home, "extract", "--dataset", DATASET)
    page = given.home / "planted.html"
    caeav(given.home, "report", "--dataset", DATASET, "--out", str(page))
    found = lists_of(page)
    for name, ids in planted.items():
        first = [key for entry in found[name][:100] for key in entry["cards"]]
        hits = {i for i in ids if any(f"/{i}" in key for key in first)}
        print(f"{name}: {len(hits)} of {len(ids)} among the first 100 ({100 * len(hits) / len(ids):.0f} %)")
    print(f"page: {page.stat().st_size / 1e6:.1f} MB")
    if given.train:
        caeav(given.home, "caption", "--dataset", DATASET)
        caeav(given.home, "train", "--task", "ave", "--dataset", DATASET)
        caeav(given.home, "report", "last", "--out", str(given.home / "run.html"))
        for name, entries in lists_of(given.home / "run.html").items():
            cards = [key for entry in entries for key in entry["cards"]]
            print(
                f"run, {name}: {sum(any(f'/{i}' in key for i in planted['labels']) for key in cards)} wrong labels, "
                f"{sum(any(f'/{i}' in key for i in planted['apart']) for key in cards)} misaligned of {len(cards)}"
            )


if __name__ == "__main__":
    main()
