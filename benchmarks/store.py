"""How fast each backend writes and reads, checksums on, beside a raw memory-mapped file and plain WebDataset.

    python benchmarks/store.py [--megabytes 400] [--rounds 3] [--folder DIR]

Prints MB/s and clips/s of the best round. Every reader touches every byte (a 64-bit sum); "first" reads drop
the files from the page cache before, "again" reads have them in memory. The raw file has no keys, no
checksums and no facts: it is the ceiling, not an alternative.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import Clip, Manifest
from caeav.pipeline.store import Recipe, Record, StoreReader, open_for_writing, verify
from caeav.pipeline.store.backend import backend_field

SHAPES = {"visual.stage3": (10, 144, 384), "visual.stage4": (10, 36, 768), "audio.stage4": (10, 64, 768)}
BACKENDS = {"tar": "webdataset", "zarr": "zarr"}
CLIP_BYTES = sum(int(np.prod(shape)) for shape in SHAPES.values()) * 2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: the temp folder)")
    args = parser.parse_args()
    clips = max(1, args.megabytes * 1_000_000 // CLIP_BYTES)
    with tempfile.TemporaryDirectory(dir=args.folder) as temp:
        rows = measure(Path(temp), clips, args.rounds)
    print(f"{clips} clips of {CLIP_BYTES / 1e6:.2f} MB, float16; best of {args.rounds} rounds")
    print(f"{'what':<44}{'MB/s':>8}{'clips/s':>9}{'of raw':>8}")
    raw = dict(rows)
    for name, seconds in rows:
        what = name.partition(" ")[2].removesuffix(" (read_each)")
        ceiling = raw.get(f"raw {what}")
        share = f"{ceiling / seconds:7.0%}" if ceiling else ""
        print(f"{name:<44}{clips * CLIP_BYTES / seconds / 1e6:8.0f}{clips / seconds:9.0f}{share:>8}")


def measure(folder: Path, clips: int, rounds: int) -> list[tuple[str, float]]:
    """Seconds of the best round by what was measured."""
    rng = np.random.default_rng(0)
    pool = [{n: rng.standard_normal(s).astype(np.float16) for n, s in SHAPES.items()} for _ in range(8)]
    keys = [f"clip{i:06d}" for i in range(clips)]
    arrays = {key: pool[i % len(pool)] for i, key in enumerate(keys)}
    manifest = Manifest("bench", 10, 1.0, (), tuple(Clip(key, f"{key}.mp4", 0.0, 10.0) for key in keys))
    recipes = {name: Recipe("tokens", "bench", backend_field(backend)) for name, backend in BACKENDS.items()}
    raw = folder / "raw.bin"
    best: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object], cold: Iterable[Path] = ()) -> None:
        for path in cold:
            forget(path)
        begun = time.perf_counter()
        work()
        best[name] = min(time.perf_counter() - begun, best.get(name, float("inf")))

    shuffled = [keys[i] for i in rng.permutation(clips)]
    for _ in range(rounds):
        raw.unlink(missing_ok=True)
        timed("raw write", lambda: write_raw(raw, arrays, keys))
        for order, wanted in (("sequential", keys), ("random", shuffled)):
            mapped = np.memmap(raw, np.uint8, "r").reshape(clips, CLIP_BYTES)
            timed(f"raw {order}, first", lambda m=mapped, w=wanted: read_raw(m, w), [raw])
            timed(f"raw {order}, again", lambda m=mapped, w=wanted: read_raw(m, w))
            del mapped
        for name, recipe in recipes.items():
            store = folder / recipe.folder_name
            shutil.rmtree(store, ignore_errors=True)
            timed(f"{name} write", lambda r=recipe: write_store(folder, r, manifest, arrays))
            files = [path for path in sorted(store.glob("shards*/**/*")) if path.is_file()]
            for order, wanted in (("sequential", keys), ("random", shuffled)):
                reader = StoreReader.open(store)
                timed(f"{name} {order}, first", lambda r=reader, w=wanted: read_store(r, w), files)
                timed(f"{name} {order}, again", lambda r=reader, w=wanted: read_store(r, w))
                del reader
                fresh = StoreReader.open(store)
                timed(f"{name} {order}, first (read_each)", lambda r=fresh, w=wanted: read_each(r, w), files)
                del fresh
                fresh = StoreReader.open(store)
                timed(f"{name} {order}, cached, checking", lambda r=fresh, w=wanted: read_store(r, w))
                del fresh  # mapped pages stay in the cache, whatever is asked of the kernel
            timed(f"{name} open", lambda s=store: StoreReader.open(s))
            timed(f"{name} verify, cached", lambda s=store: verify(s))
        shards = sorted((folder / recipes["tar"].folder_name).glob("shards/*.tar"))
        timed("webdataset sequential, first", lambda s=shards: read_webdataset(s), shards)
        timed("webdataset sequential, again", lambda s=shards: read_webdataset(s))
    return list(best.items())


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def touch(array: NDArray[np.generic]) -> int:
    """Read every byte."""
    return int(array.reshape(-1).view(np.uint64).sum(dtype=np.uint64))


def write_raw(path: Path, arrays: dict[str, dict[str, NDArray[np.float16]]], keys: list[str]) -> None:
    with path.open("wb") as out:
        for key in keys:
            for array in arrays[key].values():
                out.write(array.data)
        out.flush()
        os.fsync(out.fileno())


def read_raw(mapped: NDArray[np.uint8], keys: list[str]) -> None:
    for key in keys:
        touch(mapped[int(key[4:])])


def write_store(
    folder: Path, recipe: Recipe, manifest: Manifest, arrays: dict[str, dict[str, NDArray[np.float16]]]
) -> None:
    with open_for_writing(folder, recipe, manifest) as writer:
        for plan in writer.plan():
            writer.publish(plan, {key: Record(key, arrays[key], {"notes": []}) for key in plan.missing})
        writer.finish()


def read_store(reader: StoreReader, keys: list[str]) -> None:
    for key in keys:
        for array in reader.read(key).arrays.values():
            touch(array)


def read_each(reader: StoreReader, keys: list[str]) -> None:
    for record in reader.read_each(keys):
        for array in record.arrays.values():
            touch(array)


def read_webdataset(shards: list[Path]) -> None:
    import webdataset
    from safetensors.numpy import load

    for sample in webdataset.WebDataset([str(p) for p in shards], shardshuffle=False):
        for array in load(sample["safetensors"]).values():
            touch(array)


if __name__ == "__main__":
    main()
