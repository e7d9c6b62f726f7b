"""The parts of HTS-AT and CLAP without weights: windows, shifts, folding, front ends and names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones.clap import checkpoint as clap_checkpoint
from caeav.pipeline.backbones.clap.audio import LAION, ClapAudioTower, _stated_front_end
from caeav.pipeline.backbones.htsat.base import (
    FRONT_END_SETTINGS,
    HtsatBackbone,
    front_end_settings,
    parse_front_end,
)
from caeav.pipeline.backbones.htsat.frontend import FrontEnd, MelImage, fold, mix_up
from caeav.pipeline.backbones.htsat.network import (
    MASKED,
    HtsatBlock,
    HtsatConfig,
    PatchMerging,
    StochasticDepth,
    from_windows,
    relative_index,
    shift_mask,
    to_windows,
)
from caeav.pipeline.backbones.weights import WeightsError


def bare(kind: Any, **held: Any) -> Any:
    """An object of a class with these attributes, made without calling `__init__`."""
    made = object.__new__(kind)
    vars(made).update(held)
    return made


def grid_of(height: int, width: int) -> Tensor:
    return torch.arange(height * width).reshape(1, -1, 1)


def test_windows_are_cut_row_by_row_and_joined_again() -> None:
    x = grid_of(4, 6)
    found = to_windows(x, (4, 6), 2)
    assert found[:4, :, 0].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19]]
    assert torch.equal(from_windows(found, (4, 6), 2), x)


def test_the_relative_index_depends_on_row_and_column_offsets() -> None:
    places = [(r, c) for r in range(3) for c in range(3)]
    wanted = [[(qr - kr + 2) * 5 + qc - kc + 2 for kr, kc in places] for qr, qc in places]
    assert relative_index(3).tolist() == wanted


def test_the_shift_mask_separates_tokens_that_were_not_neighbours() -> None:
    mask = shift_mask((4, 8), 4, 2)
    assert mask.shape == (2, 16, 16) and set(mask.unique().tolist()) == {MASKED, 0.0}
    rolled = torch.arange(32).reshape(4, 8).roll((-2, -2), (0, 1)).reshape(1, -1, 1)
    for window, held in zip(mask, to_windows(rolled, (4, 8), 4)[..., 0].tolist(), strict=True):
        for i, a in enumerate(held):
            for j, b in enumerate(held):
                near = abs(a // 8 - b // 8) < 4 and abs(a % 8 - b % 8) < 4
                torn = (a // 8 < 2) != (b // 8 < 2) or (abs(a % 8 - b % 8) >= 4)
                assert bool(window[i, j] == 0) == (near and not torn)


@pytest.mark.parametrize(("grid", "window", "shift"), [((4, 4), 4, 0), ((2, 4), 2, 0), ((8, 8), 4, 2)])
def test_a_grid_of_one_window_is_not_shifted(grid: tuple[int, int], window: int, shift: int) -> None:
    block = HtsatBlock(4, 2, grid, window=4, shift=2)
    assert (block.window, block.shift, block.mask is None) == (window, shift, shift == 0)


class IdentityAttention(nn.Module):
    """Attention that leaves every token as it is."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x


def test_a_shifted_block_restores_the_order_of_its_tokens() -> None:
    block = HtsatBlock(4, 2, (8, 8), window=4, shift=2).eval()
    block.attn = IdentityAttention()  # type: ignore[assignment]
    x = torch.randn(1, 64, 4)
    with torch.no_grad():
        there = x + block.norm1(x)
        torch.testing.assert_close(block(x), there + block.mlp(block.norm2(there)))


def test_patch_merging_takes_neighbours_down_then_right() -> None:
    merging = PatchMerging(1, (2, 4))
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    assert merging(grid_of(2, 4)).tolist() == [[[0, 4, 1, 5], [2, 6, 3, 7]]]


def test_stochastic_depth_scales_up_kept_branches() -> None:
    torch.manual_seed(0)
    depth = StochasticDepth(0.75)
    found = depth.train()(torch.ones(400, 2))
    assert set(found.unique().tolist()) == {0.0, 4.0} and 0.15 < (found[:, 0] > 0).float().mean() < 0.35
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(depth.eval()(torch.ones(3)), torch.ones(3))


