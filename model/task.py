"""What a task is to the one trainer: labels to targets, a network, its losses, and its official score.

Targets and outputs are the task's own business; the trainer only moves them about. Higher scores are better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.registry import Registry
from caeav.model.batch import InputSpec, TokenBatch

if TYPE_CHECKING:
    from caeav.model.config import RunConfig


@dataclass(frozen=True)
class Scores:
    """The official score in percent, how many clips it is over, and one row a class for reading."""

    value: float
    clips: int
    per_class: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)


class Scorer(Protocol):
    """Collects one split's outputs batch by batch; the result does not depend on the batch size."""

    def add(self, output: Any, batch: TokenBatch) -> None:
        """Take in the network's output for `batch`."""
        ...

    def result(self) -> Scores:
        """The score over everything added; a split without clips is an error of the caller."""
        ...


class Task(Protocol):
    """One registered task."""

    name: str
    metric: str

    def targets(self, manifest: Manifest, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """Targets of `clips`, first axis the clips; raises `CaeavError` for labels the task cannot use."""
        ...

    def build(self, spec: InputSpec, classes: Sequence[str], config: RunConfig) -> nn.Module:
        """The network: `forward(TokenBatch)` gives the output that `losses` and `scorer` understand."""
        ...

    def losses(self, output: Any, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """Named scalars, already weighted; their sum is minimised."""
        ...

    def read(self, output: Any) -> tuple[Tensor, Tensor]:
        """Chosen class of every segment `[B, T]` (`K`: background) and probabilities `[B, T, K + 1]`."""
        ...

    def scorer(self, classes: Sequence[str]) -> Scorer:
        """A fresh scorer."""
        ...

    def majority(self, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> float:
        """Score in percent of always answering what is most frequent in `train`."""
        ...


TASKS: Registry[Task] = Registry("task")
TASKS.register_lazily("ave", "caeav.model.task_ave:AVE")
