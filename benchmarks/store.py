"""How fast the store writes and reads, checksums on, beside raw memory-mapped files and other formats, in one run.

    python benchmarks/store.py [--megabytes 400] [--rounds 3] [--folder DIR] [--peer-python PYTHON]

Every system writes the same tokens and reads them in order and at random, every byte touched (a 64-bit sum, which is
compared). "Cold" reads drop the files from the page cache before, by posix_fadvise(DONTNEED), which needs no
privileges but works only while no process has the files mapped: so each step is a process of its own. The disk's
own cache stays. Rounds go through all systems before the next begins, so that other load on the machine meets all
alike; the best round of each counts. Opening is part of a read, importing libraries is not. Libraries that do not
fit into this environment are looked for in --peer-python; what is nowhere is left out with the reason.

The raw file has no keys, no checksums and no facts: it is the ceiling, not an alternative. LitData and MosaicML
Streaming check nothing when they read, Zarr only where a codec for it was asked for.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from store_peers import (
    CLIP_BYTES,
    MASK,
    PEERS,
    POOL,
    STEPS,
    clips_of,
    forget,
    key,
    order_of,
    pool,
    sync,
    touch,
    touched,
)

from caeav.manifests.clip import Clip, Manifest
from caeav.pipeline.store import Recipe, Record, StoreReader, open_for_writing, verify
from caeav.pipeline.store.backend import backend_field, backend_of

OURS = {"tar": "webdataset", "sharded": "zarr"}
TITLES = {"raw": "raw memory map", "tar": "caeav, WebDataset backend", "sharded": "caeav, Zarr backend"} | {
    name: peer.title for name, peer in PEERS.items()
}
VERIFY = "verify"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: the temp folder)")
    parser.add_argument(
        "--peer-python", default=sys.executable, help="Python that has litdata and mosaicml-streaming"
    )
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        name, step, folder, clips = args.step
        print(json.dumps(ours(name, step, Path(folder), int(clips))))
        return
    clips = max(1, args.megabytes * 1_000_000 // CLIP_BYTES)
    with tempfile.TemporaryDirectory(dir=args.folder) as temp:
        best = measure(Path(temp), clips, args.rounds, args.peer_python)
    show(best, clips, args.rounds)


def show(best: dict[tuple[str, str], float], clips: int, rounds: int) -> None:
    """Print the table, in Markdown: MB/s, clips/s and the share of the raw memory map."""
    print(
        f"{clips} clips of {CLIP_BYTES / 1e6:.2f} MB, float16; best of {rounds} rounds; cold reads; MB/s (clips/s)\n"
    )
    print("| | write | in order | of raw | at random | of raw |\n|---|---|---|---|---|---|")
    for name in dict.fromkeys(system for system, _ in best):
        cells = []
        for step in STEPS:
            seconds = best.get((name, step))
            cells.append(
                f"{clips * CLIP_BYTES / seconds / 1e6:.0f} ({clips / seconds:.0f})" if seconds else "none"
            )
            if step != "write":
                cells.append(f"{best['raw', step] / seconds:.0%}" if seconds else "")
        print(f"| {TITLES[name]} | {' | '.join(cells)} |")
    for name in OURS:
        print(f"\n`verify`, {TITLES[name]}, cold: {clips * CLIP_BYTES / best[name, VERIFY] / 1e6:.0f} MB/s")


def measure(folder: Path, clips: int, rounds: int, peer_python: str) -> dict[tuple[str, str], float]:
    """Seconds of the best round by system and step."""
    mine = ("raw", *OURS)
    commands = {name: [sys.executable, __file__, "--step", name] for name in mine}
    for name in PEERS:
        python = sys.executable if name in ("webdataset", "zarr") else peer_python
        commands[name] = [python, str(Path(__file__).with_name("store_peers.py")), name]
    steps = {name: [*STEPS, VERIFY] if name in OURS else list(STEPS) for name in commands}
    steps["webdataset"].remove("random")
    held = pool()
    expected = sum(touched(list(held[i % POOL].values())) for i in range(clips)) & MASK
    best: dict[tuple[str, str], float] = {}
    for round_ in range(rounds):
        for name in list(commands):
            for step in steps[name]:
                done = subprocess.run(
                    [*commands[name], step, str(folder / name), str(clips)], capture_output=True, text=True
                )
                if done.returncode:
                    reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
                    print(f"{TITLES[name]} is left out: {step}: {reason}", file=sys.stderr)
                    del commands[name]
                    break
                told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
                if step in ("sequential", "random") and told["sum"] != expected:
                    raise SystemExit(f"{TITLES[name]} read other bytes than were written")
                best[name, step] = min(told["seconds"], best.get((name, step), float("inf")))
                print(
                    f"round {round_ + 1} {name} {step} {told['seconds']:.2f} s", file=sys.stderr, flush=True
                )
    return best


def ours(name: str, step: str, folder: Path, clips: int) -> dict[str, Any]:
    """One step of the raw file or of a store, timed; a write includes getting everything to the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    if step == "write":
        shutil.rmtree(folder)
        folder.mkdir()
        work: Callable[[], int] = lambda: write(name, folder, clips)  # noqa: E731
    elif step == VERIFY:
        work = lambda: check(folder / recipe(name).folder_name)  # noqa: E731
    else:
        order = order_of(step, clips)
        work = lambda: read(name, folder, order)  # noqa: E731
    if step != "write":
        forget(folder)
    pool()
    if name in OURS:
        backend_of(recipe(name))
    begun, used = time.perf_counter(), time.process_time()
    total = work()
    if step == "write":
        sync(folder)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "processor": time.process_time() - used, "sum": total & MASK}


def recipe(name: str) -> Recipe:
    return Recipe("tokens", "bench", backend_field(OURS[name]))


def write(name: str, folder: Path, clips: int) -> int:
    held = dict(clips_of(clips))
    if name == "raw":
        with (folder / "raw.bin").open("wb") as out:
            for arrays in held.values():
                for array in arrays.values():
                    out.write(array.data)
        return 0
    rows = tuple(Clip(key(i), f"{key(i)}.mp4", 0.0, 10.0) for i in range(clips))
    with open_for_writing(folder, recipe(name), Manifest("bench", 10, 1.0, (), rows)) as writer:
        for plan in writer.plan():
            writer.publish(plan, {k: Record(k, held[k], {"notes": []}) for k in plan.missing})
        writer.finish()
    return 0


def read(name: str, folder: Path, order: Sequence[int]) -> int:
    if name == "raw":
        mapped = np.memmap(folder / "raw.bin", np.uint8, "r").reshape(-1, CLIP_BYTES)
        return sum(touch(mapped[number]) for number in order)
    reader = StoreReader.open(folder / recipe(name).folder_name)
    keys = [key(number) for number in order]
    return sum(touched(list(record.arrays.values())) for record in reader.read_each(keys))


def check(path: Path) -> int:
    if not verify(path).sound:
        raise SystemExit(f"{path} is not sound")
    return 0


if __name__ == "__main__":
    main()
