"""Target tensors from the labels of manifest rows, for tasks on events. Shapes: `T` segments, `K` classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from caeav.manifests.clip import Event, Manifest, active_segments
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import some_of
from caeav.model.adapters.batch import Inputs
from caeav.model.tasks.sample import Sample


def check_labels(inputs: Inputs, labels: Iterable[str]) -> None:
    """Raise `CaeavError` if any label is not among the classes."""
    unknown = sorted(set(labels) - set(inputs.classes))
    if unknown:
        raise CaeavError(
            f"data set {inputs.dataset!r} has labels that are not classes: {some_of(unknown)}",
            hint="give labels (for a folder of media: a csv, see caeav manifest build --help) and extract again",
        )


def require_events(manifest: Manifest, splits: Mapping[str, Sequence[Sample]], *names: str) -> None:
    """Raise `CaeavError` unless a sample of the splits of these names has an event."""
    if not any(sample.clip.events for name in names for sample in splits[name]):
        raise CaeavError(
            f"no {' or '.join(names)} clip of data set {manifest.dataset!r} has an event",
            hint="give events their times (for a folder of media: a csv, see caeav manifest build --help)",
        )


def active(events: Sequence[Event], inputs: Inputs) -> Tensor:
    """`[T, K]` in 0/1: which class is on in which segment."""
    return torch.from_numpy(active_segments(events, inputs.classes, inputs.spec.segments, inputs.segment_s))


def stack(rows: Sequence[Tensor], *shape: int) -> Tensor:
    """Rows of `shape` as one tensor, even if there are none."""
    return torch.stack(list(rows)) if rows else torch.zeros((0, *shape))
