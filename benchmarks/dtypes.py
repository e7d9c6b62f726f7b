"""What a token's number format costs in bytes and in accuracy: the same clips, the same training, four formats.

    python benchmarks/dtypes.py --home caeav_home/dtypes [--clips 240] [--seeds 0,1,2] [--dtypes float16 int8]

Fills one store a format from a single decoding of the synthetic set, trains `--task ave --recipe full` on each with
each of at least two seeds, and prints bytes a clip, what a token loses against float32 (root mean square, relative to
its channel's), and accuracy on test. A training that is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from caeav.manifests.core.home import Home
from caeav.manifests.dataset import load_dataset
from caeav.manifests.synthetic import SyntheticOptions, synthesise
from caeav.pipeline.extract.context import RunContext, RunOptions
from caeav.pipeline.extract.jobs import CaptionOptions, TokenOptions
from caeav.pipeline.extract.progress import StageSummary
from caeav.pipeline.extract.tokens import extract_all
from caeav.pipeline.store import StoreReader
from caeav.pipeline.store.dtypes import DTYPES

SAMPLED = 20


def stores(home: Home, dtypes: list[str]) -> dict[str, StageSummary]:
    """One store of tokens a format, and the captions beside them."""
    manifest = load_dataset("synthetic", None, home)
    options = [*(TokenOptions(dtype=dtype) for dtype in dtypes), CaptionOptions()]
    made = extract_all(RunContext(manifest, home, RunOptions(workers=2), lambda progress: None), options)
    return dict(zip(dtypes, made, strict=False))


def loss(exact: StoreReader, other: StoreReader) -> float:
    """Root mean square of what is lost, relative to that of the channel, over some clips and all taps."""
    lost = []
    for key in other.keys[:SAMPLED]:
        wanted, found = exact.read(key).arrays, other.read(key).arrays
        for name, x in wanted.items():
            x = x.astype(np.float64)
            size = np.sqrt(np.square(x).mean(axis=(0, 1))) + 1e-12
            lost.append(float(np.sqrt((np.square(found[name] - x).mean(axis=(0, 1)) / size**2).mean())))
    return statistics.fmean(lost)


def accuracy(home: Home, store: Path, dtype: str, seeds: str) -> tuple[list[float], list[float]]:
    """Accuracies on val and test, one a seed; kept in a file beside the runs."""
    kept = home.root / f"{dtype}-{seeds}.json"
    if not kept.is_file():
        command = [sys.executable, "-m", "caeav.cli", "train", "--task", "ave", "--dataset", "synthetic"]
        command += ["--seeds", seeds, "--set", f"stores.tokens=[{store.name}]", "--home", str(home.root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        newest = max((home.root / "runs").glob("*.group.json"), key=lambda path: path.stat().st_mtime)
        kept.write_text(newest.read_text())
    scores: dict[str, Any] = json.loads(kept.read_text())["scores"]
    return scores["val"]["values"], scores["test"]["values"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path("caeav_home/dtypes"))
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    args = parser.parse_args()
    if "," not in args.seeds:
        parser.error("give at least two seeds")
    home = Home(args.home.absolute())
    synthesise(home.data("synthetic"), SyntheticOptions(clips=args.clips), workers=2)
    made = stores(home, list(dict.fromkeys(["float32", *args.dtypes])))
    exact = StoreReader.open(made["float32"].path)
    print(f"| format | KiB a clip | lost | val % | test % | test by seed ({args.seeds}) |")
    print("|---|---|---|---|---|---|")
    for dtype in args.dtypes:
        store = made[dtype]
        lost = loss(exact, StoreReader.open(store.path))
        val, test = accuracy(home, store.path, dtype, args.seeds)
        spread = f" ± {statistics.stdev(test):.1f}" if len(test) > 1 else ""
        print(
            f"| {dtype} | {store.bytes / store.stored / 1024:.1f} | {lost:.5f} | {statistics.fmean(val):.1f} | "
            f"{statistics.fmean(test):.1f}{spread} | {' '.join(f'{value:.1f}' for value in test)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