def test_mix_up_uses_the_reversed_batch_and_time_is_folded_into_an_image() -> None:
    x = torch.tensor([[1.0], [2.0], [4.0]])
    assert mix_up(x, torch.tensor([1.0, 0.5, 0.25])).tolist() == [[1.0], [2.0], [1.75]]
    spectrum = torch.arange(16.0).reshape(1, 1, 8, 2)  # eight frames of two bands
    folded = fold(spectrum, 4)
    assert folded[0, 0].tolist() == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
    stretched = fold(torch.arange(4.0).repeat_interleave(2).reshape(1, 1, 4, 2), 4)
    assert stretched.shape == (1, 1, 4, 4)
    assert stretched[0, 0, 0, 0].item() == pytest.approx(0) and stretched[0, 0, 2, 3].item() == pytest.approx(
        3
    )
    with pytest.raises(ValueError, match="9 spectral frames do not fit an image of 8"):
        fold(torch.zeros(1, 1, 9, 2), 4)


@pytest.mark.parametrize(
    ("wrong", "fine"),
    [
        ({"high_hz": 16_001.0}, {"high_hz": 16_000.0}),
        ({"low_hz": 14_000.0}, {"low_hz": 13_999.0}),
        ({"low_hz": -1.0}, {"low_hz": 0.0}),
        ({"bands": 60}, {"bands": 128}),
        ({"window_s": 0}, {"window_s": 1}),
        ({"hop": True}, {"hop": 1}),
        ({"fft": "x"}, {"fft": 512}),
    ],
)
def test_a_front_end_that_makes_no_spectrogram_is_refused(
    wrong: dict[str, Any], fine: dict[str, Any]
) -> None:
    usual = front_end_settings(FrontEnd())
    assert tuple(usual) == FRONT_END_SETTINGS
    assert parse_front_end("m", {**usual, **fine}, 256) == FrontEnd(**{**usual, **fine})
    with pytest.raises(CaeavError, match=f"settings of m make no mel spectrogram: .*{next(iter(wrong))} "):
        parse_front_end("m", {**usual, **wrong}, 256)
    for key, value in (("mel", "bark"), ("filling", "mirror")):
        with pytest.raises(CaeavError, match=f"setting '{key}' of m is '{value}'"):
            parse_front_end("m", {**usual, key: value}, 256)


def test_audio_longer_than_the_networks_window_is_refused() -> None:
    trunk = SimpleNamespace(config=SimpleNamespace(front_end=FrontEnd(rate_hz=10, window_s=2)))
    backbone = bare(HtsatBackbone, _trunk=trunk, _settings={"taps": ["audio.stage1"]}, _samples=10, name="m")
    assert backbone.prepare(np.zeros((3, 20))).dtype == torch.float32
    with pytest.raises(CaeavError, match=r"segments of 2\.1 s are too long for m, whose window is 2 s"):
        backbone.prepare(np.zeros((3, 21), np.float32))
    with pytest.raises(ValueError, match=r"audio of shape \[20\], expected \[T, samples\]"):
        backbone.prepare(np.zeros(20, np.float32))


