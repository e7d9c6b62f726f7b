"""Everything that decides one training run, as one frozen, fully checked value: `RunConfig`.

Only fields and their checks are here. `train/config_file.py` resolves values from packaged presets, files and `--set`.
Head, losses and metric are each task's own (its `config.py`); they derive from `HeadConfig`, `LossConfig` and
`MetricConfig`. The resolved configuration is written into the run folder and is all that is needed to repeat the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from caeav.model.adapters.config import AdapterConfig, Count, StrictConfig, Variant, deep_merge

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Modalities = Literal["both", "audio", "visual", "neither"]


class HeadConfig(StrictConfig):
    """What the heads of all tasks have.

    FIXES: setting -> its value in the reference, its value in the revision (`model.variant`); docs/VARIANTS.md gives
    the reasons. input_norm: how the tokens of both modalities (in AVE and AVVP their means) are normalised first:
    `none` as in the reference, `batch` standardises every channel, `layer` every token.
    """

    FIXES: ClassVar[Mapping[str, tuple[Any, Any]]] = {}

    input_norm: Literal["none", "batch", "layer"] = "none"


def names_of(given: object) -> object:
    """Names from a text with commas between them; anything else as it is."""
    return [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given


class ProbeConfig(StrictConfig):
    """A probe in place of the head.

    kind: one layer (`linear`), or two (`mlp`). hidden: width of the hidden layer. taps: whose mean tokens it reads, one
    comma-separated string or a list; empty: the deepest of each modality.
    """

    kind: Literal["none", "linear", "mlp"] = "none"
    taps: list[str] = Field(default_factory=list)
    hidden: Count = 256

    @field_validator("taps", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        return names_of(given)


class ModelConfig(StrictConfig):
    """Everything that decides the model's form.

    variant: the published method as it is (`reference`) or with its defects put right (`revised`). It sets the default
    of `adapters.variant` and of the head's own switches (`HeadConfig.FIXES`). modalities: `audio` and `visual` are
    baselines: the other modality's tokens are zeroed before the same head, and all adapters are off, because each of
    them reads the other modality or a caption of the clip. `neither` leaves only what a question tells.
    """

    variant: Variant = "reference"
    modalities: Modalities = "both"
    adapters: AdapterConfig = AdapterConfig()
    head: SerializeAsAny[HeadConfig] = HeadConfig()
    probe: ProbeConfig = ProbeConfig()

    @model_validator(mode="after")
    def _probe_alone(self) -> ModelConfig:
        adapters = self.adapters
        given = [
            *adapters.exchanges(),
            *(name for name in ("caste", "case") if getattr(adapters, name).enabled),
        ]
        others = [f"adapters.{name}.enabled true" for name in given]
        others += [f"modalities {self.modalities}"] if self.modalities != "both" else []
        others += ["adapters.placement inject"] if adapters.placement != "ladder" else []
        if self.probe.kind != "none" and others:
            raise ValueError(
                f"probe.kind is {self.probe.kind} with {', '.join(others)}; allowed: no adapters, on cached taps "
                "(--recipe probe), and probe.taps of one modality for a baseline"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _apply_variant(cls, given: Any) -> Any:
        """Let the variant set the defaults of adapters and head; explicit values win."""
        if not isinstance(given, dict):
            return given
        variant = given.get("variant", "reference")
        head = cls.model_fields["head"].annotation
        fixes = head.FIXES if isinstance(head, type) and issubclass(head, HeadConfig) else {}
        defaults: dict[str, Any] = {
            "adapters": {"variant": variant},
            "head": {name: values[variant == "revised"] for name, values in fixes.items()},
        }
        plain = {
            name: part.model_dump(exclude_unset=True) if isinstance(part, BaseModel) else part
            for name, part in given.items()
        }
        return deep_merge(defaults, plain)


class StoresConfig(StrictConfig):
    """Which stores of the data set are joined; empty means the only one there is.

    tokens: names of token stores, `NAME:visual` for one modality of one. captions: name of a caption store.
    taps: read only these taps of the stores (all if empty); fewer taps mean fewer bytes per clip. Lists may be given as
    one comma-separated string. window_shards: an epoch is shuffled within windows of so many shards of the first token
    store, 0 over all; left out, it follows from the cache where stores come from a bucket (docs/REMOTE.md), else 0.
    """

    tokens: list[str] = Field(default_factory=list)
    captions: str = ""
    taps: list[str] = Field(default_factory=list)
    window_shards: NotNegativeInt | None = None

    @field_validator("tokens", "taps", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        return names_of(given)


class OptimiserConfig(StrictConfig):
    """The optimiser.

    name: Adam, or AdamW with decoupled weight decay. lr: the highest learning rate. weight_decay: of matrices; norms,
    biases and gates have none. head_lr_factor: multiplies `lr` for the task head and for the maps of the shared
    agreement.
    """

    name: Literal["adam", "adamw"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    head_lr_factor: Positive = 1.0


class ScheduleConfig(StrictConfig):
    """Learning rate over time.

    name: `none` keeps it, `step` multiplies it by `step_factor` every `step_epochs`, `cosine` lowers it to the fraction
    `floor`. warmup_epochs: it rises from 0 for so long. step_epochs: how often `step` acts. step_factor: by what.
    floor: what `cosine` ends at, as a fraction of `lr`.
    """

    name: Literal["none", "step", "cosine"] = "cosine"
    warmup_epochs: NotNegative = 1.0
    step_epochs: Count = 3
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.35
    floor: Share = 0.01


class TrainingConfig(StrictConfig):
    """The training loop.

    epochs: at most. batch_size: samples in a step. accumulation: batches whose gradients make one step. precision: of
    the forward pass, by autocast. clip_norm: largest norm of the gradient; 0 does not clip. early_stop_epochs: epochs
    without gain before training stops; 0 never stops. workers: threads that read ahead. preload_mb: a data set up to
    this size is kept in RAM. checkpoint_every_steps: how often the state is saved within an epoch; 0: only after each
    epoch. samples_per_clip: where samples share clips (questions), up to this many of a clip follow each other in an
    epoch; the adapters then run once for them. device: where the network is. Several processes divide a batch among
    themselves.
    """

    epochs: Count = 30
    batch_size: Count = 16
    samples_per_clip: Count = 1
    accumulation: Count = 1
    clip_norm: NotNegative = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    early_stop_epochs: NotNegativeInt = 10
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    preload_mb: NotNegativeInt = 2048
    checkpoint_every_steps: NotNegativeInt = 0


class StressConfig(StrictConfig):
    """How much inputs are damaged, each kind independently (docs/ROBUSTNESS.md); zero leaves everything as it is.

    shift: audio later than the frames by this many segments, earlier if negative. The others are the fraction of
    clips that are hit. swap: audio of another clip; mute, blind: no audio, no frames; cut: frames of another clip from
    some segment on; caption_drop: no captions; caption_swap: those of another clip; caption_empty: captions of the same
    length without content.
    """

    shift: int = 0
    swap: Share = 0.0
    mute: Share = 0.0
    blind: Share = 0.0
    cut: Share = 0.0
    caption_drop: Share = 0.0
    caption_swap: Share = 0.0
    caption_empty: Share = 0.0


class LossConfig(StrictConfig):
    """Weights of the losses that every task has; 0 leaves a loss out, and tasks add their own.

    load_balance: of AVMoE's experts being used alike. caption_contrast: of captions told apart from other clips' (needs
    CASE). consistency: of guided and unguided predictions where audio and frames agree (CASE and CASTE).
    selection_entropy: of CASE's selection being decided. correspondence: of the agreement being true (CASTE with a
    shared agreement). docs/OBJECTIVES.md describes them. The weight of a part that is switched off has no effect.
    """

    load_balance: NotNegative = 0.0
    caption_contrast: NotNegative = 0.0
    consistency: NotNegative = 0.0
    selection_entropy: NotNegative = 0.0
    correspondence: NotNegative = 0.0


class MetricConfig(StrictConfig):
    """Settings of a task's official metric; most metrics have none."""


