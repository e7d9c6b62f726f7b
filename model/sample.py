"""What one row of training, scoring or prediction is: a clip, or a clip with something of its own, such as a question.

Several samples may share a clip; its tokens are stored, and kept in RAM, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from caeav.manifests.clip import SPLITS, Clip, Manifest


@dataclass(frozen=True, slots=True)
class Sample:
    """One row. `key` is its own name, `clip` where its tokens come from, `split` may differ from the clip's.

    `detail` holds what only the task knows (a question), JSON values.
    """

    key: str
    clip: Clip
    split: str
    detail: Mapping[str, Any] = field(default_factory=dict)


def clip_samples(manifest: Manifest) -> tuple[Sample, ...]:
    """Every clip that is in a split, in the manifest's order."""
    return tuple(Sample(clip.key, clip, clip.split) for clip in manifest.clips if clip.split in SPLITS)
