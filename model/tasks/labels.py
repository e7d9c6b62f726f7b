"""Target tensors from the labels of manifest rows, for tasks on events. Shapes: `T` segments, `K` classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from caeav.manifests.clip import Event
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.util import some_of
from caeav.model.adapters.batch import Inputs


def check_labels(inputs: Inputs, labels: Iterable[str]) -> None:
    """Raise `CaeavError` if any label is not among the classes."""
    unknown = sorted(set(labels) - set(inputs.classes))
    if unknown:
        raise CaeavError(
            f"data set {inputs.dataset!r} has labels that are not classes: {some_of(unknown)}",
            hint="give labels (for a folder of media: a csv, see caeav manifest build --help) and extract again",
        )


def active(events: Sequence[Event], inputs: Inputs) -> Tensor:
    """`[T, K]` in 0/1: which class is on in which segment.

    An event covers segment `t` if `start <= t < end` in segments, so an event of no or negative length covers none.
    """
    segments = inputs.spec.segments
    on = torch.zeros(segments, len(inputs.classes))
    for event in events:
        for t in range(segments):
            if event.start_s <= t * inputs.segment_s < event.end_s:
                on[t, inputs.classes.index(event.label)] = 1
    return on


def stack(rows: Sequence[Tensor], *shape: int) -> Tensor:
    """Rows of `shape` as one tensor, even if there are none."""
    return torch.stack(list(rows)) if rows else torch.zeros((0, *shape))
