"""The trunk that a configuration asks for, and the taps it reads; every task's model is built on one.

Taps that the placement does not read are never loaded:

| placement | reads |
|---|---|
| `ladder` | every tap but raw inputs |
| `inject`, `inject_from: stageK`, K > 1 | `visual.stage{K-1}` and `audio.stage{K-1}`, else raw inputs |
| `inject`, `inject_from: stage1` | raw inputs: `visual.frames` and `audio.windows` |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from caeav.model.adapters.batch import AdapterError, InputSpec
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.inject import FRAMES, WINDOWS, InjectTrunk, first_stage
from caeav.model.adapters.ladder import LadderTrunk
from caeav.model.adapters.live import Live

RAW = (FRAMES, WINDOWS)
STAGES = range(1, 5)

Trunk = LadderTrunk | InjectTrunk


def build_trunk(spec: InputSpec, config: AdapterConfig, live: Live | None = None) -> Trunk:
    """Adapters beside cached taps, or inside `live`, which only the inject placement needs.

    `visual_channels` and `audio_channels` of the result are the widths a head gets. Raises `AdapterError`.
    """
    if config.placement == "ladder":
        return LadderTrunk(spec, config)
    if live is None:
        raise AdapterError(
            "placement is inject, but no live backbones were given",
            hint="set adapters.placement to ladder, or build the model with the backbones of the token store",
        )
    return InjectTrunk(spec, live, config)


def shares_agreement(trunk: Trunk) -> bool:
    """Whether the trunk's CASTE adapters share one agreement, so that its output has a `match`."""
    return isinstance(trunk, LadderTrunk) and trunk.correspondence is not None


def required_inputs(spec: InputSpec, config: AdapterConfig, *, keeps_stages: bool = False) -> InputSpec:
    """The part of `spec` that the configured placement reads; raises `AdapterError` saying what the stores allow.

    `keeps_stages`: the head reads the visual tokens of all stages, so the cached ones before the start are read too.
    """
    offered = [tap.name for tap in (*spec.visual, *spec.audio)]
    if config.placement == "ladder":
        required = _only(spec, {*offered} - {*RAW})
        if not required.visual or not required.audio:
            raise AdapterError(
                "the ladder needs cached stages of both modalities, the stores hold raw frames or audio only",
                hint="caeav train --inject-from stage1 runs the backbones live; or extract their stages",
            )
        return required
    first = first_stage(config)
    start = _start(offered, first)
    if start is None:
        allowed = [f"stage{k}" for k in STAGES if _start(offered, k) is not None]
        raise AdapterError(
            f"inject_from {config.inject_from} starts from {' and '.join(_below(first))}; the stores hold "
            f"{', '.join(offered)}",
            hint=f"set inject_from to {' or '.join(allowed)}, which these stores allow"
            if allowed
            else f"extract a store with these taps, or with {' and '.join(RAW)}, which allow any inject_from",
        )
    before = range(1, first) if keeps_stages and start != RAW else ()
    return _only(spec, {*start, *(f"visual.stage{k}" for k in before)})


def _start(offered: Sequence[str], first: int) -> tuple[str, str] | None:
    """The pair of taps that a network with adapters from stage `first` on starts from, None when there is none."""
    return next((pair for pair in (_below(first), RAW) if {*pair} <= {*offered}), None)


def _below(first: int) -> tuple[str, str]:
    return RAW if first == 1 else (f"visual.stage{first - 1}", f"audio.stage{first - 1}")


def _only(spec: InputSpec, names: set[str]) -> InputSpec:
    return replace(
        spec,
        visual=tuple(tap for tap in spec.visual if tap.name in names),
        audio=tuple(tap for tap in spec.audio if tap.name in names),
    )
