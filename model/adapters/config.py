"""Settings of the adapters, validated as one. Every part can be switched off by `enabled: false`.

Defaults follow the reference's AVE settings; where they do not, the text says so. `variant` (what is computed) and
`preset` (how large it is) are bundles of defaults, `FIXES` and `SIZES` below. Any single setting can be given beside
them and then holds, which is how each fix is ablated:
`--set model.adapters.variant=revised --set model.adapters.case.gate_gradient=false`. docs/VARIANTS.md tells what the
published method does at each place, what the revision does, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TemporalMode = Literal["dwconv", "tsm", "tsm+dw"]
UniAttention = Literal["none", "gated", "frame", "latent"]
Variant = Literal["reference", "revised"]
Preset = Literal["reference", "lite"]
LatentStart = Literal["uniform", "zeros"]

FIXES: dict[str, tuple[Any, Any]] = {
    "case.selective_injection": (False, True),
    "case.gate_gradient": (False, True),
    "case.zero_start": (True, False),
    "case.mask_padding": (False, True),
    "avmoe.scaled_attention": (False, True),
    "avmoe.nonlinear_uni": (False, True),
    "avmoe.uniform_target": (False, True),
    "gate_init": (0.0, 0.1),
    "caste.shared_agreement": (False, True),
}
"""Setting -> its value in the variant `reference`, its value in `revised`."""

PEER_FIXES: dict[str, tuple[Any, Any]] = {
    "lavish.scaled_attention": (False, True),
    "dg_sct.scaled_attention": (False, True),
    "dg_sct.spatial_last": (False, True),
}
"""The same for the adapters of other methods, LAVISH and DG-SCT."""

_AS_AVS = {"latent_start": "zeros", "gate_first": True, "pre_norm": False, "out_gate_audio": False}
COPIES: dict[str, dict[str, dict[str, Any]]] = {
    "lavish": {"ave": {}, "avqa": {"latent_start": "zeros"}, "avs": _AS_AVS},
    "dg_sct": {
        "ave": {},
        "avqa": {"latent_start": "zeros", "out_gate_audio": False},
        "s4": {**_AS_AVS, "context_map": "resize"},
        "ms3": _AS_AVS,
    },
}
"""Peer -> copy of its published code -> settings in which that copy differs from the one for AVE; in the variant
`reference` they are the defaults of a configuration that names the copy (`task_copy`)."""

SIZES: dict[str, tuple[Any, Any]] = {
    "caste.map_rank": (0, 48),
    "caste.gate_dim": (128, 64),
    "avmoe.token_rank": (0, 16),
    "avmoe.channel_rank": (0, 32),
    "avmoe.router_width": (128, 32),
    "avmoe.reduction": (8, 16),
    "case.width": (0, 192),
    "case.proj_dim": (512, 256),
    "lavish.token_rank": (0, 16),
    "lavish.channel_rank": (0, 32),
    "dg_sct.token_rank": (0, 16),
    "dg_sct.channel_rank": (0, 32),
}
"""Setting -> its value in the preset `reference`, its value in `lite`."""


def deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of both; where both have a value, that of `over` holds."""
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _bundle(settings: Mapping[str, tuple[Any, Any]], which: int) -> dict[str, Any]:
    bundle: dict[str, Any] = {}
    for path, values in settings.items():
        part, _, name = path.rpartition(".")
        bundle = deep_merge(bundle, {part: {name: values[which]}} if part else {name: values[which]})
    return bundle


VARIANTS: dict[str, dict[str, Any]] = {
    "reference": _bundle(FIXES | PEER_FIXES, 0),
    "revised": _bundle(FIXES | PEER_FIXES, 1),
}
PRESETS: dict[str, dict[str, Any]] = {"reference": _bundle(SIZES, 0), "lite": _bundle(SIZES, 1)}


