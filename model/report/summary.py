"""What a token store holds, read once: norms and dead channels of each tap, and one vector per clip and modality.

Shapes: `N` clips, `T` segments, `L` tokens, `C` channels, `D` of a pooled vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.store import Record, StoreReader

Floats = NDArray[np.float32]

MODALITIES = ("visual", "audio")
MOST_CLIPS = 6000
"""Clips that are read; of a larger store, an even sample."""
DEAD = 1e-4
"""A channel is dead whose deviation is less than this part of the median channel's."""


@dataclass(frozen=True)
class TapFacts:
    """A tap over the clips that were read: the lengths of its tokens, and which of its channels never change."""

    name: str
    tokens: int
    channels: int
    mean_norm: float
    least_norm: float
    largest_norm: float
    dead: tuple[int, ...]
    empty_clips: int
    """Clips in which every token is zero."""


@dataclass(frozen=True)
class TokenSummary:
    """`keys`: the clips that were read, of `of` in the store. `pooled`: modality -> `[N, D]`."""

    keys: list[str]
    of: int
    pooled: dict[str, Floats]
    taps: list[TapFacts]


@dataclass
class _Channels:
    """Sums over all tokens of a tap."""

    count: int = 0
    total: NDArray[np.float64] | None = None
    squares: NDArray[np.float64] | None = None
    norms: list[tuple[float, float, float]] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)

    def add(self, x: Floats) -> None:
        """Take a clip's tap `[T, L, C]`."""
        flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
        if self.total is None or self.squares is None:
            self.total, self.squares = np.zeros(flat.shape[1]), np.zeros(flat.shape[1])
        self.shape = x.shape[1], x.shape[2]
        self.count += len(flat)
        self.total += flat.sum(axis=0)
        self.squares += (flat**2).sum(axis=0)
        lengths = np.sqrt((flat**2).sum(axis=1))
        self.norms.append((float(lengths.mean()), float(lengths.min()), float(lengths.max())))

    def facts(self, name: str) -> TapFacts:
        """The facts of the tap over all clips taken."""
        assert self.total is not None and self.squares is not None
        mean = self.total / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        norms = np.array(self.norms)
        dead = np.flatnonzero(deviation <= DEAD * float(np.median(deviation)))
        return TapFacts(
            name,
            *self.shape,
            mean_norm=float(norms[:, 0].mean()),
            least_norm=float(norms[:, 1].min()),
            largest_norm=float(norms[:, 2].max()),
            dead=tuple(dead.tolist()),
            empty_clips=int((norms[:, 2] == 0).sum()),
        )


def summarise_tokens(store: StoreReader, most: int = MOST_CLIPS) -> TokenSummary:
    """Read the records of a token store, at most `most` of them, evenly spread."""
    step = max(1, -(-len(store.keys) // most))
    keys = [store.keys[i] for i in range(0, len(store.keys), step)]
    channels: dict[str, _Channels] = {}
    pooled: dict[str, list[Floats]] = {name: [] for name in MODALITIES}
    for record in _records(store, keys):
        parts: dict[str, list[Floats]] = {name: [] for name in MODALITIES}
        for name, array in record.arrays.items():
            if array.ndim != 3:
                continue
            x = array.astype(np.float32)
            channels.setdefault(name, _Channels()).add(x)
            modality = name.partition(".")[0]
            if modality in parts:
                parts[modality].append(pool(x))
        for name, vectors in parts.items():
            if vectors:
                pooled[name].append(np.concatenate(vectors))
    order = {name: i for i, name in enumerate(store.array_specs())}
    taps = [channels[name].facts(name) for name in sorted(channels, key=lambda name: order.get(name, 0))]
    return TokenSummary(
        keys,
        len(store.keys),
        {name: np.stack(rows) for name, rows in pooled.items() if len(rows) == len(keys) and rows},
        taps,
    )


def pool(x: Floats) -> Floats:
    """A tap `[T, L, C]` as one vector `[3 C]`: mean and deviation of the seconds' means, mean of their peaks."""
    means = x.mean(axis=1)  # [T, C]
    return np.concatenate([means.mean(axis=0), means.std(axis=0), x.max(axis=1).mean(axis=0)])


def _records(store: StoreReader, keys: Sequence[str]) -> Iterator[Record]:
    return store.read_each(keys)
