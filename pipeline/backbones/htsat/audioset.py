"""The `hts-at` audio backbone: the AudioSet network of the reference, its stages as taps.

Settings stand for the reference's own front end (32 kHz, one-second windows repeated to 10 s); its AVS code repeats to
5 s, the preset `reference-avs`. Weights are a file of HTS-AT's authors; nobody publishes them on a hub.
Shapes: `L` tokens, `C` channels; four stages of 4096 x 96, 1024 x 192, 256 x 384, 64 x 768.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.htsat.base import SETTINGS, SoundBackbone, front_end, sound_config
from caeav.pipeline.backbones.htsat.checkpoint import fill_htsat, network_sizes, picture_side, read_state
from caeav.pipeline.backbones.htsat.frontend import SoundConfig
from caeav.pipeline.backbones.htsat.network import Htsat, HtsatConfig
from caeav.pipeline.backbones.weights.find import Weights, find_weights

FILE = "HTSAT_AudioSet_Saved_1.ckpt"
ORIGIN = "its authors: the repository RetroCirce/HTS-Audio-Transformer (its README links the folder of checkpoints)"
DEFAULTS: dict[str, Any] = {**front_end(SoundConfig()), **SETTINGS}
PRESETS: dict[str, dict[str, Any]] = {"reference": {}, "reference-avs": {"window_s": 5}}


class HtsAt(SoundBackbone):
    """HTS-AT as a frozen store backbone; the checkpoint decides the network's size."""

    def __init__(self, choice: ModelChoice) -> None:
        settings = choice.resolve(DEFAULTS, PRESETS)
        weights = find_weights(choice, default="", wants=(FILE,), origin=ORIGIN)
        network = (
            _random(choice, settings, weights)
            if weights.seed is not None
            else _read(choice, settings, weights)
        )
        super().__init__(choice.name, network, weights, settings)


def _read(choice: ModelChoice, settings: dict[str, Any], weights: Weights) -> Htsat:
    state = read_state(weights.files[0], weights.part)
    sound = sound_config(choice.name, settings, picture_side(state))
    network = Htsat(HtsatConfig(sound=sound, **network_sizes(state, weights.source)))
    fill_htsat(network, state, weights.source)
    return network


def _random(choice: ModelChoice, settings: dict[str, Any], weights: Weights) -> Htsat:
    """The AudioSet network's size with random values, for measurements."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cast(int, weights.seed))
        return Htsat(HtsatConfig(sound=sound_config(choice.name, settings, SoundConfig().picture)))
