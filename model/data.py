"""The clips of one split as batches of tensors: from RAM when the split fits, else memory-mapped from the store.

The order of an epoch is a function of seed and epoch alone, and a batch of its rows alone, so that a resumed
run sees exactly what an uninterrupted one would. Tokens keep the store's dtype until they reach the device.
Shapes: `N` clips of the split, `B` of a batch, `T` segments, `L` tokens, `C` channels, `W` caption tokens.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caeav.manifests.clip import Clip
from caeav.model.batch import InputSpec, TokenBatch
from caeav.model.join import Joined
from caeav.pipeline.store import Record, StoreReader

CAPTION_ARRAYS = ("visual_caption", "visual_caption_mask", "audio_caption", "audio_caption_mask")
MIB = 1 << 20


class SplitData:
    """`N` clips with their targets (`name -> [N, ...]`), readable by row.

    With `preload` all arrays are stacked in RAM once; otherwise every batch is read from the store's memory map.
    """

    def __init__(
        self, joined: Joined, clips: Sequence[Clip], targets: Mapping[str, Tensor], *, preload: bool = False
    ) -> None:
        self.keys = [clip.key for clip in clips]
        self._joined = joined
        self._targets = dict(targets)
        self._reading = threading.Lock()
        self._stacked: dict[str, Tensor] | None = None
        if preload and self.keys:
            self._stacked = self._read(range(len(self.keys)))

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, rows: Sequence[int]) -> TokenBatch:
        """The clips at `rows` in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        if self._stacked is None:
            arrays = self._read(rows)
        else:
            arrays = {name: x.index_select(0, index) for name, x in self._stacked.items()}
        targets = {name: x.index_select(0, index) for name, x in self._targets.items()}
        return _as_batch([self.keys[row] for row in rows], arrays, targets, self._joined.spec)

    def _read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Arrays of the clips at `rows`, each stacked to `[B, ...]`."""
        out: dict[str, Tensor] = {}
        for at, row in enumerate(rows):
            for name, array in self._arrays(self.keys[row]).items():
                if name not in out:
                    out[name] = torch.empty((len(rows), *array.shape), dtype=_torch_dtype(array.dtype))
                out[name].numpy()[at] = array
        return out

    def _arrays(self, key: str) -> dict[str, NDArray[np.generic]]:
        """Everything the stores hold of one clip, with the segments' truth from the record's info."""
        arrays: dict[str, NDArray[np.generic]] = {}
        segments = self._joined.spec.segments
        ok = {"frames_ok": np.ones(segments, bool), "audio_ok": np.ones(segments, bool)}
        for store in self._joined.tokens:
            record = self._record(store, key)
            arrays |= record.arrays
            for name, flags in ok.items():
                flags &= np.asarray(record.info.get(name, True), bool)
        if self._joined.captions is not None:
            held = self._record(self._joined.captions, key).arrays
            arrays |= {name: held[name] for name in CAPTION_ARRAYS if name in held}
        return arrays | ok

    def _record(self, store: StoreReader, key: str) -> Record:
        """A reader keeps its maps for one thread at a time; the views it gives are free to use."""
        with self._reading:
            return store.read(key)


def clip_bytes(joined: Joined) -> int:
    """Bytes of one clip's arrays over all joined stores."""
    return sum(
        int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        for store in joined.stores
        for spec in store.array_specs().values()
    )


def fits(joined: Joined, clips: int, budget_mb: int) -> bool:
    """Whether `clips` clips fit in `budget_mb` MiB of RAM."""
    return clips * clip_bytes(joined) <= budget_mb * MIB


def epoch_order(clips: int, seed: int, epoch: int) -> list[int]:
    """Rows `0..clips-1` in the order of training epoch `epoch`."""
    order: list[int] = np.random.default_rng([seed, epoch]).permutation(clips).tolist()
    return order


def batches(data: SplitData, rows: Sequence[int], size: int, workers: int = 0) -> Iterator[TokenBatch]:
    """Batches of `size` clips (the last may be smaller); `workers` threads read ahead, the order never changes."""
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    if workers == 0:
        yield from map(data.batch, groups)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        waiting: deque[Future[TokenBatch]] = deque()
        todo = iter(groups)
        with closing(_Cancel(waiting)):
            for group in todo:
                waiting.append(pool.submit(data.batch, group))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


class _Cancel:
    """Drops reads not yet begun when the consumer stops early."""

    def __init__(self, waiting: deque[Future[TokenBatch]]) -> None:
        self._waiting = waiting

    def close(self) -> None:
        for future in self._waiting:
            future.cancel()


def _as_batch(
    keys: list[str], arrays: Mapping[str, Tensor], targets: dict[str, Tensor], spec: InputSpec
) -> TokenBatch:
    return TokenBatch(
        keys=keys,
        visual={tap.name: arrays[tap.name] for tap in spec.visual},  # [B, T, L, C]
        audio={tap.name: arrays[tap.name] for tap in spec.audio},  # [B, T, M, D]
        frames_ok=arrays["frames_ok"],
        audio_ok=arrays["audio_ok"],
        targets=targets,
        visual_caption=arrays.get("visual_caption"),
        visual_caption_mask=arrays.get("visual_caption_mask"),
        audio_caption=arrays.get("audio_caption"),
        audio_caption_mask=arrays.get("audio_caption_mask"),
    )


def _torch_dtype(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
