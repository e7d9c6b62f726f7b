"""What a task gives to the trainer, and the registry of tasks.

To add a task, make a folder beside this file and register its `Task` at the end of this file; docs/TASKS.md has the
rest. The folder holds:

    config.py      HeadConfig, LossConfig, MetricConfig of the task (settings only, no torch)
    task.py        the `Task` and its `Scorer`
    head.py        the network on top of the adapters
    loss.py        the objectives as functions of the head's output
    metric.py      the official score
    prediction.py  the head's output for one clip, for people and as JSON

The trainer calls a `Task` in this order:

    samples        manifest -> samples of all splits (default: one per clip)
    fit_metadata   vocabularies and the like, derived from the manifest and kept with the run (default: none)
    classes        names of what the head distinguishes (default: the manifest's classes)
    targets        samples -> target tensors                                                    [must be given]
    together       targets -> where labels say that audio and frames belong together (default: they do not tell)
    tracks         targets -> what is seen and heard, so that labels can follow a damage (default: they do not tell)
    extra_inputs   samples -> further input tensors, such as questions (default: none)
    transforms     what to do to every batch that is read (default: nothing)
    build_head     the head                                                                     [must be given]
    build_probe    a probe in place of the head (default: refused; `probe_refusal` says why)
    forward        call the head on a batch (default: with the adapters' tokens alone)
    gather_output  head outputs of all processes -> that of the whole batch (default: their rows joined)
    losses         head output and batch -> named losses                                        [must be given]
    build_scorer   collects head outputs of a split, returns `Scores`                           [must be given]
    majority_score the score of a constant answer, for comparison                               [must be given]
    sample_of      a clip outside any data set -> its sample, for prediction (default: no question allowed)
    decode         head output of one clip -> `TaskPrediction`                                  [must be given]
    outcomes       head output of a batch -> truth and prediction of each sample     [must be given]

Targets and head outputs are the task's own business; the trainer only passes them on. Higher scores are better.
Shapes: `N` samples, `B` of a batch, `T` segments, `K` classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.registry import Registry
from caeav.model.adapters.batch import BatchTransform, Inputs, TokenBatch, TrunkOutput
from caeav.model.adapters.trunk import Trunk
from caeav.model.adapters.whole_batch import gathered
from caeav.model.tasks.bootstrap import Evidence
from caeav.model.tasks.config import HeadConfig, LossConfig, MetricConfig, ModelConfig, RunConfig
from caeav.model.tasks.prediction import TaskPrediction
from caeav.model.tasks.probe import no_probe
from caeav.model.tasks.sample import Sample, clip_samples


@dataclass(frozen=True)
class Scores:
    """The official score `value` in percent over `clips` samples, and `per_class`, table rows per class or type.

    `details`: every other number of the metric, by name. `evidence`: what the scores that are ratios of sums are made
    of, for confidence intervals. `ungrouped`: why there are no rows. `without_media`: how many segments, of how many,
    had neither frames nor audio.
    """

    value: float
    clips: int
    per_class: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, float] = field(default_factory=dict)
    evidence: Evidence | None = field(default=None, compare=False)
    ungrouped: str = field(default="", compare=False)
    without_media: tuple[int, int] = field(default=(0, 0), compare=False)


class Together(NamedTuple):
    """Whether audio and frames belong together, by the labels.

    0/1 each. `seconds`: `[N, T, K]`, what is both seen and heard in each second. `clips`: `[N, K]`, what a clip holds.
    None where labels do not tell.
    """

    seconds: Tensor | None = None
    clips: Tensor | None = None


class Scorer(ABC):
    """Collects the head's outputs for one split, batch by batch; the result does not depend on the batch size.

    Processes that share the work measure different batches, and each takes what all of them measured, in order.
    """

    def add(self, output: Any, batch: TokenBatch) -> None:
        """Count the head's output for `batch`."""
        self.take(self.measure(output, batch))

    @abstractmethod
    def measure(self, output: Any, batch: TokenBatch) -> dict[str, Tensor]:
        """What the score needs to know of a batch, on the CPU; changes nothing here."""

    @abstractmethod
    def take(self, measured: Mapping[str, Tensor]) -> None:
        """Count a batch."""

    @abstractmethod
    def result(self) -> Scores:
        """The score over everything taken; the caller must have taken at least one sample."""


