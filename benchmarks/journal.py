"""What it costs to keep every finished clip at once: extraction's writing thread with its journals and without.

    python benchmarks/journal.py [--megabytes 1000] [--rounds 3] [--folder DIR] [--pause 0]

Clips of 1, 10 and 40 MB, 64 a shard, are handed to the writing thread as fast as it takes them (the worst case:
nothing is computed), or one every `--pause` seconds. Told are seconds, and the bytes the process gave the system and
the disk was asked to write (/proc/self/io counts pages when they are dirtied and takes back those of removed files).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from caeav.manifests.clip import Clip, Manifest
from caeav.pipeline.extract.collect import Collector, Filling
from caeav.pipeline.extract.progress import Meter
from caeav.pipeline.store import Recipe, Record, open_for_writing

SIZES_MB = (1, 10, 40)
SHARD_CLIPS = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: the temp folder)")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two clips")
    args = parser.parse_args()
    print("| clip | clips | without, s | with, s | more | given to the system, x | asked of the disk, x |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES_MB:
        clips = max(4, args.megabytes // size)
        runs = {keep: [] for keep in (False, True)}
        for _ in range(args.rounds):
            for keep, found in runs.items():
                with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                    found.append(fill(Path(folder), size, clips, keep, args.pause))
        without, with_ = (min(runs[keep]) for keep in (False, True))
        given, asked = (with_[i] / without[i] for i in (1, 2))
        more = with_[0] / without[0] - 1
        print(
            f"| {size} MB | {clips} | {without[0]:.2f} | {with_[0]:.2f} | {more:.0%} | {given:.2f} | {asked:.2f} |"
        )


def fill(folder: Path, size_mb: int, clips: int, keep: bool, pause_s: float) -> tuple[float, int, int]:
    """Seconds, bytes given to the system and bytes asked of the disk for one store."""
    rows = tuple(Clip(f"c{i:06d}", f"{i}.mp4", 0.0, 10.0, "train") for i in range(clips))
    recipe = Recipe("tokens", "journal", {"shard_clips": SHARD_CLIPS})
    rng = np.random.default_rng(0)
    tokens = rng.random((10, 100, size_mb * 500), np.float32).astype(np.float16)
    before, began = counters(), time.perf_counter()
    broken: list[BaseException] = []
    with open_for_writing(folder, recipe, Manifest("bench", 10, 1.0, (), rows)) as writer:
        store = Filling(writer, lambda records, place: list(records))
        collector = Collector([store], lambda progress: None, Meter({"writer": 1}), broken.append, keep=keep)
        for row in rows:
            time.sleep(pause_s)
            collector.settle(store, row.key, Record(row.key, {"visual.stage1": tokens}, {"notes": []}))
        collector.close()
        if broken:
            raise broken[0]
        writer.finish()
    os.sync()
    after = counters()
    return time.perf_counter() - began, after[0] - before[0], after[1] - before[1]


def counters() -> tuple[int, int]:
    """Bytes given to the system, and bytes the disk was asked to write less those that were taken back."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["wchar"]), int(lines["write_bytes"]) - int(lines["cancelled_write_bytes"])


if __name__ == "__main__":
    main()
