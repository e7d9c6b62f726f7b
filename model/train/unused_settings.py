"""Settings that another setting makes useless: refused when a user gives one.

A setting is refused only if a user gave it and it changes a value: presets and bundles may hold unused settings, and
run folders always open. Settings of a part that is switched off (`enabled: false`) are allowed, so that one file suits
presets with and without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from pydantic import ValidationError

from caeav.model.tasks.base import TASKS
from caeav.model.tasks.config import RunConfig

MISSING = object()


class Unused(NamedTuple):
    """The settings and sections at `paths` have no effect in a configuration for which `when` holds, because `why`."""

    paths: tuple[str, ...]
    when: Callable[[Any], bool]
    why: str


class Useless(NamedTuple):
    """A given setting without effect: where it is, its value by preset and defaults alone, and the fault in words."""

    path: str
    otherwise: Any
    fault: str


ADAPTERS, MOE, HEAD = "model.adapters.", "model.adapters.avmoe.", "model.head."
CASTE = "model.adapters.caste."
PROBE = "model.probe."


def _no_latents(moe: Any) -> bool:
    return not moe.cross_experts and not (moe.uni_experts and moe.uni_attention == "latent")


def _nothing_to_scale(moe: Any) -> bool:
    return not moe.cross_experts and not (moe.uni_experts and moe.uni_attention in ("latent", "gated"))


def _of_peer(name: str) -> tuple[Unused, ...]:
    """Settings of LAVISH's or DG-SCT's adapters that others make useless."""
    at = f"{ADAPTERS}{name}."
    return (
        Unused(
            (at + "task_copy",),
            lambda c: c.model.adapters.variant == "revised",
            f"{ADAPTERS}variant is revised, which follows none of the published copies",
        ),
        Unused(
            (at + "channel_rank",),
            lambda c: getattr(c.model.adapters, name).token_rank == 0,
            f"{at}token_rank is 0; the other modality then comes in by full maps",
        ),
        Unused(
            (at + "gate_first",),
            lambda c: not getattr(c.model.adapters, name).post_norm,
            f"{at}post_norm is false: there is no norm for the gate to come before",
        ),
    )


EVERYWHERE = (
    *_of_peer("lavish"),
    *_of_peer("dg_sct"),
    Unused(
        (ADAPTERS + "dg_sct.token_rank", ADAPTERS + "dg_sct.channel_rank"),
        lambda c: c.model.adapters.dg_sct.context_map == "resize",
        f"{ADAPTERS}dg_sct.context_map is resize: there is no token map",
    ),
    Unused((PROBE + "hidden",), lambda c: c.model.probe.kind == "linear", f"{PROBE}kind is linear"),
    Unused(
        (ADAPTERS + "inject_from", ADAPTERS + "inject"),
        lambda c: c.model.adapters.placement == "ladder",
        "model.adapters.placement is ladder; --inject-from STAGE sets both",
    ),
    Unused(
        (ADAPTERS + "ladder",),
        lambda c: c.model.adapters.placement == "inject",
        "model.adapters.placement is inject",
    ),
    Unused(
        (CASTE + "shared_agreement",),
        lambda c: c.model.adapters.placement == "inject",
        "model.adapters.placement is inject, where every gate is its adapter's own",
    ),
    Unused(
        tuple(CASTE + name for name in ("agreement_dropout", "agreement_gradient", "agreement_lr_factor")),
        lambda c: not c.model.adapters.caste.shared_agreement or c.model.adapters.placement == "inject",
        f"{CASTE}shared_agreement is false: every gate is its adapter's own",
    ),
    Unused(
        (MOE + "channel_rank",),
        lambda c: c.model.adapters.avmoe.token_rank == 0,
        f"{MOE}token_rank is 0; the other modality then comes in by full maps",
    ),
    Unused(
        (MOE + "latents",),
        lambda c: _no_latents(c.model.adapters.avmoe),
        f"no expert has latents: {MOE}cross_experts is 0",
    ),
    Unused(
        (MOE + "uni_attention", MOE + "nonlinear_uni"),
        lambda c: c.model.adapters.avmoe.uni_experts == 0,
        f"{MOE}uni_experts is 0",
    ),
    Unused(
        (MOE + "scaled_attention",),
        lambda c: _nothing_to_scale(c.model.adapters.avmoe),
        f"no expert has an attention to scale: {MOE}cross_experts is 0",
    ),
    Unused(
        (MOE + "uniform_target",),
        lambda c: c.loss.load_balance == 0,
        "loss.load_balance is 0",
    ),
    Unused(
        ("schedule.step_epochs", "schedule.step_factor"),
        lambda c: c.schedule.name != "step",
        "schedule.name is not step",
    ),
    Unused(("schedule.floor",), lambda c: c.schedule.name != "cosine", "schedule.name is not cosine"),
    Unused(
        ("training.samples_per_clip",),
        lambda c: TASKS[c.task].sample_noun == "clip",
        "a clip is one sample in this task",
    ),
    Unused(("stores.captions",), lambda c: not c.captions, "captions is false"),
)
WEAK = Unused(
    tuple(HEAD + name for name in ("topk_frames", "score_weight", "interaction", "squashed_gate")),
    lambda c: True,
    "the head for weak labels has no such part",
)
OWN_SECONDS = Unused(
    tuple(
        HEAD + name
        for name in (
            "visual_in",
            "audio_in",
            "hidden",
            "heads",
            "encoder_layers",
            "decoder_layers",
            "dropout",
            "gamma",
        )
    ),
    lambda c: not c.model.head.context,
    f"{HEAD}context is false",
)
UNTOLD = Unused(
    (HEAD + "reads_agreement",),
    lambda c: c.model.head.reads_agreement and not c.model.adapters.caste.shared_agreement,
    f"{CASTE}shared_agreement is false: there is no one agreement to read",
)
MASKED = Unused(("loss.masked_kind",), lambda c: c.loss.masked == 0, "loss.masked is 0")
OF_TASK: Mapping[str, tuple[Unused, ...]] = {
    "ave-weak": (WEAK, OWN_SECONDS, UNTOLD),
    "ave": (Unused((HEAD + "squashed_gate",), lambda c: c.loss.gate == 0, "loss.gate is 0"), UNTOLD),
    "avvp": (
        Unused((HEAD + "gated_audio",), lambda c: c.model.head.gates == 0, f"{HEAD}gates is 0"),
        Unused(
            (HEAD + "bounded_attention",),
            lambda c: c.model.head.own_seconds,
            f"{HEAD}own_seconds is true: seconds have probabilities of their own",
        ),
        Unused(("loss.audio_keep",), lambda c: c.loss.audio == 0, "loss.audio is 0"),
        Unused(("loss.visual_keep",), lambda c: c.loss.visual == 0, "loss.visual is 0"),
    ),
    "avs-s4": (MASKED,),
    "avs-ms3": (MASKED,),
    "avqa": (
        Unused((HEAD + "negatives",), lambda c: c.loss.match == 0, "loss.match is 0"),
        Unused(
            (HEAD + "pad_index",), lambda c: not c.model.head.skip_padding, f"{HEAD}skip_padding is false"
        ),
    ),
}


def without_effect(
    config: RunConfig, values: Mapping[str, Any], preset: Mapping[str, Any]
) -> Iterator[Useless]:
    """The useless settings in `values`, of which `config` was made; `preset`: those no user gave."""
    for unused in (*EVERYWHERE, *OF_TASK.get(config.task, ())):
        if not unused.when(config):
            continue
        for path in (leaf for place in unused.paths for leaf in _leaves(place, values)):
            chosen, otherwise = _at(config.model_dump(), path), _without(config, values, preset, path)
            if chosen != otherwise:
                fault = f"{path}: {chosen!r} has no effect, because {unused.why}; leave it out"
                yield Useless(path, otherwise, fault)


def _without(config: RunConfig, values: Mapping[str, Any], preset: Mapping[str, Any], path: str) -> object:
    """The value at `path` by preset and defaults alone."""
    bare = deepcopy(dict(values))
    *parents, last = path.split(".")
    section = _at(bare, ".".join(parents))
    assert isinstance(section, dict)
    if (own := _at(preset, path)) is MISSING:
        section.pop(last, None)
    else:
        section[last] = own
    try:
        return _at(type(config).model_validate(bare).model_dump(), path)
    except ValidationError:  # the other settings are not valid without this one
        return _at(config.model_dump(), path)


def _leaves(path: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The settings in `values` at or below `path`."""
    held = _at(values, path)
    if isinstance(held, Mapping):
        for name in held:
            yield from _leaves(f"{path}.{name}", values)
    elif held is not MISSING:
        yield path


def _at(values: object, path: str) -> object:
    for name in path.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return MISSING
        values = values[name]
    return values
