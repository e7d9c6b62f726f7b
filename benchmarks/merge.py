"""What `store merge` costs: seconds and written bytes for many shards, linked, linked and read, or copied.

    python benchmarks/merge.py [--clips 1000 100000] [--clip-bytes 20000 2600000] [--slices 8] [--folder DIR]

Makes finished slices of so many clips. Manifest, indexes, digests and seals are whole and valid; shards are sparse
files, so that 260 GB need a few hundred MB of disk. Their digests are those of all their bytes. Where a store has more
than `--read-gb` only the merge that reads nothing is measured: the time of the others grows with the bytes. Written
bytes are those that the process gave to the system (`wchar` in /proc/self/io).
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
from scale import SHARD_CLIPS, TAPS, write_rows

from caeav.manifests.core import atomic
from caeav.manifests.core.util import size_text
from caeav.manifests.key_index import Keys
from caeav.pipeline.store import Recipe, Slice, merge
from caeav.pipeline.store.formats.webdataset import ENTRY, TarIndex, tar_name
from caeav.pipeline.store.layout import Seal, StoreFolder, render_recipe
from caeav.pipeline.store.payload import crc32c, encode_arrays, encode_info

RECIPE = Recipe("tokens", "scale", {"shard_clips": SHARD_CLIPS})
WAYS = ("linked (--no-check)", "linked, digests compared", "copied (no hard links)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--clip-bytes", type=int, nargs="+", default=[20_000, 2_600_000])
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--read-gb", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: the temp folder)")
    args = parser.parse_args()
    print("| clips | shards | size | " + " | ".join(WAYS) + " |")
    print("|---|---|---|" + "---|" * len(WAYS))
    for clips in args.clips:
        for clip_bytes in args.clip_bytes:
            with tempfile.TemporaryDirectory(dir=args.folder) as temp:
                slices, size = make(Path(temp), clips, clip_bytes, args.slices)
                cells = [
                    measure(slices, way) if way == WAYS[0] or size <= args.read_gb * 1e9 else "-"
                    for way in WAYS
                ]
            shards = -(-clips // SHARD_CLIPS)
            print(f"| {clips:,} | {shards:,} | {size_text(size)} | {' | '.join(cells)} |", flush=True)


def measure(slices: list[Path], way: str) -> str:
    """Merge in this way -> seconds and written bytes; the merged store is removed again."""
    real = atomic.link_file
    if way == WAYS[2]:
        atomic.link_file = refuse
    os.sync()
    written, begun = given_to_system(), time.perf_counter()
    try:
        made = merge(slices, check=way != WAYS[0])
    finally:
        atomic.link_file = real
    seconds, written = time.perf_counter() - begun, given_to_system() - written
    files = made.adopted.linked or sum(made.adopted.copied.values())
    if files != made.summary.shards:
        raise SystemExit(f"{files} of {made.summary.shards} shards came")
    shutil.rmtree(made.path)
    return f"{seconds:.1f} s, {size_text(written)}"


def refuse(old: Path, new: Path) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(old), None, str(new))


def given_to_system() -> int:
    """Bytes that this process has written so far, to any file."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar"))
    return int(line.split()[1])


def make(home: Path, clips: int, clip_bytes: int, count: int) -> tuple[list[Path], int]:
    """Finished slices of one store -> their folders, and the bytes of all shards; written without the writer."""
    paths = [home / "d" / (RECIPE.folder_name + Slice(n, count).suffix) for n in range(1, count + 1)]
    folders = [StoreFolder(path) for path in paths]
    for folder in folders:
        for place in ("shards", "index", "spare"):
            (folder.path / place).mkdir(parents=True)
        folder.recipe.write_bytes(render_recipe(RECIPE))
        folder.quarantine.write_bytes(b"")
    keys = write_rows(folders[0].manifest, clips)
    for folder in folders[1:]:
        shutil.copy(folders[0].manifest, folder.manifest)
    sizes = [
        write_slice(folder, Slice(n, count), keys, clip_bytes) for n, folder in enumerate(folders, start=1)
    ]
    return paths, sum(sizes)


def write_slice(folder: StoreFolder, part: Slice, keys: Keys, clip_bytes: int) -> int:
    """The shards, indexes and seal of one slice -> bytes of its shards."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in TAPS.items()}
    payload, facts = b"".join(map(bytes, encode_arrays(arrays))), encode_info({"notes": []})
    sealed, stored, size = {}, 0, 0
    for number, first in enumerate(range(0, len(keys), SHARD_CLIPS)):
        if not part.holds(number):
            continue
        held = keys[first : first + SHARD_CLIPS]
        end, tail = clip_bytes * len(held), payload + facts + number.to_bytes(8, "little")
        with (folder.path / tar_name(number)).open("wb") as out:
            out.seek(end)
            out.write(tail)
        sha256 = zeros(end).copy()
        sha256.update(tail)
        entries = np.zeros(len(held), ENTRY)
        entries["array_offset"], entries["array_bytes"] = end, len(payload)
        entries["info_offset"], entries["info_bytes"] = end + len(payload), len(facts)
        entries["array_crc32c"], entries["info_crc32c"] = crc32c([payload]), crc32c([facts])
        index = TarIndex(number, RECIPE.fingerprint, end + len(tail), sha256.hexdigest(), held, entries)
        for path in (folder.index(number), folder.spare(number)):
            path.write_bytes(index.encode())
        sealed[folder.index_name(number)] = hashlib.sha256(index.encode()).hexdigest()
        stored, size = stored + len(held), size + end + len(tail)
    shards = len(sealed)
    for path in (folder.manifest, folder.quarantine):
        sealed[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    folder.seal.write_bytes(Seal(RECIPE.fingerprint, stored, stored, 0, shards, size, sealed).render())
    return size


@cache
def zeros(size: int) -> hashlib._Hash:
    """The sha256 of so many zeros, to be copied and continued."""
    sha256 = hashlib.sha256()
    for begin in range(0, size, 1 << 20):
        sha256.update(bytes(min(1 << 20, size - begin)))
    return sha256


if __name__ == "__main__":
    main()
