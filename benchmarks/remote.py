"""Reading a store from a bucket beside reading it from the disk, with the delays of a network put in.

    python benchmarks/remote.py [--megabytes 400] [--shard-clips 16] [--latency 0 20 100] [--rate 100] [--cache 0.1]
                                [--step-ms 0 20] [--rounds 2] [--peer-python PYTHON] [--folder DIR]

A server that speaks S3 (tests/s3_server.py, a process of its own on the loopback address) holds the store; it answers
each request after `--latency` ms and sends each body at `--rate` MB/s per connection. An epoch is read in batches under
the windowed order that fits the cache (`--cache`: its share of the store), by the same code that training uses, and so
is the same store on the disk, under the same order; both give the same batches, which is checked by a sum over all
bytes. `--step-ms` is how long a batch is computed on meanwhile (slept): where that covers the fetching, a bucket costs
nothing. Every epoch begins with an empty cache; the best round of each counts.

With `--peer-python` (a Python with s3fs and obstore) the two libraries fetch the same objects whole, as they are used:
obstore as caeav does, in parts of 8 MB, s3fs by `get_file`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

SHAPES = {"visual.stage4": (10, 36, 384), "audio.stage4": (10, 64, 192)}
BATCH = 16
CLASSES = ("bell",)

SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from s3_server import S3
with S3() as server:
    server.latency_s, server.bytes_per_s = float(sys.argv[2]) / 1000, float(sys.argv[3]) * 1e6
    from pathlib import Path
    root = Path(sys.argv[4])
    for path in root.rglob("*"):
        if path.is_file():
            server.put(path.relative_to(root).as_posix(), path.read_bytes())
    print(server.endpoint, flush=True)
    time.sleep(1e6)
"""