def test_claps_embedding_is_projected_from_the_normalised_tokens() -> None:
    front_end = FrontEnd(
        rate_hz=2000, fft=128, hop=40, bands=16, low_hz=50, high_hz=900, image_size=64, window_s=2
    )
    torch.manual_seed(0)
    tower = ClapAudioTower(
        HtsatConfig(front_end=front_end, channels=4, depths=(1, 1), heads=(1, 1), window=4), shared=3
    ).eval()
    nn.init.normal_(tower.norm.bias, std=2)
    with torch.no_grad():
        stages, normed, shared = tower(torch.randn(2, 2000))
        assert [tuple(x.shape) for x in stages] == [(2, 256, 4), (2, 64, 8)]
        assert torch.equal(normed, tower.norm(stages[-1])) and not torch.equal(normed, stages[-1])
        wanted = tower.projection(normed.mean(dim=1))
        torch.testing.assert_close(shared, wanted / wanted.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("fused", [False, True])
def test_claps_front_end_is_what_its_folder_states(fused: bool) -> None:
    state: Any = SimpleNamespace(fused=fused, front_end={})
    assert _stated_front_end(state, "w") == {**front_end_settings(LAION), "mel": "htk" if fused else "slaney"}
    own = "fusion" if fused else "rand_trunc"
    state.front_end = {
        "sampling_rate": 16_000,
        "frequency_max": 8_000,
        "padding": "repeat",
        "truncation": own,
    }
    wanted = {**front_end_settings(LAION), "rate_hz": 16_000, "high_hz": 8_000, "filling": "repeat"}
    assert _stated_front_end(state, "w") == {**wanted, "mel": "htk" if fused else "slaney"}
    state.front_end["top_db"] = 80
    with pytest.raises(WeightsError, match="top_db 80 is not supported"):
        _stated_front_end(state, "w")
    state.front_end = {"truncation": "rand_trunc" if fused else "fusion"}
    with pytest.raises(WeightsError, match=f"the network has {'' if fused else 'no '}fusion"):
        _stated_front_end(state, "w")


def test_spectra_are_normalised_by_the_running_statistics_of_each_band() -> None:
    config = FrontEnd(
        rate_hz=2000, fft=128, hop=40, bands=16, low_hz=50, high_hz=900, image_size=64, window_s=2
    )
    image = MelImage(config).eval()
    assert image.norm.running_mean is not None and image.norm.running_var is not None
    image.norm.running_mean.copy_(-torch.arange(16.0))
    image.norm.running_var.fill_(4.0 - image.norm.eps)
    windows = torch.randn(2, 10200)  # 256 frames, as many as the image holds
    with torch.no_grad():
        wanted = (image.log_mel(windows) + torch.arange(16.0)) / 2
        torch.testing.assert_close(image(windows), fold(wanted.unsqueeze(1), 64))


def clap_of(monkeypatch: pytest.MonkeyPatch, *names: str, tower: Any = "audio") -> Any:
    """A CLAP read from tensors of these names, each holding its position."""
    state = {name: torch.tensor([float(i)]) for i, name in enumerate(names)}
    monkeypatch.setattr(clap_checkpoint, "read_weights", lambda _: state)
    monkeypatch.setattr(clap_checkpoint, "_beside", lambda weights, names: {"audio_config": {"a": names[0]}})
    return clap_checkpoint.read_clap(SimpleNamespace(source="w", folder=None), tower)  # type: ignore[arg-type]


def test_both_formats_of_clap_are_read_under_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    laion = clap_of(
        monkeypatch,
        *("audio_branch.bn0.bias", "audio_projection.0.bias", "text_branch.x.position_ids"),
        *("text_branch.y", "text_projection.2.bias", "logit_scale_a", "audio_transform.x"),
    )
    assert set(laion.audio) == {"bn0.bias", "audio_projection.0.bias"} and not laion.fused
    assert set(laion.text) == {"y", "text_projection.2.bias"} and laion.audio_config == {}
    encoder = "audio_model.audio_encoder."
    names = [f"{encoder}layers.0.attention.self.{part}.bias" for part in ("value", "query", "key")]
    names += [f"{encoder}{x}" for x in ("batch_norm.weight", "layers.0.layernorm_before.bias")]
    names += [f"{encoder}{x}" for x in ("layers.0.intermediate.dense.bias", "layers.0.output.dense.bias")]
    names += [f"{encoder}patch_embed.fusion_model.x", "audio_projection.linear1.bias", "text_model.z"]
    hub = clap_of(monkeypatch, *names, "logit_scale_t")
    assert {name: x.tolist() for name, x in hub.audio.items()} == {
        "layers.0.attn.qkv.bias": [1, 2, 0],
        "bn0.weight": [3],
        "layers.0.norm1.bias": [4],
        "layers.0.mlp.fc1.bias": [5],
        "layers.0.mlp.fc2.bias": [6],
        "audio_projection.0.bias": [8],
    }
    assert hub.fused and set(hub.text) == {"z"} and hub.audio_config == {"a": "config.json"}


@pytest.mark.parametrize(
    ("names", "tower", "message"),
    [
        (("audio_branch.x", "strange"), "audio", "keys of no CLAP: strange"),
        (("audio_model.audio_encoder.x", "strange"), "audio", "keys of no CLAP: strange"),
        (("audio_branch.x",), "text", "it has no text tower"),
        (("text_branch.x",), "audio", "it has no audio tower"),
        (("logit_scale_a",), "audio", "it has no audio tower"),
    ],
)
def test_other_checkpoints_are_refused_as_clap(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], tower: str, message: str
) -> None:
    with pytest.raises(WeightsError, match=f"w is no CLAP checkpoint: {message}\n"):
        clap_of(monkeypatch, *names, tower=tower)