class RunConfig(StrictConfig):
    """One run.

    recipe: the training preset it was started with. seed: of weights, order, dropout and augmentation. select_on: the
    split that chooses the best epoch (`test` marks the run; it is for comparison with work that did so). protocol:
    `published` scores as the compared papers did (`train/protocol.py`). drop_leaks: leave out clips whose video is in
    another split too. captions: join the caption store. augment: damage done to training batches, drawn anew in every
    epoch.
    """

    task: str
    recipe: str
    dataset: str
    seed: NotNegativeInt = 0
    select_on: Literal["val", "test"] = "val"
    protocol: Literal["honest", "published"] = "honest"
    drop_leaks: bool = False
    captions: bool = True
    stores: StoresConfig = StoresConfig()
    model: ModelConfig = ModelConfig()
    loss: SerializeAsAny[LossConfig] = LossConfig()
    metric: SerializeAsAny[MetricConfig] = MetricConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    augment: StressConfig = StressConfig()

    @model_validator(mode="before")
    @classmethod
    def _own_gates_where_nothing_teaches(cls, given: Any) -> Any:
        """CASTE's gates are its own by default where `loss.correspondence` is 0, as in runs older than it."""
        if not isinstance(given, dict):
            return given
        loss, model = given.get("loss", {}), given.get("model", {})
        weight = loss.get("correspondence") if isinstance(loss, dict) else loss.correspondence
        if weight or not isinstance(model, dict):
            return given
        own = {"adapters": {"caste": {"shared_agreement": False}}}
        adapters = model.get("adapters", {})
        if not isinstance(adapters, dict) or not isinstance(adapters.get("caste", {}), dict):
            return given
        return {**given, "model": deep_merge(own, model)}

    @model_validator(mode="after")
    def _captions_where_needed(self) -> RunConfig:
        if self.model.modalities == "both" and self.model.adapters.case.enabled and not self.captions:
            raise ValueError(
                "model.adapters.case.enabled is true, but captions is false; allowed: captions true, or CASE off"
            )
        return self
