"""What one training run is: every choice that decides its result, as one frozen, fully checked value.

Fields only; where values come from (packaged recipe, file, `--set`) and how errors are told is `resolve.py`.
The resolved configuration is written into the run folder and is all that is needed to repeat it. Head, loss weights and
metric settings are the task's own: `config_class` gives the full form for a task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from caeav.model.adapters.config import AdapterConfig, Variant, deep_merge
from caeav.model.tasks.heads import HeadConfig

if TYPE_CHECKING:
    pass


Modalities = Literal["both", "audio", "visual", "neither"]


class ModelConfig(BaseModel):
    """Everything that decides the model's form.

    variant: the published method as it is (`reference`) or with its defects put right (`revised`): the default of
    `adapters.variant` and of the head's own switches (`FIXES` in heads/config.py). modalities: `audio` and `visual`
    are baselines: the other modality's tokens are zeroed in front of the same head, and all adapters are off (each of
    them reads the other modality or a caption of the clip); `neither` leaves what a question alone tells.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    variant: Variant = "reference"
    modalities: Modalities = "both"
    adapters: AdapterConfig = AdapterConfig()
    head: SerializeAsAny[HeadConfig] = HeadConfig()

    @model_validator(mode="before")
    @classmethod
    def _lay_variant(cls, given: Any) -> Any:
        """Let the variant set the defaults of adapters and head; what is given beside it holds."""
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


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Unknown keys are errors, as are numbers without a value; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StoresConfig(Section):
    """Which stores of the data set are joined; empty: the only one there is. taps: the only ones to read of them, all
    when empty; fewer taps are fewer bytes a clip. Lists may be given as one text with commas."""

    tokens: list[str] = Field(default_factory=list)
    captions: str = ""
    taps: list[str] = Field(default_factory=list)

    @field_validator("tokens", "taps", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        return (
            [name.strip() for name in given.split(",") if name.strip()] if isinstance(given, str) else given
        )


class OptimiserConfig(Section):
    """`head_lr_factor` multiplies `lr` for the task head."""

    name: Literal["adam", "adamw"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    head_lr_factor: Positive = 1.0


class ScheduleConfig(Section):
    """Learning rate over time. `step`: times `step_factor` every `step_epochs`; `cosine`: down to `floor` of it."""

    name: Literal["none", "step", "cosine"] = "cosine"
    warmup_epochs: NotNegative = 1.0
    step_epochs: Annotated[int, Field(ge=1)] = 3
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.35
    floor: Annotated[float, Field(ge=0, le=1)] = 0.01


class TrainingConfig(Section):
    """The loop.

    clip_norm: of the gradient; 0 does not clip. early_stop_epochs: epochs without gain; 0 never stops. workers:
    threads that read ahead. preload_mb: a data set up to this size is kept in RAM. checkpoint_every_steps: how often
    the state is saved within an epoch; 0: after epochs only. samples_per_clip: where several samples share a clip
    (questions), up to how many of them follow each other in an epoch; the adapters then run once for them.
    """

    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 16
    samples_per_clip: Annotated[int, Field(ge=1)] = 1
    accumulation: Annotated[int, Field(ge=1)] = 1
    clip_norm: NotNegative = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    early_stop_epochs: Annotated[int, Field(ge=0)] = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    preload_mb: Annotated[int, Field(ge=0)] = 2048
    checkpoint_every_steps: Annotated[int, Field(ge=0)] = 0


class StressConfig(Section):
    """How much inputs are damaged, each kind for itself (docs/ROBUSTNESS.md); zero leaves everything as it is.

    shift: sound later by so many segments than the picture, earlier when negative. The others are the share of clips
    that it happens to: swap: another clip's sound; mute, blind: no sound, no picture; cut: from some segment on
    another clip's picture; caption_drop: no captions; caption_swap: another clip's; caption_empty: captions of the same
    length that say nothing.
    """

    shift: int = 0
    swap: Share = 0.0
    mute: Share = 0.0
    blind: Share = 0.0
    cut: Share = 0.0
    caption_drop: Share = 0.0
    caption_swap: Share = 0.0
    caption_empty: Share = 0.0


class LossConfig(Section):
    """Weights; 0 leaves a loss out. Tasks add their own; these are for every task. `load_balance` is AVMoE's.

    `caption_contrast` (needs CASE), `consistency` (CASE and CASTE) and `selection_entropy` (CASE) are those of
    docs/OBJECTIVES.md; the weight of a part that is switched off has no effect.
    """

    load_balance: NotNegative = 0.0
    caption_contrast: NotNegative = 0.0
    consistency: NotNegative = 0.0
    selection_entropy: NotNegative = 0.0


class RunConfig(Section):
    """One run. `recipe` is the name it was begun with; `captions`: join the caption store; `select_on`: the split
    that chooses the best epoch (`test` marks the run, for comparison with work that did so); `protocol`: `published`
    scores as the compared papers did (protocol.py); `drop_leaks`: leave out clips whose video is in another split too;
    `augment`: damage done to training batches, anew in every epoch."""

    task: str
    recipe: str
    dataset: str
    seed: Annotated[int, Field(ge=0)] = 0
    select_on: Literal["val", "test"] = "val"
    protocol: Literal["honest", "published"] = "honest"
    drop_leaks: bool = False
    captions: bool = True
    stores: StoresConfig = StoresConfig()
    model: ModelConfig = ModelConfig()
    loss: SerializeAsAny[LossConfig] = LossConfig()
    metric: SerializeAsAny[Section] = Section()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig = TrainingConfig()
    augment: StressConfig = StressConfig()

    @model_validator(mode="after")
    def _captions_where_needed(self) -> RunConfig:
        if self.model.modalities == "both" and self.model.adapters.case.enabled and not self.captions:
            raise ValueError(
                "model.adapters.case.enabled is true, but captions is false; allowed: captions true, or CASE off"
            )
        return self
