"""CLAP's audio tower: the stages of HTS-AT, its final norm, and the way into the space shared with text.

The same network as the AudioSet HTS-AT, so it is built on `Htsat`; only the front end differs (48 kHz, 10 ms hop).
Feature fusion acts on sound longer than the network's window only, which a segment never is: its weights are read past.
Shapes: `N` windows, `L` tokens, `C` channels, `D` channels of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.pipeline.backbones.htsat.network import Htsat, HtsatConfig
from caeav.pipeline.backbones.htsat.checkpoint import FILTERS, our_state
from caeav.pipeline.backbones.htsat.frontend import mel_weights
from caeav.pipeline.backbones.weights.load import load_checked

SHARED_CHANNELS = 512


class ClapAudio(nn.Module):
    """Windows of sound to the tokens of every stage, to the normed last ones, and to one vector beside texts'."""

    def __init__(self, config: HtsatConfig, shared: int = SHARED_CHANNELS) -> None:
        super().__init__()
        channels = config.channels * 2 ** (len(config.depths) - 1)
        self.trunk = Htsat(config)
        self.norm = nn.LayerNorm(channels)
        self.projection = nn.Sequential(nn.Linear(channels, shared), nn.ReLU(), nn.Linear(shared, shared))

    def forward(self, windows: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """`[N, samples]` -> tokens `[N, L, C]` of every stage, the last of them normed, `[N, D]` of length 1."""
        stages = self.trunk(windows)
        normed = self.norm(stages[-1])
        return stages, normed, F.normalize(self.projection(normed.mean(dim=1)), dim=-1)


def fill_clap_audio(tower: ClapAudio, published: Mapping[str, Tensor], source: str) -> None:
    """Fill the tower from tensors under the names of laion-clap's `audio_branch` (and `audio_projection.*`).

    A fused checkpoint stores mel filters that its package does not use; those of the settings take their place.
    Raises `WeightsError` for anything missing, unexpected or of another network; nothing is filled then.
    """
    own = {name: x for name, x in published.items() if name.startswith(("norm.", "audio_projection."))}
    trunk = {name: x for name, x in published.items() if name not in own}
    sound = tower.trunk.config.sound
    if sound.mel == "htk" or FILTERS not in trunk:
        trunk[FILTERS] = mel_weights(sound)
    state = {f"trunk.{name}": x for name, x in our_state(tower.trunk, trunk, source).items()}
    state |= {name.removeprefix("audio_"): x for name, x in own.items()}
    load_checked(tower, state, source=source)
