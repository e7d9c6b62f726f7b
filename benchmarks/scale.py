"""What many clips cost before the first step, in time and memory: opening, ordering, sampling, joining, extracting.

    python benchmarks/scale.py [--clips 1000 100000 1000000] [--folder DIR]

Makes stores of so many clips: manifest, indexes, seal and quarantine are whole and valid, shards are sparse files
whose clips share one small payload, so that a million clips need some 600 MB of disk, not 3 TB. Each figure comes
from a process of its own: processor time (on an idle machine with the files in the page cache also the time one waits),
and by how much its resident memory grew at most, what is mapped from files (which the system takes back when it needs
memory) not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from caeav.manifests.core.home import Home
from caeav.manifests.key_index import Keys
from caeav.manifests.manifest import read_manifest
from caeav.model.train.data import epoch_order
from caeav.model.train.join import join_stores
from caeav.pipeline.extract.collect import Filling
from caeav.pipeline.store import Recipe, StoreReader, list_stores, open_for_writing
from caeav.pipeline.store.formats.webdataset import ENTRY, TarIndex, tar_name
from caeav.pipeline.store.layout import Seal, StoreFolder, render_recipe
from caeav.pipeline.store.payload import crc32c, encode_arrays, encode_info

SHARD_CLIPS = 64
CLIP_BYTES = 2_600_000
BATCH = 32
DATASET = "scale"
TAPS = {"visual.stage4": (10, 4, 8), "audio.stage4": (10, 2, 8)}
CAPTIONS = {"visual_caption": (6, 8), "audio_caption": (6, 8)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: the temp folder)")
    parser.add_argument("--step", nargs=3, metavar=("NAME", "HOME", "CLIPS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(measure(STEPS[args.step[0]], Home(Path(args.step[1])), int(args.step[2]))))
        return
    rows: dict[str, list[str]] = {name: [] for name in STEPS}
    for clips in args.clips:
        with tempfile.TemporaryDirectory(dir=args.folder) as temp:
            home = Home(Path(temp))
            make(home, "tokens", TAPS, clips)
            make(home, "captions", CAPTIONS, clips)
            for name in STEPS:
                rows[name].append(in_a_process(name, home, clips))
                print(f"{clips:>9,} {name:<58} {rows[name][-1]}", file=sys.stderr, flush=True)
    print("| | " + " | ".join(f"{clips:,} clips" for clips in args.clips) + " |")
    print("|---|" + "---|" * len(args.clips))
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def in_a_process(name: str, home: Home, clips: int) -> str:
    """Run one step by itself -> `seconds, MB`."""
    command = [sys.executable, __file__, "--step", name, str(home.root), str(clips)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    seconds = told["seconds"]
    shown = f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
    return f"{shown}, {told['grown_mb']:.0f} MB"


def measure(step: Callable[[Home, int], Callable[[], object]], home: Home, clips: int) -> dict[str, float]:
    """Processor seconds of what `step` gives, and the growth of memory from before `step` to the most while it ran."""
    before, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    work = step(home, clips)
    begun = time.process_time()
    kept = work()
    seconds = time.process_time() - begun
    done.set()
    watcher.join()
    grown = max(peak[0], resident()) - before
    del kept
    return {"seconds": seconds, "grown_mb": grown / 1e6}


def resident() -> int:
    """Bytes of memory of this process that is no file's."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


def tokens(home: Home) -> Path:
    return next((home.stores / DATASET).glob("tokens-*"))


def opening(home: Home, clips: int) -> Callable[[], object]:
    return lambda: StoreReader.open(tokens(home))


