"""The samples of one split as batches of tensors: from RAM when the split fits, else memory-mapped from the store.

The order of an epoch depends on seed and epoch only, a batch on its rows and the epoch only, so a resumed run sees what
an uninterrupted one would. Tokens keep the store's dtype until they are on the device. `SplitData.batch` is the only
place where batches are made; what alters inputs (negatives, augmentation, stress) is a `BatchTransform` given to it.
Shapes: `N` samples of the split, `B` of a batch, `T` segments, `L`/`M` tokens, `C`/`D` channels.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caeav.model.adapters.batch import BatchTransform, Epoch, InputSpec, TokenBatch
from caeav.model.tasks.sample import Sample, Samples
from caeav.model.train.join import Joined
from caeav.model.train.windows import window_order
from caeav.pipeline.store import Record, StoreReader
from caeav.pipeline.store.record import Tap

CAPTION_ARRAYS = ("visual_caption", "visual_caption_mask", "audio_caption", "audio_caption_mask")
MIB = 1 << 20
AHEAD = 64
"""How many clips of a batch are requested from the disk before the first one is used."""


class SplitData:
    """`N` samples with their targets and extra inputs (`name -> [N, ...]`), read by row.

    With `preload` all arrays are stacked in RAM once; else each batch is read from the stores' memory maps.
    """

    def __init__(
        self,
        joined: Joined,
        samples: Sequence[Sample],
        targets: Mapping[str, Tensor],
        *,
        extra: Mapping[str, Tensor] | None = None,
        transforms: Sequence[BatchTransform] = (),
        preload: bool = False,
    ) -> None:
        rows = Samples.of(samples, joined.manifest)
        self.keys = rows.keys
        self.clips, self.clip_of = rows.clips()
        self._joined = joined
        self._names = {tap.name for tap in taps_of(joined.spec)}
        self._targets, self._extra, self._transforms = dict(targets), dict(extra or {}), tuple(transforms)
        self._reading = threading.Lock()
        self._stacked: dict[str, Tensor] | None = None
        if preload and self.keys:
            self.expect([[row] for row in np.unique(np.asarray(self.clip_of), return_index=True)[1]])
            self._stacked = self._read(range(len(self.clips)))

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, rows: Sequence[int], epoch: Epoch | None = None) -> TokenBatch:
        """The samples at `rows`, in that order; a clip shared by several of them is read once."""
        index = torch.as_tensor(rows, dtype=torch.long)
        clips = self.clips_of(rows)
        batch = as_batch([self.keys[row] for row in rows], self.clip_arrays(clips), self._joined.spec)
        if len(clips) < len(rows):
            place = {clip: i for i, clip in enumerate(clips)}
            batch.clip_of = torch.tensor([place[self.clip_of[row]] for row in rows])
        batch.targets = {name: x.index_select(0, index) for name, x in self._targets.items()}
        batch.extra |= {name: x.index_select(0, index) for name, x in self._extra.items()}
        for transform in self._transforms:
            batch = transform(batch, rows, self, epoch)
        return batch

    @cached_property
    def shards(self) -> NDArray[np.int64]:
        """The shard of each sample's clip in the first token store: the blocks of `windows.py`."""
        return self._joined.tokens[0].shards_of(self.clips)[np.asarray(self.clip_of, np.int64)]

    def expect(self, groups: Iterable[Sequence[int]]) -> None:
        """Say that the batches of these rows come next, in this order, so that shards are fetched ahead."""
        remote = [store for store in self._joined.stores if store.url]
        if remote and self._stacked is None:
            keys = [self.clips[clip] for rows in groups for clip in self.clips_of(rows)]
            with self._reading:
                for store in remote:
                    store.expect(keys)

    def infos(self, row: int) -> list[Mapping[str, Any]]:
        """What each joined store says about the clip of the sample at `row` besides its arrays (`Record.info`)."""
        with self._reading:
            return [store.info(self.clips[self.clip_of[row]]) for store in self._joined.stores]

    def labels(self, row: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The targets and the extra inputs of one sample, by name, without the first axis."""
        return {name: x[row] for name, x in self._targets.items()}, {
            name: x[row] for name, x in self._extra.items()
        }

    def clips_of(self, rows: Sequence[int]) -> list[int]:
        """Numbers of the clips of the samples at `rows`, each once, in order of first appearance."""
        return list(dict.fromkeys(self.clip_of[row] for row in rows))

    def clip_arrays(self, clips: Sequence[int]) -> dict[str, Tensor]:
        """All arrays of the clips with these numbers that the run reads: taps, captions, flags, each `[B, ...]`."""
        if self._stacked is None:
            return self._read(clips)
        chosen = torch.as_tensor(clips, dtype=torch.long)
        return {name: x.index_select(0, chosen) for name, x in self._stacked.items()}

    def transformed(self, transform: BatchTransform) -> SplitData:
        """The same samples, sharing what is in RAM, with `transform` applied to every batch before all others."""
        other = copy(self)
        other._transforms = (transform, *self._transforms)
        return other

    def segments(self, tap: str, clips: Tensor, segments: Tensor) -> Tensor:
        """Single segments of a tap: numbers `[B, S]` of clips and of segments -> `[B, S, L, C]`."""
        if self._stacked is not None:
            return self._stacked[tap][clips, segments]
        wanted, places = torch.unique(clips, return_inverse=True)
        held = [torch.from_numpy(np.array(self._arrays(self.clips[i])[tap])) for i in wanted.tolist()]
        return torch.stack(held)[places, segments]

    def _read(self, clips: Sequence[int]) -> dict[str, Tensor]:
        """Arrays of the clips with these numbers, each stacked to `[B, ...]`."""
        out: dict[str, Tensor] = {}
        with self._reading:
            for store in self._joined.stores:
                store.prefetch([self.clips[number] for number in clips[:AHEAD]])
        for at, number in enumerate(clips):
            for name, array in self._arrays(self.clips[number]).items():
                if name not in out:
                    out[name] = torch.empty((len(clips), *array.shape), dtype=_torch_dtype(array.dtype))
                out[name].numpy()[at] = array
        return out

    def _arrays(self, key: str) -> dict[str, NDArray[np.generic]]:
        """All arrays of one clip that the run reads, and which segments hold real media (from the record's info)."""
        arrays: dict[str, NDArray[np.generic]] = {}
        segments = self._joined.spec.segments
        ok = {"frames_ok": np.ones(segments, bool), "audio_ok": np.ones(segments, bool)}
        for store in self._joined.tokens:
            record = self._record(store, key)
            arrays |= {name: x for name, x in record.arrays.items() if name in self._names}
            for name, flags in ok.items():
                flags &= np.asarray(record.info.get(name, True), bool)
        if self._joined.captions is not None:
            held = self._record(self._joined.captions, key).arrays
            arrays |= {name: held[name] for name in CAPTION_ARRAYS if name in held}
        return arrays | ok

    def _record(self, store: StoreReader, key: str) -> Record:
        """One thread at a time uses a reader; the arrays it returns are free to use."""
        with self._reading:
            return store.read(key)


def taps_of(spec: InputSpec) -> tuple[Tap, ...]:
    """All taps of a run, of either modality and of neither."""
    return (*spec.visual, *spec.audio, *spec.other)


def clip_bytes(joined: Joined) -> int:
    """Bytes per clip of the arrays that the run reads, over all joined stores."""
    names = {*(tap.name for tap in taps_of(joined.spec)), *CAPTION_ARRAYS}
    return sum(
        int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        for store in joined.stores
        for name, spec in store.array_specs().items()
        if name in names
    )


def fits(joined: Joined, clips: int, budget_mb: int) -> bool:
    """Whether `clips` clips fit in `budget_mb` MiB of RAM."""
    return clips * clip_bytes(joined) <= budget_mb * MIB


def epoch_order(
    rows: int,
    seed: int,
    epoch: int,
    clip_of: Sequence[int] = (),
    together: int = 1,
    shards: NDArray[np.int64] | None = None,
    window: int = 0,
) -> NDArray[np.int64]:
    """Rows `0..rows-1` in the order of training epoch `epoch`; an interrupted epoch continues at `[position:]`.

    With `together` above 1, up to that many rows of one clip (`clip_of`: each row's clip) follow each other: a clip's
    rows are shuffled and cut into such groups, then all groups are shuffled. With a `window` all this is done within
    windows of so many shards (`shards`: each row's), see `windows.py`.
    """
    rng = np.random.default_rng([seed, epoch])
    order = _whole_order(rng, rows, clip_of, together)
    return order if shards is None or not window else window_order(order, shards, window, rng)


def _whole_order(
    rng: np.random.Generator, rows: int, clip_of: Sequence[int], together: int
) -> NDArray[np.int64]:
    order = rng.permutation(rows)
    if together == 1 or not rows:
        return order
    clips = np.asarray(clip_of, np.int64)[order]
    by_clip = np.argsort(clips, kind="stable")
    order, clips = order[by_clip], clips[by_clip]
    first = np.concatenate([[True], clips[1:] != clips[:-1]])
    starts = np.flatnonzero(first)
    within = np.arange(rows) - starts[np.cumsum(first) - 1]  # a row's number among its clip's
    group = np.cumsum(within % together == 0) - 1
    place = rng.permutation(int(group[-1]) + 1)
    return order[np.argsort(place[group], kind="stable")]


def batches(
    data: SplitData,
    rows: Sequence[int] | NDArray[np.int64],
    size: int,
    workers: int = 0,
    epoch: Epoch | None = None,
) -> Iterator[TokenBatch]:
    """Batches of `size` samples, the last may be smaller; `workers` threads read ahead without changing the order."""
    return read_batches(data, row_groups(rows, size), workers, epoch)


def row_groups(rows: Sequence[int] | NDArray[np.int64], size: int) -> Iterator[list[int]]:
    """The rows of each batch of `size` samples, the last may be smaller."""
    return ([int(row) for row in rows[i : i + size]] for i in range(0, len(rows), size))


def read_batches(
    data: SplitData, groups: Iterable[Sequence[int]], workers: int = 0, epoch: Epoch | None = None
) -> Iterator[TokenBatch]:
    """The batches of these rows, as `batches`."""
    groups = [list(group) for group in groups]
    data.expect(groups)
    if workers == 0:
        yield from (data.batch(group, epoch) for group in groups)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        waiting: deque[Future[TokenBatch]] = deque()
        try:
            for group in groups:
                waiting.append(pool.submit(data.batch, group, epoch))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # a consumer that stops early must not wait for reads that have not begun
                future.cancel()


def as_batch(keys: list[str], arrays: Mapping[str, Tensor], spec: InputSpec) -> TokenBatch:
    """A batch of clips from their arrays `[B, ...]`, named as in a store; `frames_ok` and `audio_ok` among them."""
    return TokenBatch(
        keys=keys,
        visual={tap.name: arrays[tap.name] for tap in spec.visual},  # [B, T, L, C]
        audio={tap.name: arrays[tap.name] for tap in spec.audio},  # [B, T, M, D]
        frames_ok=arrays["frames_ok"],
        audio_ok=arrays["audio_ok"],
        visual_caption=arrays.get("visual_caption"),
        visual_caption_mask=arrays.get("visual_caption_mask"),
        audio_caption=arrays.get("audio_caption"),
        audio_caption_mask=arrays.get("audio_caption_mask"),
        extra={tap.name: arrays[tap.name] for tap in spec.other},
    )


def _torch_dtype(dtype: np.dtype[np.generic]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
