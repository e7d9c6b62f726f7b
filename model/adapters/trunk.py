"""The trunk a configuration asks for, whatever its placement; every task's model is built on one."""

from __future__ import annotations

from caeav.model.adapters.build import AdapterError
from caeav.model.adapters.config import AdapterConfig
from caeav.model.adapters.batch import InputSpec
from caeav.model.adapters.inject import InjectTrunk
from caeav.model.adapters.ladder import LadderTrunk
from caeav.model.adapters.live import Live

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