def first_lookup(home: Home, clips: int) -> Callable[[], object]:
    reader = StoreReader.open(tokens(home))
    return lambda: (reader, reader.read(reader.keys[clips // 2]))


def order(home: Home, clips: int) -> Callable[[], object]:
    return lambda: epoch_order(clips, 0, 1)


def sampling(home: Home, clips: int) -> Callable[[], object]:
    """One batch of clips drawn at random, checked, on a reader that has been used before."""
    reader = StoreReader.open(tokens(home))
    reader.read(reader.keys[0])
    rows = epoch_order(clips, 0, 1)[:BATCH]
    return lambda: (reader, [reader.read(reader.keys[int(row)]) for row in rows])


def joining(home: Home, clips: int) -> Callable[[], object]:
    return lambda: join_stores(home, DATASET)


def listing(home: Home, clips: int) -> Callable[[], object]:
    return lambda: list_stores(home.stores)


def resuming(home: Home, clips: int) -> Callable[[], object]:
    """A run that was killed before its last shards: everything is looked through, the plan made."""
    path = tokens(home)
    recipe, folder = Recipe(*recipe_parts("tokens", TAPS)), StoreFolder(path)
    folder.seal.unlink(missing_ok=True)
    for number in folder.published()[-3:]:
        folder.index(number).unlink()
    manifest = read_manifest(folder.manifest)

    def work() -> object:
        with open_for_writing(path.parent, recipe, manifest) as writer:
            plans = writer.plan()
            if not plans:
                raise SystemExit("there is nothing to resume")
            return writer, plans

    return work


def beginning(home: Home, clips: int) -> Callable[[], object]:
    """A run that has all before it, its manifest read: the store begun and every clip given its place."""
    recipe = Recipe("tokens", "begun", {"shard_clips": SHARD_CLIPS})
    manifest = read_manifest(StoreFolder(tokens(home)).manifest)

    def work() -> object:
        with open_for_writing(home.stores / "begun", recipe, manifest) as writer:
            filling = Filling(writer, lambda records, _: list(records))
            if len(filling.shard_of) != clips:
                raise SystemExit("not every clip is due")
            return filling

    return work


STEPS: dict[str, Callable[[Home, int], Callable[[], object]]] = {
    "`StoreReader.open`, everything but the payload checked": opening,
    "the first record by key (builds the key table)": first_lookup,
    "the order of an epoch": order,
    f"{BATCH} records by key at random, checked": sampling,
    "tokens, captions and labels joined": joining,
    "`store ls`, two stores": listing,
    "resuming: opened for writing and planned": resuming,
    "`extract`, everything still to do: store begun, every clip placed": beginning,
}


def recipe_parts(kind: Any, arrays: dict[str, tuple[int, ...]]) -> tuple[Any, str, dict[str, Any]]:
    taps = [{"name": name} for name in arrays]
    return (
        kind,
        "scale",
        {"shard_clips": SHARD_CLIPS} | ({"visual": {"taps": taps[:1]}} if kind == "tokens" else {}),
    )


def make(home: Home, kind: str, arrays: dict[str, tuple[int, ...]], clips: int) -> None:
    """A finished store, without the writer, which would write every byte."""
    recipe = Recipe(*recipe_parts(kind, arrays))
    folder = StoreFolder(home.stores / DATASET / recipe.folder_name)
    for place in ("shards", "index"):
        (folder.path / place).mkdir(parents=True)
    folder.recipe.write_bytes(render_recipe(recipe))
    folder.quarantine.write_bytes(b"")
    keys = write_rows(folder.manifest, clips)
    rng = np.random.default_rng(0)
    payload = b"".join(
        bytes(part)
        for part in encode_arrays({n: rng.standard_normal(s).astype(np.float16) for n, s in arrays.items()})
    )
    facts = encode_info({"frames_ok": [True] * 10, "audio_ok": [True] * 10, "notes": []})
    sums = crc32c([payload]), crc32c([facts])
    sealed = {}
    for number, first in enumerate(range(0, clips, SHARD_CLIPS)):
        held = keys[first : first + SHARD_CLIPS]
        end = CLIP_BYTES * len(held)
        tail = payload + facts + number.to_bytes(8, "little")
        shard = folder.path / tar_name(number)
        with shard.open("wb") as out:
            out.seek(end)
            out.write(tail)
        entries = np.zeros(len(held), ENTRY)
        entries["array_offset"], entries["array_bytes"], entries["array_crc32c"] = end, len(payload), sums[0]
        entries["info_offset"], entries["info_bytes"] = end + len(payload), len(facts)
        entries["info_crc32c"] = sums[1]
        index = TarIndex(
            number, recipe.fingerprint, end + len(tail), hashlib.sha256(tail).hexdigest(), held, entries
        )
        data = index.encode()
        folder.index(number).write_bytes(data)
        sealed[folder.index_name(number)] = hashlib.sha256(data).hexdigest()
    for path in (folder.manifest, folder.quarantine):
        sealed[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    shards = len(sealed) - 2
    size = sum(
        CLIP_BYTES * min(SHARD_CLIPS, clips - n * SHARD_CLIPS) + len(payload) + len(facts) + 8
        for n in range(shards)
    )
    folder.seal.write_bytes(Seal(recipe.fingerprint, clips, clips, 0, shards, size, sealed).render())


def write_rows(path: Path, clips: int) -> Keys:
    """A manifest of rows such as AVE's, two events each -> their keys."""
    header = {
        "format": "caeav-manifest",
        "version": 1,
        "dataset": DATASET,
        "segments": 10,
        "segment_s": 1.0,
        "classes": ["Church bell", "Male speech, man speaking"],
        "media_root": "",
        "clips": clips,
        "splits": {},
        "sources": {},
        "findings": [],
    }
    rng = np.random.default_rng(1)
    names = [f"{value:011x}"[-11:] for value in rng.permutation(1 << 24)[:clips].tolist()]
    splits = ["train", "train", "train", "val", "test"]
    header["splits"] = {
        name: n
        for name in ("train", "val", "test")
        if (n := sum(splits[i % 5] == name for i in range(clips)))
    }
    with path.open("w") as out:
        out.write(json.dumps(header) + "\n")
        for i, name in enumerate(names):
            row = {
                "key": name,
                "media": f"{name}.mp4",
                "start_s": 0.0,
                "seconds": 10.0,
                "split": splits[i % 5],
                "events": [
                    {"label": "Church bell", "start_s": 2.0, "end_s": 5.0},
                    {"label": "Male speech, man speaking", "start_s": 5.0, "end_s": 9.0},
                ],
                "extra": {"id": name},
            }
            out.write(json.dumps(row) + "\n")
    return Keys.of(names)


if __name__ == "__main__":
    main()
