"""The `clap` audio backbone: HTS-AT with CLAP's norm and projection, from laion-clap's `.pt` or transformers' folder.

Both forms give the same tokens. The front end is the checkpoint's own: 48 kHz, 10 s; a shorter segment is repeated as
often as it fits whole, then followed by silence (`repeatpad`); Slaney's mel filters, or HTK's for a fused checkpoint.
Samples are rounded to 16 bits, as laion-clap does and transformers does not (preset `transformers`). Feature fusion
acts only on audio longer than the network's window, which a segment never is, so its weights are skipped; transformers
also marks one clip of a fused batch as "longer" at random, which is not done here.
Shapes: `N` windows, `L` tokens, `C` channels, `D` channels of the space shared with texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.clap.checkpoint import FRONT_END_FILES, ClapState, find_clap, read_clap
from caeav.pipeline.backbones.htsat.base import SETTINGS, HtsatBackbone, front_end_settings, parse_front_end
from caeav.pipeline.backbones.htsat.checkpoint import FILTERS, image_size_of, network_sizes, our_state
from caeav.pipeline.backbones.htsat.frontend import FrontEnd, mel_weights
from caeav.pipeline.backbones.htsat.network import Htsat, HtsatConfig
from caeav.pipeline.backbones.weights.find import Weights, WeightsError
from caeav.pipeline.backbones.weights.load import load_checked, seeded
from caeav.pipeline.store.record import Tap

SHARED_CHANNELS = 512
LAION = FrontEnd(
    rate_hz=48_000, fft=1024, hop=480, low_hz=50.0, high_hz=14_000.0, filling="repeatpad", int16=True
)
"""The front end of laion-clap for a checkpoint without fusion."""
PRESETS: dict[str, dict[str, Any]] = {"laion": {}, "transformers": {"int16": False}}
DEFAULTS: dict[str, Any] = dict.fromkeys(front_end_settings(LAION)) | {"int16": LAION.int16} | SETTINGS
"""None: as the checkpoint says."""
_FRONT_NAMES = {
    "rate_hz": "sampling_rate",
    "fft": "fft_window_size",
    "hop": "hop_length",
    "bands": "feature_size",
    "low_hz": "frequency_min",
    "high_hz": "frequency_max",
    "window_s": "max_length_s",
    "filling": "padding",
}


class ClapAudio(HtsatBackbone):
    """CLAP's audio tower; the checkpoint decides its size (tiny, base or large)."""

    def __init__(self, choice: ModelChoice) -> None:
        wanted = choice.resolve(DEFAULTS, PRESETS)
        default = find_facts("clap", "audio backbone").weights
        weights = find_clap(choice, default, FRONT_END_FILES)
        state = None if weights.seed is not None else read_clap(weights, "audio")
        own = front_end_settings(LAION) if state is None else _stated_front_end(state, weights.source)
        settings = wanted | {key: own[key] for key in own if wanted[key] is None}
        if state is None:  # HTSAT-tiny at random
            front_end = parse_front_end(choice.name, settings, LAION.image_size)
            with seeded(weights):
                tower = ClapAudioTower(HtsatConfig(front_end=front_end))
        else:
            tower = _build(choice, settings, state, weights)
        self._tower = tower
        channels = tower.norm.normalized_shape[0]
        tokens = cast(int, tower.trunk.stages[-1].tokens)
        shared = cast(nn.Linear, tower.projection[-1]).out_features
        more = (Tap("audio.norm", tokens, channels), Tap("audio.embedding", 1, shared))
        super().__init__(choice.name, tower.trunk, weights, settings, more)

    def module(self) -> nn.Module:
        """The tower, frozen."""
        return self._tower

    def all_taps(self, windows: Tensor) -> dict[str, Tensor]:
        """Windows `[N, samples]` -> every tap of the tower, `[N, L, C]`."""
        stages, normed, shared = self._tower(windows)
        found = {f"audio.stage{i + 1}": x for i, x in enumerate(stages)}
        return found | {"audio.norm": normed, "audio.embedding": shared.unsqueeze(1)}


def _build(
    choice: ModelChoice, settings: dict[str, Any], state: ClapState, weights: Weights
) -> ClapAudioTower:
    stated = state.audio_config
    for key, only in (
        ("hidden_act", "gelu"),
        ("projection_hidden_act", "relu"),
        ("flatten_patch_embeds", True),
    ):
        if stated.get(key, only) != only:
            raise WeightsError(f"{weights.source}: {key} {stated[key]!r}; only {only!r} is known here")
    image_size = stated.get("spec_size") or image_size_of(state.audio)
    front_end = parse_front_end(choice.name, settings, image_size)
    config = HtsatConfig(front_end=front_end, **network_sizes(state.audio, weights.source))
    try:
        tower = ClapAudioTower(config, shared=state.audio["audio_projection.2.bias"].shape[0])
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{weights.source} holds no audio tower of CLAP: {error}") from error
    fill_clap_audio(tower, state.audio, weights.source)
    return tower


def _stated_front_end(state: ClapState, source: str) -> dict[str, Any]:
    """The front end a checkpoint was made for; raises `WeightsError` for one that is not supported."""
    own = front_end_settings(LAION) | {"mel": "htk" if state.fused else "slaney"}
    stated = state.front_end
    if not stated:
        return own
    own |= {key: stated[theirs] for key, theirs in _FRONT_NAMES.items() if stated.get(theirs) is not None}
    own["mel"] = "htk" if stated.get("truncation") == "fusion" else "slaney"
    if (own["mel"] == "htk") != state.fused:
        raise WeightsError(
            f"{source}: the front end truncates by {stated.get('truncation')!r}, but the network has "
            f"{'' if state.fused else 'no '}fusion",
            hint="the configuration beside the weights belongs to another checkpoint; get the folder again",
        )
    if stated.get("top_db") is not None:
        raise WeightsError(
            f"{source}: top_db {stated['top_db']} is not supported", hint="give a LAION checkpoint"
        )
    return own


class ClapAudioTower(nn.Module):
    """HTS-AT, the norm of its last tokens, and the projection into the space shared with texts."""

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


def fill_clap_audio(tower: ClapAudioTower, published: Mapping[str, Tensor], source: str) -> None:
    """Fill the tower from tensors under the names of laion-clap's `audio_branch` (and `audio_projection.*`).

    A fused checkpoint stores mel filters that its package does not use; those of the settings take their place.
    Raises `WeightsError` for anything missing, unexpected or of another network, and fills nothing then.
    """
    own = {name: x for name, x in published.items() if name.startswith(("norm.", "audio_projection."))}
    trunk = {name: x for name, x in published.items() if name not in own}
    front_end = tower.trunk.config.front_end
    if front_end.mel == "htk" or FILTERS not in trunk:
        trunk[FILTERS] = mel_weights(front_end)
    state = {f"trunk.{name}": x for name, x in our_state(tower.trunk, trunk, source).items()}
    state |= {name.removeprefix("audio_"): x for name, x in own.items()}
    load_checked(tower, state, source=source)
