"""A sample, the unit of training, scoring and prediction: a clip, or a clip with more, such as a question.

Several samples may share a clip; its tokens are stored, and kept in RAM, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.clip import SPLITS, Clip, Manifest
from caeav.manifests.key_index import Keys
from caeav.manifests.lazy_clips import CODES, FiledClips


@dataclass(frozen=True, slots=True)
class Sample:
    """`key` is the sample's own name; its tokens come from `clip`; `split` may differ from the clip's.

    `detail` holds what only the task knows (a question), as JSON values.
    """

    key: str
    clip: Clip
    split: str
    detail: Mapping[str, Any] = field(default_factory=dict)


class ClipSamples(Sequence[Sample]):
    """The clips at `rows` of a large manifest as samples, each made on access."""

    def __init__(self, clips: FiledClips, rows: NDArray[np.int64]) -> None:
        self.clips = clips
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> ClipSamples: ...
    def __getitem__(self, at: int | slice) -> Sample | ClipSamples:
        if isinstance(at, slice):
            return ClipSamples(self.clips, self.rows[at])
        clip = self.clips[int(self.rows[at])]
        return Sample(clip.key, clip, clip.split)

    @property
    def keys(self) -> Keys:
        """The samples' keys, which are their clips'."""
        return self.clips.keys.take(self.rows)

    def of_split(self, split: str) -> ClipSamples:
        """The samples of one split."""
        return ClipSamples(self.clips, self.rows[self.clips.splits[self.rows] == CODES.index(split)])

    def where(self, kept: NDArray[np.bool_]) -> ClipSamples:
        """The samples whose clip is `kept` (one value per clip of the manifest)."""
        return ClipSamples(self.clips, self.rows[kept[self.rows]])


def clip_samples(manifest: Manifest) -> Sequence[Sample]:
    """Every clip that is in a split, in the manifest's order."""
    if isinstance(manifest.clips, FiledClips):
        return ClipSamples(manifest.clips, np.flatnonzero(manifest.clips.splits))
    return tuple(Sample(clip.key, clip, clip.split) for clip in manifest.clips if clip.split in SPLITS)