class StrictConfig(BaseModel):
    """Refuses unknown keys, infinity and NaN; its values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Rank = Annotated[int, Field(ge=0)]


def bottleneck_width(channels: int, reduction: int, groups: int) -> int:
    """Width of an adapter's bottleneck: the reference's where that divides into groups, never below `groups`."""
    return max(groups, channels // reduction // groups * groups)


class CasteConfig(StrictConfig):
    """CASTE, one for each modality in every stage.

    enabled: whether there is CASTE. topk_ratio: share of the tokens that are enriched. gate_dim: width of the agreement
    gate. temporal: how tokens mix over time (see `TemporalEnrichment`). map_rank: rank of the four `C x C` maps, 0 for
    full ones. shared_agreement: every adapter's gate is the one agreement of `Correspondence` (ladder only) instead of
    one of its own. agreement_dropout: on what it reads. agreement_gradient: whether the task's losses teach it, too.
    agreement_lr_factor: how many times as fast as its maps its scale and shift learn.
    """

    enabled: bool = True
    topk_ratio: Ratio = 0.3
    gate_dim: Annotated[int, Field(ge=2)] = 128
    temporal: TemporalMode = "dwconv"
    map_rank: Rank = 0
    shared_agreement: bool = False
    agreement_dropout: Rate = 0.5
    agreement_gradient: bool = False
    agreement_lr_factor: Annotated[float, Field(gt=0)] = 1.0


class MoeConfig(StrictConfig):
    """AVMoE, two pairs (p1, p2) in every stage that is not skipped.

    enabled: whether there is AVMoE. cross_experts, uni_experts: experts that read the other modality, and those that
    read their own alone. uni_attention: of the latter over their tokens: none, or one of the published kinds. groups:
    of the grouped maps inside the experts. latents: tokens through which an expert reads the other modality.
    batch_norm, pre_norm, post_norm: the norms inside, before and after an expert. out_gate_visual, out_gate_audio: a
    learnt gate, at 0 at first, on what is added to each modality. reduction: the bottleneck's width is channels //
    reduction, in whole groups. num_skip: every num_skip-th stage goes without AVMoE; 1 (our default) skips none, the
    reference's AVE setting is 2. router_noise: noise on the router's logits in training (AVS: 0.01). token_rank,
    channel_rank: ranks of the maps that bring the other modality to this one's tokens and channels, 0 for full ones.
    router_width: hidden width of the router. scaled_attention, nonlinear_uni, uniform_target: see docs/VARIANTS.md.
    """

    enabled: bool = True
    cross_experts: Annotated[int, Field(ge=0)] = 1
    uni_experts: Annotated[int, Field(ge=0)] = 1
    uni_attention: UniAttention = "none"
    reduction: Count = 8
    groups: Count = 2
    latents: Count = 32
    batch_norm: bool = True
    pre_norm: bool = True
    post_norm: bool = True
    out_gate_visual: bool = True
    out_gate_audio: bool = True
    num_skip: Count = 1
    router_noise: Annotated[float, Field(ge=0)] = 0.0
    token_rank: Rank = 0
    channel_rank: Rank = 0
    router_width: Count = 128
    scaled_attention: bool = False
    nonlinear_uni: bool = False
    uniform_target: bool = False

    def bottleneck(self, channels: int) -> int:
        """Bottleneck width for `channels`."""
        return bottleneck_width(channels, self.reduction, self.groups)

    def skips(self, stage: int) -> bool:
        """Whether the stage with this number, from 0 at the shallow end, goes without AVMoE."""
        return self.num_skip > 1 and (stage + 1) % self.num_skip == 0


class LavishConfig(StrictConfig):
    """LAVISH's adapters, two pairs (p1, p2) in every stage, in place of AVMoE.

    enabled: whether there are any. task_copy: which copy of the published code the variant `reference` follows
    (`COPIES`). groups: of the grouped maps inside. reduction: the bottleneck's width is channels // reduction, in whole
    groups. latents: how many stand between the two token sets. latent_start: `uniform` in 0..1, or `zeros`. batch_norm,
    pre_norm, post_norm: norms in, before and behind the bottleneck. out_gate_visual, out_gate_audio: a gate that starts
    at 0 on what an adapter adds. gate_first: the output gate comes before the last norm. scaled_attention: products of
    the latents' attention are divided by sqrt(C). token_rank, channel_rank: as in AVMoE; not the published method.
    docs/VARIANTS.md has the reasons.
    """

    enabled: bool = False
    task_copy: Literal["ave", "avqa", "avs"] = "ave"
    reduction: Count = 8
    groups: Count = 2
    latents: Count = 2
    latent_start: LatentStart = "uniform"
    batch_norm: bool = True
    pre_norm: bool = True
    post_norm: bool = True
    out_gate_visual: bool = True
    out_gate_audio: bool = True
    gate_first: bool = False
    scaled_attention: bool = False
    token_rank: Rank = 0
    channel_rank: Rank = 0

    def bottleneck(self, channels: int) -> int:
        """Bottleneck width for `channels`."""
        return bottleneck_width(channels, self.reduction, self.groups)


class DgSctConfig(LavishConfig):
    """DG-SCT's adapters, likewise: LAVISH's with guidance of channels and places, whose last maps pool the tokens.

    alpha, beta, gamma: weights of the channel, spatial and temporal terms; the last, 0 by default, is of the few-shot
    copy. context_map: `linear`, or `resize` the other modality's square grid. spatial_last: see docs/VARIANTS.md.
    """

    task_copy: Literal["ave", "avqa", "s4", "ms3"] = "ave"  # type: ignore[assignment]
    latents: Count = 32
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.3
    beta: Annotated[float, Field(ge=0)] = 0.05
    gamma: Annotated[float, Field(ge=0)] = 0.0
    context_map: Literal["linear", "resize"] = "linear"
    spatial_last: bool = False


class CaseConfig(StrictConfig):
    """CASE with caption mapper and caption adapters, after the last stage; needs captions of both modalities.

    enabled: whether there is CASE. topk_ratio: share of the tokens that captions guide. dropout: on what its attentions
    give. proj_dim: width of the space in which captions and modalities are compared. heads: of CASE's attentions and of
    the mapper. caption_bottleneck: inner width of the caption adapters. weight_dropout: on attention weights. width:
    the largest width inside, between a map down and a map up; 0 for the inputs' own widths. mask_padding,
    selective_injection, gate_gradient, zero_start: see docs/VARIANTS.md.
    """

    enabled: bool = True
    proj_dim: Count = 512
    heads: Count = 8
    topk_ratio: Ratio = 0.3
    caption_bottleneck: Count = 48
    weight_dropout: Rate = 0.1
    dropout: Rate = 0.2
    width: Annotated[int, Field(ge=0)] = 0
    mask_padding: bool = False
    selective_injection: bool = False
    gate_gradient: bool = False
    zero_start: bool = True


EXCHANGES = ("avmoe", "lavish", "dg_sct")


class LadderConfig(StrictConfig):
    """The ladder's own maps. rank: of the map that carries a stage's change to the next (`LowRankMerge`)."""

    rank: Count = 32


class InjectConfig(StrictConfig):
    """Adapters inside the live backbones. Both switches reproduce the reference.

    frozen_train_mode: run the frozen backbones in training mode while training, so that their stochastic depth,
    spectrogram augmentation and batch statistics act. discard_frozen_audio: the reference's AVVP code drops what a
    frozen audio block computes and goes on with its (enriched) input.
    """

    frozen_train_mode: bool = False
    discard_frozen_audio: bool = False


class AdapterConfig(StrictConfig):
    """All adapters of one model.

    variant: the published method as it is (`reference`) or with its defects fixed (`revised`). preset: the published
    sizes, or `lite` ones for large backbones. Both set defaults of single settings (`FIXES`, `SIZES`); the resolved
    configuration names every one of them. placement: beside cached taps (`ladder`) or inside the live backbones
    (`inject`). inject_from: the first stage with adapters; the stages before it are the frozen backbone's and are
    replayed from its cached taps. gate_init: start of the inner gates (CASTE's two enrichment gammas, the experts'
    attention gates). The outer gates always start at 0, so that nothing changes at first; with inner gates at 0 too
    (the reference) an enrichment learns only after its outer gate has opened.
    """

    variant: Variant = "reference"
    preset: Preset = "reference"
    caste: CasteConfig = CasteConfig()
    avmoe: MoeConfig = MoeConfig()
    lavish: LavishConfig = LavishConfig()
    dg_sct: DgSctConfig = DgSctConfig()
    case: CaseConfig = CaseConfig()
    placement: Literal["ladder", "inject"] = "ladder"
    inject_from: Literal["stage1", "stage2", "stage3", "stage4"] = "stage1"
    ladder: LadderConfig = LadderConfig()
    inject: InjectConfig = InjectConfig()
    gate_init: float = 0.0

    @model_validator(mode="before")
    @classmethod
    def _bundles(cls, given: Any) -> Any:
        """Merge the given settings into the defaults that variant and preset set."""
        if not isinstance(given, dict):
            return given
        bundles = [
            VARIANTS.get(given.get("variant", "reference")),
            PRESETS.get(given.get("preset", "reference")),
        ]
        if given.get("variant", "reference") == "reference":
            bundles.append(_of_copies(given))
        defaults: dict[str, Any] = {}
        for bundle in bundles:  # None: an unknown name, which the field itself refuses
            defaults = deep_merge(defaults, bundle or {})
        if given.get("placement") == "inject":  # the deepest taps are not known before the first adapter
            defaults = deep_merge(defaults, {"caste": {"shared_agreement": False}})
        plain = {
            name: part.model_dump(exclude_unset=True) if isinstance(part, StrictConfig) else part
            for name, part in given.items()
        }
        return deep_merge(defaults, plain)

    @model_validator(mode="after")
    def _one_exchange(self) -> AdapterConfig:
        chosen = self.exchanges()
        if len(chosen) > 1:
            raise ValueError(
                f"{' and '.join(f'{name}.enabled' for name in chosen)} are true; allowed: one of them, set the others "
                "to false"
            )
        return self

    def exchanges(self) -> list[str]:
        """The enabled kinds of pairs that let the modalities read each other: at most one."""
        return [name for name in EXCHANGES if getattr(self, name).enabled]

    def pairs_at(self, stage: int) -> bool:
        """Whether the stage with this number, from 0 at the shallow end, has pairs."""
        chosen = self.exchanges()
        return bool(chosen) and not (chosen == ["avmoe"] and self.avmoe.skips(stage))

    def off(self) -> AdapterConfig:
        """These settings with every adapter switched off."""
        parts = ("caste", "case", *EXCHANGES)
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update={"enabled": False}) for name in parts}
        )


def _of_copies(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the copies that `given` names differ in."""
    found = {}
    for peer, copies in COPIES.items():
        part = given.get(peer, {})
        name = part.get("task_copy") if isinstance(part, Mapping) else getattr(part, "task_copy", None)
        found[peer] = copies.get(str(name), {})
    return found
