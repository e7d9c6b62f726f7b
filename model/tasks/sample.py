"""A sample is the unit of training, scoring and prediction: a clip, or a clip with something else, such as a question.

Several samples may share a clip, whose tokens are stored, and kept in memory, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import SPLIT_CODES, Clip, Manifest


@dataclass(frozen=True, slots=True)
class Sample:
    """`key` is the sample's own name; its tokens come from `clip`; `split` may differ from the clip's.

    `detail` holds what only the task knows (a question), as JSON values.
    """

    key: str
    clip: Clip
    split: str
    detail: Mapping[str, Any] = field(default_factory=dict)


class Samples(Sequence[Sample]):
    """Samples of one manifest, in order; samples that are whole clips are made on access.

    `rows`: the row of each sample's clip in the manifest. `splits`: the split of each sample, as an index of
    `SPLIT_CODES`. `listed`: the samples themselves, unless they are whole clips.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: NDArray[np.int64],
        splits: NDArray[np.uint8],
        listed: Sequence[Sample] | None = None,
    ) -> None:
        self.manifest = manifest
        self.rows = rows
        self.splits = splits
        self._listed = listed

    @classmethod
    def of(cls, samples: Sequence[Sample], manifest: Manifest) -> Samples:
        """Samples that a task made of the clips of `manifest`."""
        if isinstance(samples, Samples):
            return samples
        row = {key: number for number, key in enumerate(manifest.keys)}
        rows = np.array([row[sample.clip.key] for sample in samples], np.int64)
        splits = np.array([SPLIT_CODES.index(sample.split) for sample in samples], np.uint8)
        return cls(manifest, rows, splits, samples)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Samples: ...
    def __getitem__(self, at: int | slice) -> Sample | Samples:
        if isinstance(at, slice):
            return self._at(np.arange(len(self))[at])
        if self._listed is not None:
            return self._listed[at]
        clip = self.manifest.clips[int(self.rows[at])]
        return Sample(clip.key, clip, clip.split)

    def _at(self, places: NDArray[np.intp]) -> Samples:
        listed = None if self._listed is None else [self._listed[place] for place in places]
        return Samples(self.manifest, self.rows[places], self.splits[places], listed)

    @cached_property
    def keys(self) -> Sequence[str]:
        """The key of each sample."""
        if self._listed is not None:
            return [sample.key for sample in self._listed]
        return self.manifest.keys.take(self.rows)

    def clips(self) -> tuple[Sequence[str], Sequence[int]]:
        """The keys of the distinct clips, in order of first use, and each sample's index among them."""
        if self._listed is None:
            return self.keys, range(len(self))
        rows, first, clip_of = np.unique(self.rows, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return self.manifest.keys.take(rows[order]), place[clip_of].tolist()

    def of_split(self, split: str) -> Samples:
        """The samples of one split."""
        return self._at(np.flatnonzero(self.splits == SPLIT_CODES.index(split)))

    def where(self, kept: NDArray[np.bool_]) -> Samples:
        """The samples whose clip is `kept` (one value per clip of the manifest)."""
        return self._at(np.flatnonzero(kept[self.rows]))


def clip_samples(manifest: Manifest) -> Samples:
    """Every clip that is in a split, in the manifest's order."""
    splits = manifest.table.splits
    rows = np.flatnonzero(splits)
    return Samples(manifest, rows, splits[rows])