PEER = """
import os, time
import fsspec
fs = fsspec.filesystem("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
names = sorted(fs.find("bucket"))
names = ["bucket/" + name.split("bucket/", 1)[1] for name in names if name.endswith(".tar")]
begun, used = time.perf_counter(), time.process_time()
size = 0
for name in names:
    fs.get_file(name, "/dev/shm/caeav-peer" if os.path.isdir("/dev/shm") else "/tmp/caeav-peer")
    size += fs.info(name)["size"]
print(size / (time.perf_counter() - begun) / 1e6, time.process_time() - used)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--shard-clips", type=int, default=16)
    parser.add_argument("--latency", type=float, nargs="+", default=[0.0, 20.0, 100.0])
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--cache", type=float, default=0.1)
    parser.add_argument("--step-ms", type=float, nargs="+", default=[0.0, 100.0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temp:
        home = make(Path(temp), args.megabytes, args.shard_clips)
        print(
            "| read from | latency ms | MB/s of a connection | computing per batch ms | MB/s | of the disk's |"
        )
        print("|---|---|---|---|---|---|")
        for step in args.step_ms:
            base = max(epoch(home, None, args.cache, step)[0] for _ in range(args.rounds))
            print(f"| the disk | - | - | {step:g} | {base:.0f} | 100 % |", flush=True)
            for latency in args.latency:
                with server(home, latency, args.rate):
                    found = max(epoch(home, "s3://bucket", args.cache, step)[0] for _ in range(args.rounds))
                share = found / base
                print(
                    f"| a bucket | {latency:g} | {args.rate:g} | {step:g} | {found:.0f} | {share:.0%} |",
                    flush=True,
                )
        if args.peer_python:
            compare(home, args)


def make(folder: Path, megabytes: int, shard_clips: int) -> Path:
    """A home with a token store of random values -> its folder."""
    from caeav.manifests.clip import Clip, Event, Manifest
    from caeav.pipeline.store import Recipe, Record, open_for_writing

    each = 2 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    count = max(shard_clips, megabytes * 10**6 // each)
    clips = tuple(
        Clip(f"clip{i:06d}", f"{i}.mp4", 0.0, 10.0, "train", (Event("bell", 0.0, 5.0),)) for i in range(count)
    )
    manifest = Manifest("bench", 10, 1.0, CLASSES, clips)
    rng = np.random.default_rng(0)
    pool = {name: rng.standard_normal((8, *shape)).astype(np.float16) for name, shape in SHAPES.items()}
    ok = {"frames_ok": [True] * 10, "audio_ok": [True] * 10, "notes": [], "facts": {}}
    recipe = Recipe("tokens", "bench", {"shard_clips": shard_clips})
    with open_for_writing(folder / "home/stores/bench", recipe, manifest) as writer:
        for plan in writer.plan():
            records = {}
            for key in plan.missing:
                arrays: dict[str, Any] = {
                    name: np.roll(x[hash(key) % 8], int(key[4:]), 1) for name, x in pool.items()
                }
                records[key] = Record(key, arrays, ok)
            writer.publish(plan, records)
        writer.finish()
    return folder / "home"


@contextmanager
def server(home: Path, latency_ms: float, rate: float) -> Iterator[None]:
    """The stores of `home` in a bucket, in another process; the environment names it."""
    tests = str(Path(__file__).resolve().parents[1] / "tests")
    command = [sys.executable, "-c", SERVER, tests, str(latency_ms), str(rate), str(home / "stores")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    os.environ.update(dict.fromkeys(names, "x"), AWS_ENDPOINT_URL=child.stdout.readline().strip())
    try:
        yield
    finally:
        child.kill()
        child.wait()


def epoch(home: Path, url: str | None, cache: float, step_ms: float) -> tuple[float, int]:
    """MB/s of one epoch, and a sum over all bytes; from the bucket with an empty cache."""
    from caeav.manifests.core.home import Home
    from caeav.model.train.data import SplitData, batches, epoch_order
    from caeav.model.train.join import join_stores
    from caeav.model.train.windows import fitting_window
    from caeav.pipeline.store import list_stores

    (info,) = list_stores(home / "stores")
    limit = int(info.bytes * cache)
    os.environ["CAEAV_CACHE_BYTES"] = str(limit)
    away = Home(home.parent / "away")
    shutil.rmtree(away.root, ignore_errors=True)
    if url is None:
        joined = join_stores(Home(home), "bench", captions=False)
    else:
        joined = join_stores(away, "bench", [f"{url}/bench/{info.path.name}"], captions=False)
    window = fitting_window(joined.stores, limit) or window_of_disk(info.path, limit)
    data = SplitData(joined, joined.splits["train"], {})
    order = epoch_order(len(data), 0, 1, data.clip_of, 1, data.shards, window)
    begun, total, size = time.perf_counter(), 0, 0
    for batch in batches(data, order, BATCH, 2):
        for x in (*batch.visual.values(), *batch.audio.values()):
            values = x.numpy().reshape(-1).view(np.uint8)
            size += values.size
            total = (total + int(values.view(np.uint64).sum(dtype=np.uint64))) % 2**64
        time.sleep(step_ms / 1000)
    seconds = time.perf_counter() - begun
    if SUMS.setdefault(len(data), total) != total:
        raise SystemExit("the bytes differ")
    return size / seconds / 1e6, total


SUMS: dict[int, int] = {}


def window_of_disk(store: Path, limit: int) -> int:
    """The window that a reader from a bucket would take, for the same order from the disk."""
    from caeav.pipeline.store import StoreReader

    return max(1, limit // (2 * max(StoreReader.open(store).shard_sizes())))


def compare(home: Path, args: argparse.Namespace) -> None:
    """Whole objects one after the other, by both libraries."""
    from caeav.pipeline.store.remote.bucket import Bucket

    print("\n| library | latency ms | MB/s | processor s per GB |")
    print("|---|---|---|---|")
    for latency in args.latency:
        with server(home, latency, args.rate):
            bucket = Bucket("s3://bucket")
            names = {name: facts for name, facts in bucket.list().items() if name.endswith(".tar")}
            begun, used = time.perf_counter(), time.process_time()
            size = 0
            for name, facts in names.items():
                bucket.download(name, facts, lambda _, data: None)
                size += facts.size
            seconds, used = time.perf_counter() - begun, time.process_time() - used
            print(
                f"| obstore | {latency:g} | {size / seconds / 1e6:.0f} | {used / size * 1e9:.1f} |",
                flush=True,
            )
            done = subprocess.run([args.peer_python, "-c", PEER], capture_output=True, text=True)
            if done.returncode:
                print(f"| s3fs | {latency:g} | {done.stderr.strip().splitlines()[-1]} | - |")
                continue
            rate, cpu = map(float, done.stdout.split())
            print(f"| s3fs | {latency:g} | {rate:.0f} | {cpu / size * 1e9:.1f} |", flush=True)


if __name__ == "__main__":
    main()
