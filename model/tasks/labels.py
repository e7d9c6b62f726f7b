"""Labels of manifest rows as tensors, for the tasks on events.

An event covers segment `t` when `start <= t < end` in segments, so one without length, or backwards, covers none.
Shapes: `T` segments, `K` classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from caeav.manifests.clip import Event
from caeav.manifests.core.errors import CaeavError
from caeav.model.adapters.batch import Inputs
from caeav.model.tasks.sample import Sample


def check_labels(inputs: Inputs, labels: Iterable[str]) -> None:
    """Raises `CaeavError` for labels that are not among the classes."""
    strange = sorted(set(labels) - set(inputs.classes))
    if strange:
        raise CaeavError(
            f"data set {inputs.dataset!r} has labels that are not classes: {', '.join(strange[:5])}",
            hint="give labels (for a folder of media: a csv, see caeav manifest build --help) and extract again",
        )


def active(events: Sequence[Event], inputs: Inputs) -> Tensor:
    """`[T, K]` in 0/1: which class is on in which segment."""
    segments = inputs.spec.segments
    on = torch.zeros(segments, len(inputs.classes))
    for event in events:
        for t in range(segments):
            if event.start_s <= t * inputs.segment_s < event.end_s:
                on[t, inputs.classes.index(event.label)] = 1
    return on


def one_hot_seconds(sample: Sample, inputs: Inputs) -> Tensor:
    """`[T, K + 1]` one-hot labels, background last; where two events overlap, the first class in order counts."""
    on = active(sample.clip.events, inputs)
    labels = torch.cat([on, (on.sum(dim=1, keepdim=True) == 0).float()], dim=1)
    first = labels.argmax(dim=1, keepdim=True)  # argmax gives the first of equals
    return torch.zeros_like(labels).scatter_(1, first, 1.0)


def stack(rows: Sequence[Tensor], *shape: int) -> Tensor:
    """Rows of `shape` as one tensor, also when there are none."""
    return torch.stack(list(rows)) if rows else torch.zeros((0, *shape))
