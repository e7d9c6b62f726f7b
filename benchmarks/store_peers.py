"""The tokens that `store.py` writes and reads, and the other formats it is compared with; runs in any environment.

    python benchmarks/store_peers.py NAME STEP FOLDER CLIPS

NAME is a peer below, STEP `write`, `sequential` or `random`. Prints JSON: the seconds it took, opening included and
imports not, and the sum over all bytes read. Needs numpy and the peer's own library, nothing of this project.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SHAPES = {"visual.stage3": (10, 144, 384), "visual.stage4": (10, 36, 768), "audio.stage4": (10, 64, 768)}
CLIP_BYTES = sum(int(np.prod(shape)) for shape in SHAPES.values()) * 2
POOL = 8
STEPS = ("write", "sequential", "random")
MASK = (1 << 64) - 1
KEPT: list[Any] = []

Arrays = dict[str, NDArray[Any]]


@cache
def pool() -> list[Arrays]:
    """The different clips; clip number i holds the tokens of `pool()[i % POOL]`."""
    rng = np.random.default_rng(0)
    return [{n: rng.standard_normal(s).astype(np.float16) for n, s in SHAPES.items()} for _ in range(POOL)]


def key(number: int) -> str:
    return f"clip{number:06d}"


def order_of(step: str, clips: int) -> list[int]:
    """Numbers of the clips in the order in which they are read."""
    return (
        list(range(clips)) if step == "sequential" else np.random.default_rng(1).permutation(clips).tolist()
    )


def touch(array: NDArray[np.generic]) -> int:
    """Read every byte."""
    return int(array.reshape(-1).view(np.uint64).sum(dtype=np.uint64))


def touched(arrays: Sequence[NDArray[Any]]) -> int:
    return sum(touch(array) for array in arrays)


def forget(folder: Path) -> None:
    """Drop a file, or all files below a folder, from the page cache. No process may have them mapped."""
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*")):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def sync(folder: Path) -> None:
    """Have all files below a folder on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def clips_of(clips: int) -> Iterator[tuple[str, Arrays]]:
    held = pool()
    return ((key(i), held[i % POOL]) for i in range(clips))


def write_zarr(folder: Path, clips: int) -> None:
    """A chunk a clip; codecs as they are by default."""
    import zarr

    group = zarr.open_group(folder, mode="w")
    arrays = {
        name: group.create_array(name, shape=(clips, *shape), chunks=(1, *shape), dtype="float16")
        for name, shape in SHAPES.items()
    }
    for number, (_, held) in enumerate(clips_of(clips)):
        for name, array in held.items():
            arrays[name][number] = array


def read_zarr(folder: Path, order: Sequence[int]) -> int:
    import zarr

    group = zarr.open_group(folder, mode="r")
    arrays = [group[name] for name in SHAPES]
    return sum(touched([np.asarray(array[number]) for array in arrays]) for number in order)


def write_webdataset(folder: Path, clips: int) -> None:
    import webdataset
    from safetensors.numpy import save

    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=64, verbose=0) as out:
        for name, held in clips_of(clips):
            out.write({"__key__": name, "safetensors": save(held)})


def read_webdataset(folder: Path, order: Sequence[int]) -> int:
    import webdataset
    from safetensors.numpy import load

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = webdataset.WebDataset(shards, shardshuffle=False)
    return sum(touched(list(load(sample["safetensors"]).values())) for sample in samples)


class OneClip:
    """What LitData's `optimize` calls; a class of this module, since it is sent to another process."""

    def __init__(self) -> None:
        self.held = pool()

    def __call__(self, number: int) -> dict[str, Any]:
        return {"key": key(number), **self.held[number % POOL]}


def write_litdata(folder: Path, clips: int) -> None:
    import litdata

    shutil.rmtree(folder)
    litdata.optimize(
        fn=OneClip(),
        inputs=list(range(clips)),
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def read_litdata(folder: Path, order: Sequence[int]) -> int:
    import litdata

    data = litdata.StreamingDataset(str(folder), shuffle=False)
    total = 0
    for number in order:
        sample = data[number]
        total += touched([np.asarray(sample[name]) for name in SHAPES])
    return total


def import_streaming() -> Any:
    """MosaicML Streaming imports torchvision, whose usual builds do not load beside a CPU build of torch."""
    try:
        import streaming
    except RuntimeError:
        import torch

        torchvision = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            torchvision.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT.append(torchvision)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("torchvision", "streaming")]:
            del sys.modules[name]
        import streaming
    return streaming


def write_mds(folder: Path, clips: int) -> None:
    shutil.rmtree(folder)
    columns = {"key": "str"} | {n: f"ndarray:float16:{','.join(map(str, s))}" for n, s in SHAPES.items()}
    with import_streaming().MDSWriter(out=str(folder), columns=columns, hashes=["xxh64"]) as out:
        for name, held in clips_of(clips):
            out.write({"key": name, **held})


def read_mds(folder: Path, order: Sequence[int]) -> int:
    data = import_streaming().LocalDataset(local=str(folder))
    total = 0
    for number in order:
        sample = data[number]
        total += touched([sample[name] for name in SHAPES])
    return total


class Peer(NamedTuple):
    """`load` imports its library; `random`: whether it can read a clip by number at all."""

    title: str
    load: Callable[[], object]
    write: Callable[[Path, int], None]
    read: Callable[[Path, Sequence[int]], int]
    random: bool = True


PEERS = {
    "webdataset": Peer(
        "WebDataset", lambda: import_module("webdataset"), write_webdataset, read_webdataset, random=False
    ),
    "zarr": Peer(
        "Zarr, a chunk a clip, default codecs", lambda: import_module("zarr"), write_zarr, read_zarr
    ),
    "litdata": Peer("LitData", lambda: import_module("litdata"), write_litdata, read_litdata),
    "mds": Peer("MosaicML Streaming", import_streaming, write_mds, read_mds),
}


def run(peer: Peer, step: str, folder: Path, clips: int) -> dict[str, Any]:
    """One step, timed; a write includes getting everything to the disk."""
    peer.load()
    if step == "write":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        pool()
        begun, used = time.perf_counter(), time.process_time()
        peer.write(folder, clips)
        sync(folder)
        total = 0
    else:
        order = order_of(step, clips)
        forget(folder)
        begun, used = time.perf_counter(), time.process_time()
        total = peer.read(folder, order)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "processor": time.process_time() - used, "sum": total & MASK}


if __name__ == "__main__":
    name, step, folder, clips = sys.argv[1:]
    print(json.dumps(run(PEERS[name], step, Path(folder), int(clips))))