class Task(ABC):
    """One registered task. The defaults suit tasks with one sample per clip."""

    name: ClassVar[str]
    metric: ClassVar[str]
    """Name of the score that chooses the best epoch."""
    sample_noun: ClassVar[str] = "clip"
    """What a sample is called; its plural has an s."""
    head_config: ClassVar[type[HeadConfig]] = HeadConfig
    loss_config: ClassVar[type[LossConfig]] = LossConfig
    metric_config: ClassVar[type[MetricConfig]] = MetricConfig
    outcome_columns: ClassVar[Mapping[str, Any]]
    """Forms of `truth`, `prediction` and what else `outcomes` gives: a value of each kind, in lists and mappings."""
    keeps_stages: ClassVar[bool] = False
    """Whether the head reads the tokens of every stage, not only of the deepest."""
    probe_refusal: ClassVar[str] = "the task does not say what one would read"
    """Why the task has no probe."""

    def samples(self, manifest: Manifest) -> Sequence[Sample]:
        """The samples of all splits."""
        return clip_samples(manifest)

    def fit_metadata(self, manifest: Manifest, splits: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
        """What the network is built from besides shapes and classes (vocabularies, the size of a mask), as JSON values.

        It is saved with the run and comes back as `Inputs.facts`. Raises `CaeavError` if the task cannot use the
        manifest.
        """
        return {}

    def classes(self, manifest: Manifest, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of what the head distinguishes; raises `CaeavError` if there are none."""
        if not manifest.classes:
            raise CaeavError(
                f"data set {manifest.dataset!r} has no classes, hence no labels",
                hint="give labels (for a folder of media: a csv, see caeav manifest build --help) and extract again",
            )
        return manifest.classes

    def describe(self, inputs: Inputs) -> str:
        """What the head distinguishes, in a few words."""
        return f"{len(inputs.classes)} classes"

    @abstractmethod
    def targets(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Targets of `samples`, first axis `N`; raises `CaeavError` for labels that the task cannot use."""

    def extra_inputs(self, inputs: Inputs, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """What the head reads besides tokens, first axis `N`."""
        return {}

    def together(self, targets: Mapping[str, Tensor], *, training: bool) -> Together:
        """Whether audio and frames belong together, by `targets`; `training`: only what the task learns from."""
        return Together()

    def tracks(self, targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
        """What `targets` say is seen and what is heard, `[N, T, K]` each in 0/1; None where they do not tell."""
        return None

    def with_tracks(self, targets: Mapping[str, Tensor], seen: Tensor, heard: Tensor) -> dict[str, Tensor]:
        """The targets that are true where this is seen and heard, `[N, T, K]` each; tasks with `tracks` have it."""
        raise NotImplementedError

    def transforms(self, config: RunConfig) -> tuple[BatchTransform, ...]:
        """What is done to the batches of every split as they are read."""
        return ()

    def sample_of(self, clip: Clip, question: str) -> Sample:
        """The sample of a clip outside any data set, for prediction; `question` is empty if none was asked."""
        if question:
            raise CaeavError(
                f"task {self.name!r} answers no questions",
                hint="leave out --question, or name a run of avqa",
            )
        return Sample(clip.key, clip, "")

    @abstractmethod
    def build_head(self, trunk: Trunk, inputs: Inputs, config: HeadConfig) -> nn.Module:
        """The head on `trunk`; `config` is a `head_config`."""

    def build_probe(self, inputs: Inputs, config: ModelConfig) -> nn.Module:
        """A module from a batch to what the head would give; raises `CaeavError` where a probe makes no sense."""
        raise no_probe(self.name, self.probe_refusal)

    def forward(self, head: nn.Module, trunk: TrunkOutput, batch: TokenBatch) -> Any:
        """Call the head. Where samples share clips (`batch.clip_of`), the trunk's first axis counts clips."""
        return head(trunk)

    def gather_output(self, output: Any, config: LossConfig) -> Any:
        """The head's output for the whole batch, of which each process has a part; `config`: of the losses, which read
        it. The default is for tensors whose first axis is `B`."""
        return gathered(output)

    @abstractmethod
    def losses(self, output: Any, batch: TokenBatch, config: RunConfig) -> dict[str, Tensor]:
        """Named scalars, unweighted; `config.loss` has a weight for each name."""

    @abstractmethod
    def build_scorer(self, inputs: Inputs, config: RunConfig) -> Scorer:
        """A new scorer."""

    @abstractmethod
    def majority_score(
        self, inputs: Inputs, config: RunConfig, train: Mapping[str, Tensor], targets: Mapping[str, Tensor]
    ) -> float:
        """Baseline: score in percent, on `targets`, of the constant answer that the targets of `train` suggest."""

    @abstractmethod
    def decode(self, output: Any, inputs: Inputs, config: RunConfig, sample: Sample) -> TaskPrediction:
        """The head's output for a batch of this one sample, for people."""

    @abstractmethod
    def outcomes(
        self, output: Any, batch: TokenBatch, samples: Sequence[Sample], inputs: Inputs, config: RunConfig
    ) -> list[dict[str, Any]]:
        """For each of `samples`, those of `batch`: what is true and what was predicted, as `outcome_columns` says.

        Besides, `labels`: what the sample is grouped by; `score`: its own share of the metric in 0..1, None if it has
        none; `confidence`: how sure the prediction is, in 0..1.
        """


TASKS: Registry[Task] = Registry("task")
TASKS.register_lazily("ave", "caeav.model.tasks.ave.task:AVE")
TASKS.register_lazily("ave-weak", "caeav.model.tasks.ave.task:AVE_WEAK")
TASKS.register_lazily("avvp", "caeav.model.tasks.avvp.task:AVVP")
TASKS.register_lazily("avs-s4", "caeav.model.tasks.avs.task:AVS_S4")
TASKS.register_lazily("avs-ms3", "caeav.model.tasks.avs.task:AVS_MS3")
TASKS.register_lazily("avqa", "caeav.model.tasks.avqa.task:AVQA")
