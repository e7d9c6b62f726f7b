"""The `hts-at` audio backbone: the AudioSet network of the reference, with its stages as taps.

The default settings are the reference's own front end (32 kHz, one-second windows repeated to 10 s); its AVS code
repeats to 5 s, the preset `reference-avs`. The weights are a file of HTS-AT's authors; no hub holds them.
Taps `L x C`: four stages of 4096 x 96, 1024 x 192, 256 x 384, 64 x 768.
"""

from __future__ import annotations

from typing import Any

from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.htsat.base import SETTINGS, HtsatBackbone, front_end_settings, parse_front_end
from caeav.pipeline.backbones.htsat.checkpoint import fill_htsat, image_size_of, network_sizes, read_state
from caeav.pipeline.backbones.htsat.frontend import FrontEnd
from caeav.pipeline.backbones.htsat.network import Htsat, HtsatConfig
from caeav.pipeline.backbones.weights.find import find_weights
from caeav.pipeline.backbones.weights.load import seeded

ORIGIN = "its authors: the repository RetroCirce/HTS-Audio-Transformer (its README links the folder of checkpoints)"
DEFAULTS: dict[str, Any] = {**front_end_settings(FrontEnd()), **SETTINGS}
PRESETS: dict[str, dict[str, Any]] = {"reference": {}, "reference-avs": {"window_s": 5}}


class HtsAt(HtsatBackbone):
    """HTS-AT trained on AudioSet; the checkpoint decides the network's size."""

    def __init__(self, choice: ModelChoice) -> None:
        settings = choice.resolve(DEFAULTS, PRESETS)
        weights = find_weights(
            choice, default="", wants=(find_facts("hts-at", "audio backbone").file,), origin=ORIGIN
        )
        state = {} if weights.seed is not None else read_state(weights.files[0], weights.part)
        front_end = parse_front_end(choice.name, settings, image_size_of(state))
        sizes = network_sizes(state, weights.source) if state else {}
        with seeded(weights):
            network = Htsat(HtsatConfig(front_end=front_end, **sizes))
        if state:
            fill_htsat(network, state, weights.source)
        super().__init__(choice.name, network, weights, settings)
