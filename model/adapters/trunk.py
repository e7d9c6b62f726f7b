"""The trunk a configuration asks for, whatever its placement; every task's model is built on one.

What of a store's taps a placement reads; the rest is never loaded.

| placement | reads |
|---|---|
| `ladder` | every tap but raw inputs |
| `inject`, `inject_from: stageK`, K > 1 | `visual.stage{K-1}` and `audio.stage{K-1}`, else raw inputs |
| `inject`, `inject_from: stage1` | raw inputs: `visual.frames` and `audio.windows` |
"""

from __future__ import annotations

from dataclasses import replace

from caeav.model.adapters.batch import InputSpec
from caeav.model.adapters.build import AdapterError
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.inject import FRAMES, WINDOWS, InjectTrunk, first_stage
from caeav.model.adapters.ladder import LadderTrunk
from caeav.model.adapters.live import Live

RAW = (FRAMES, WINDOWS)
STAGES = range(1, 5)


def needed(spec: InputSpec, config: AdapterConfig, *, keeps_stages: bool = False) -> InputSpec:
    """The part of `spec` that the configured placement reads; raises `AdapterError` saying what the stores allow.

    `keeps_stages`: the head looks at the pictures of all stages, so those before the start are read too.
    """
    if config.placement == "ladder":
        names = {tap.name for tap in (*spec.visual, *spec.audio)} - {*RAW}
        wanted = _only(spec, names)
        if not wanted.visual or not wanted.audio:
            raise AdapterError(
                "the ladder needs cached stages of both modalities, the stores hold raw frames or sound only",
                hint="caeav train --inject-from stage1 runs the backbones live; or extract their stages",
            )
        return wanted
    found = _start(spec, first_stage(config))
    if found is None:
        allowed = [f"stage{k}" for k in STAGES if _start(spec, k) is not None]
        start = " and ".join(_below(first_stage(config)))
        raise AdapterError(
            f"inject_from {config.inject_from} starts from {start}; the stores hold "
            f"{', '.join(tap.name for tap in (*spec.visual, *spec.audio))}",
            hint=f"set inject_from to {' or '.join(allowed)}, which these stores allow"
            if allowed
            else f"extract a store with these taps, or with {' and '.join(RAW)}, which allow any inject_from",
        )
    before = range(1, first_stage(config)) if keeps_stages and found != RAW else ()
    return _only(spec, {*found, *(f"visual.stage{k}" for k in before)})


def _start(spec: InputSpec, first: int) -> tuple[str, str] | None:
    """The pair of taps that a network with adapters from stage `first` on starts from; None: there is none."""
    offered = {tap.name for tap in (*spec.visual, *spec.audio)}
    return next((pair for pair in dict.fromkeys((_below(first), RAW)) if {*pair} <= offered), None)


def _below(first: int) -> tuple[str, str]:
    return RAW if first == 1 else (f"visual.stage{first - 1}", f"audio.stage{first - 1}")


def _only(spec: InputSpec, names: set[str]) -> InputSpec:
    return replace(
        spec,
        visual=tuple(tap for tap in spec.visual if tap.name in names),
        audio=tuple(tap for tap in spec.audio if tap.name in names),
    )


Trunk = LadderTrunk | InjectTrunk


def build_trunk(spec: InputSpec, config: AdapterConfig, live: Live | None = None) -> Trunk:
    """Adapters beside cached taps, or inside `live`, which only the inject placement needs.

    `visual_channels` and `audio_channels` of the result are the widths a head sees. Raises `AdapterError`.
    """
    if config.placement == "ladder":
        return LadderTrunk(spec, config)
    if live is None:
        raise AdapterError(
            "placement is inject, but no live backbones were given",
            hint="set adapters.placement to ladder, or build the model with the backbones of the token store",
        )
    return InjectTrunk(spec, live, config)
