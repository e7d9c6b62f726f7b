"""Settings that have no effect where they stand, because of another setting: refused when somebody asks for one.

Whole parts that are switched off (`enabled: false`) are not meant: the same settings may be used for recipes with and
without a part. Nor is what a bundle, a recipe or an older run's configuration says. At fault is only what a user gives,
and what would have another value without that; a run's own folder always opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from pydantic import ValidationError

from caeav.model.tasks.base import TASKS
from caeav.model.tasks.config import RunConfig

MISSING = object()


class Idle(NamedTuple):
    """`paths`, single settings or sections, have no effect where `when` is true of a configuration; `why` says why."""

    paths: tuple[str, ...]
    when: Callable[[Any], bool]
    why: str


ADAPTERS, MOE, HEAD = "model.adapters.", "model.adapters.avmoe.", "model.head."


def _no_latents(moe: Any) -> bool:
    return not moe.cross_experts and not (moe.uni_experts and moe.uni_attention == "latent")


def _nothing_to_scale(moe: Any) -> bool:
    return not moe.cross_experts and not (moe.uni_experts and moe.uni_attention in ("latent", "gated"))


EVERYWHERE = (
    Idle(
        (ADAPTERS + "inject_from", ADAPTERS + "inject"),
        lambda c: c.model.adapters.placement == "ladder",
        "model.adapters.placement is ladder; --inject-from STAGE sets both",
    ),
    Idle(
        (ADAPTERS + "ladder",),
        lambda c: c.model.adapters.placement == "inject",
        "model.adapters.placement is inject",
    ),
    Idle(
        (MOE + "channel_rank",),
        lambda c: c.model.adapters.avmoe.token_rank == 0,
        f"{MOE}token_rank is 0; the other modality is then brought here by full maps",
    ),
    Idle(
        (MOE + "latents",),
        lambda c: _no_latents(c.model.adapters.avmoe),
        f"no expert has latents: {MOE}cross_experts is 0",
    ),
    Idle(
        (MOE + "uni_attention", MOE + "nonlinear_uni"),
        lambda c: c.model.adapters.avmoe.uni_experts == 0,
        f"{MOE}uni_experts is 0",
    ),
    Idle(
        (MOE + "scaled_attention",),
        lambda c: _nothing_to_scale(c.model.adapters.avmoe),
        f"no expert has an attention to scale: {MOE}cross_experts is 0",
    ),
    Idle(
        (MOE + "uniform_target",),
        lambda c: c.loss.load_balance == 0,
        "loss.load_balance is 0",
    ),
    Idle(
        ("schedule.step_epochs", "schedule.step_factor"),
        lambda c: c.schedule.name != "step",
        "schedule.name is not step",
    ),
    Idle(("schedule.floor",), lambda c: c.schedule.name != "cosine", "schedule.name is not cosine"),
    Idle(
        ("training.samples_per_clip",),
        lambda c: TASKS[c.task].sample_noun == "clip",
        "a clip is one sample in this task",
    ),
    Idle(("stores.captions",), lambda c: not c.captions, "captions is false"),
)
WEAK = Idle(
    tuple(HEAD + name for name in ("topk_frames", "score_weight", "interaction")),
    lambda c: True,
    "the head for weak labels has no such part",
)
OWN_SECONDS = Idle(
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
MASKED = Idle(("loss.masked_kind",), lambda c: c.loss.masked == 0, "loss.masked is 0")
OF_TASK: Mapping[str, tuple[Idle, ...]] = {
    "ave-weak": (WEAK, OWN_SECONDS),
    "avvp": (
        Idle(
            (HEAD + "bounded_attention",),
            lambda c: c.model.head.own_seconds,
            f"{HEAD}own_seconds is true: seconds have probabilities of their own",
        ),
        Idle(("loss.audio_keep",), lambda c: c.loss.audio == 0, "loss.audio is 0"),
        Idle(("loss.visual_keep",), lambda c: c.loss.visual == 0, "loss.visual is 0"),
    ),
    "avs-s4": (MASKED,),
    "avs-ms3": (MASKED,),
    "avqa": (
        Idle((HEAD + "negatives",), lambda c: c.loss.match == 0, "loss.match is 0"),
        Idle((HEAD + "pad_index",), lambda c: not c.model.head.skip_padding, f"{HEAD}skip_padding is false"),
    ),
}


def without_effect(
    config: RunConfig, values: Mapping[str, Any], packaged: Mapping[str, Any]
) -> Iterator[str]:
    """Faults, one a setting, of a configuration made from `values`, of which `packaged` is what no user gave."""
    for idle in (*EVERYWHERE, *OF_TASK.get(config.task, ())):
        if not idle.when(config):
            continue
        for path in (leaf for place in idle.paths for leaf in _leaves(place, values)):
            asked, else_ = _at(config.model_dump(), path), _without(config, values, packaged, path)
            if asked != else_:
                yield f"{path}: {asked!r} has no effect, because {idle.why}; leave it away"


def _without(config: RunConfig, values: Mapping[str, Any], packaged: Mapping[str, Any], path: str) -> object:
    """What would stand at `path` had nobody but the packaged recipe, or a default, said so."""
    bare = deepcopy(dict(values))
    *parents, last = path.split(".")
    section = _at(bare, ".".join(parents))
    assert isinstance(section, dict)
    if (own := _at(packaged, path)) is MISSING:
        section.pop(last, None)
    else:
        section[last] = own
    try:
        return _at(type(config).model_validate(bare).model_dump(), path)
    except ValidationError:  # it takes both: the setting is part of what holds the others together
        return _at(config.model_dump(), path)


def _leaves(path: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Single settings at or below `path` that `values` holds."""
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
