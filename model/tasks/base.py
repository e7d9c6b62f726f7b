"""What a task is to the one trainer: samples and their targets, a head, a loss, a metric, a reading.

A task is one subclass here, registered by name, and one recipe file; docs/TASKS.md tells how to add one. Targets and
findings are the task's own business; the trainer only moves them about. Higher scores are better.
Shapes: `N` samples, `B` of a batch, `T` segments, `K` classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.registry import Registry
from caeav.model.adapters.batch import TokenBatch, TrunkOutput
from caeav.model.tasks.bootstrap import Evidence
from caeav.model.tasks.config import LossConfig, Section
from caeav.model.tasks.heads import HeadConfig
from caeav.model.tasks.sample import Sample, clip_samples

if TYPE_CHECKING:
    from caeav.model.adapters.batch import BatchTransform, Inputs
    from caeav.model.adapters.trunk import Trunk
    from caeav.model.tasks.config import RunConfig
    from caeav.model.tasks.prediction import TaskPrediction


@dataclass(frozen=True)
class Scores:
    """The official score in percent, how many samples it is over, and rows for reading, one a class or type.

    `details`: every other number of the metric, by name. `evidence`: what those of them that are ratios of sums are
    made of, for confidence intervals. `ungrouped`: why there are no rows. `bare`: in how many of how many segments
    there was neither picture nor sound.
    """

    value: float
    clips: int
    per_class: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)
    evidence: Evidence | None = field(default=None, compare=False)
    ungrouped: str = field(default="", compare=False)
    bare: tuple[int, int] = field(default=(0, 0), compare=False)


class Scorer(Protocol):
    """Collects one split's findings batch by batch; the result does not depend on the batch size."""

    def add(self, found: Any, batch: TokenBatch) -> None:
        """Take in what the head found in `batch`."""
        ...

    def result(self) -> Scores:
        """The score over everything added; a split without samples is an error of the caller."""
        ...


class Task(ABC):
    """One registered task. Only what is abstract must be given; the rest suits tasks on whole clips."""

    name: ClassVar[str]
    metric: ClassVar[str]
    """Name of the score that chooses the best epoch."""
    sample_noun: ClassVar[str] = "clip"
    """What a sample is called; several of them have an s."""
    head_config: ClassVar[type[HeadConfig]] = HeadConfig
    loss_config: ClassVar[type[LossConfig]] = LossConfig
    metric_config: ClassVar[type[Section]] = Section
    keeps_stages: ClassVar[bool] = False
    """Whether the head looks at the tokens of every stage, not only at the deepest."""

    def samples(self, manifest: Manifest) -> Sequence[Sample]:
        """The rows of all splits."""
        return clip_samples(manifest)

    def fit_metadata(self, manifest: Manifest, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
        """JSON facts that the network is built from beside shapes and classes (vocabularies, the size of a mask).

        They are saved in the run. Raises `CaeavError` for a manifest the task cannot use.
        """
        return {}

    def classes(self, manifest: Manifest, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of what the head tells apart; raises `CaeavError` when there are none."""
        if not manifest.classes:
            raise CaeavError(
                f"data set {manifest.dataset!r} has no classes, hence no labels",
                hint="give labels (for a folder of media: a csv, see caeav manifest build --help) and extract again",
            )
        return manifest.classes

    def describe(self, inputs: Inputs) -> str:
        """What is told apart, in a few words."""
        return f"{len(inputs.classes)} classes"

    @abstractmethod
    def targets(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Targets of `samples`, first axis `N`; raises `CaeavError` for labels the task cannot use."""

    def extra_inputs(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """What a head is given beside tokens, first axis `N`."""
        return {}

    def transforms(self, config: RunConfig) -> tuple[BatchTransform, ...]:
        """What is done to batches of every split when they are read."""
        return ()

    def sample_of(self, clip: Clip, text: str) -> Sample:
        """The sample of a clip outside any data set, for prediction; `text` is empty when nothing was asked."""
        if text:
            raise CaeavError(
                f"task {self.name!r} answers no questions",
                hint="leave --question away, or name a run of avqa",
            )
        return Sample(clip.key, clip, "")

    @abstractmethod
    def build_head(self, trunk: Trunk, inputs: Inputs, config: HeadConfig) -> nn.Module:
        """The head on `trunk`; `config` is a `head_config`."""

    def forward(self, head: nn.Module, trunk: TrunkOutput, batch: TokenBatch) -> Any:
        """Call the head. Where samples share clips (`batch.clip_of`), the trunk's first axis is the clips'."""
        return head(trunk)

    @abstractmethod
    def losses(self, found: Any, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """Named scalars, unweighted; `config.loss` holds a weight for each name."""

    @abstractmethod
    def build_scorer(self, inputs: Inputs, config: RunConfig) -> Scorer:
        """A fresh scorer."""

    @abstractmethod
    def majority_score(
        self, inputs: Inputs, config: RunConfig, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> float:
        """Score in percent of the best constant answer that the targets of `train` suggest, on `targets`."""

    @abstractmethod
    def decode(self, found: Any, inputs: Inputs, config: RunConfig, sample: Sample) -> TaskPrediction:
        """What was found in a batch of this one sample, for people."""


TASKS: Registry[Task] = Registry("task")
TASKS.register_lazily("ave", "caeav.model.tasks.ave.task:AVE")
TASKS.register_lazily("ave-weak", "caeav.model.tasks.ave.task:AVE_WEAK")
TASKS.register_lazily("avvp", "caeav.model.tasks.avvp.task:AVVP")
TASKS.register_lazily("avs-s4", "caeav.model.tasks.avs.task:AVS_S4")
TASKS.register_lazily("avs-ms3", "caeav.model.tasks.avs.task:AVS_MS3")
TASKS.register_lazily("avqa", "caeav.model.tasks.avqa.task:AVQA")
