"""HTS-AT: its front end, its stages, and loading the published checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hostile_pickle import Hostile
from torch import Tensor

from caeav.pipeline.backbones.htsat.checkpoint import fill_htsat, fourier_kernel, read_state
from caeav.pipeline.backbones.htsat.frontend import (
    FrontEnd,
    MelImage,
    drop_stripes,
    fill_window,
    mel_weights,
    round_int16,
)
from caeav.pipeline.backbones.htsat.network import Htsat, HtsatConfig, LiveHtsat
from caeav.pipeline.backbones.native import import_torchaudio
from caeav.pipeline.backbones.weights import WeightsError

TINY = HtsatConfig(
    front_end=FrontEnd(
        rate_hz=2000, fft=128, hop=40, bands=16, low_hz=50, high_hz=900, image_size=64, window_s=2
    ),
    channels=8,
    heads=(2, 2, 4, 4),
    window=4,
)


@pytest.fixture
def tiny() -> Htsat:
    torch.manual_seed(3)
    return Htsat(TINY).eval()


Published = Callable[..., dict[str, Tensor]]


def save(state: Any, path: Path) -> Path:
    torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "1.5.9"}, path)
    return path


def load(network: Htsat, path: Path) -> None:
    """Load as the backbone does."""
    fill_htsat(network, read_state(path), path.name)


def test_mel_filters_equal_torchaudios() -> None:
    config = FrontEnd()
    torchaudio = import_torchaudio()
    wanted = torchaudio.functional.melscale_fbanks(
        config.fft // 2 + 1,
        config.low_hz,
        config.high_hz,
        config.bands,
        config.rate_hz,
        norm="slaney",
        mel_scale="slaney",
    )
    assert torch.allclose(mel_weights(config), wanted, atol=2e-7)


def test_log_mel_equals_the_convolution_of_the_published_network() -> None:
    image = MelImage(TINY.front_end)
    windows = torch.randn(2, 4000)
    padded = F.pad(windows.unsqueeze(1), (64, 64), mode="reflect")
    real, imaginary = (F.conv1d(padded, fourier_kernel(128, part), stride=40) for part in ("real", "imag"))
    power = (real.square() + imaginary.square()).transpose(1, 2)
    wanted = 10 * torch.log10((power @ image.filters).clamp(min=1e-10))
    assert torch.allclose(image.log_mel(windows), wanted, atol=1e-3)


def test_silence_gives_the_lowest_log_mel_value() -> None:
    assert torch.equal(
        MelImage(TINY.front_end).log_mel(torch.zeros(1, 4000)), torch.full((1, 101, 16), -100.0)
    )


def test_a_short_segment_is_repeated_to_fill_the_window() -> None:
    second = torch.arange(3.0).unsqueeze(0)
    assert fill_window(second, 7).tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert fill_window(second, 2).tolist() == [[0, 1]]
    assert fill_window(second, 7, "repeatpad").tolist() == [[0, 1, 2, 0, 1, 2, 0]]
    assert fill_window(second + 1, 8, "repeatpad").tolist() == [[1, 2, 3, 1, 2, 3, 0, 0]]
    assert fill_window(second, 2, "repeatpad").tolist() == [[0, 1]]


def test_rounding_to_int16_truncates_towards_zero() -> None:
    given = torch.tensor([0.0, 1.5, -2.0, 1.9 / 32767, -1.9 / 32767, 0.5])
    wanted = [0, 32767, -32767, 1, -1, 16383]
    assert (round_int16(given) * 32767).round().tolist() == wanted


def test_stages_have_the_declared_shapes(tiny: Htsat) -> None:
    live = LiveHtsat(tiny)
    found = tiny(torch.randn(2, 2000))
    assert [(s.tokens, s.channels, len(s.blocks)) for s in live.stages] == [
        (256, 8, 2),
        (64, 16, 2),
        (16, 32, 6),
        (4, 64, 2),
    ]
    assert [tuple(x.shape[1:]) for x in found] == [(s.tokens, s.channels) for s in live.stages]


def test_the_default_network_has_the_published_size() -> None:
    network = Htsat()
    shapes = [(s.tokens, s.channels, len(s.blocks)) for s in LiveHtsat(network).stages]
    assert shapes == [(4096, 96, 2), (1024, 192, 2), (256, 384, 6), (64, 768, 2)]
    assert 27.4e6 < sum(p.numel() for p in network.parameters()) < 27.6e6


def test_running_stage_by_stage_equals_the_network(tiny: Htsat) -> None:
    live = LiveHtsat(tiny)
    windows = torch.randn(2, 2000)
    x = live.embed(windows)
    for i, stage in enumerate(live.stages):
        for block in stage.blocks:
            x = block(x)
        if i < 3:
            x = stage.merge(x)
    assert torch.equal(x, tiny(windows)[-1])
    with pytest.raises(ValueError, match="last stage"):
        live.stages[-1].merge(x)


def test_eval_is_deterministic_and_train_augments(tiny: Htsat) -> None:
    windows, share = torch.randn(2, 2000), torch.tensor([0.3, 0.6])
    assert torch.equal(tiny.embed(windows), tiny.embed(windows, share))
    tiny.train()
    assert not torch.equal(tiny.image(windows), tiny.image(windows))


def test_windows_do_not_influence_each_other(tiny: Htsat) -> None:
    windows = torch.randn(3, 2000)
    together, alone = tiny(windows)[-1], tiny(windows[1:2])[-1]
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_dropped_stripes_are_bounded() -> None:
    torch.manual_seed(0)
    x = torch.ones(50, 100, 16)
    dropped = drop_stripes(x, 1, 20, 2)
    gone = (dropped.sum(dim=2) == 0).sum(dim=1)
    assert gone.max() <= 2 * 19 and gone.max() > 19 and gone.min() < 10
    assert torch.equal(dropped.amax(dim=2), dropped.amin(dim=2)), "stripes span all bands"
    assert (drop_stripes(x, 2, 8, 2).sum(dim=1) == 0).sum(dim=1).max() <= 14


def test_published_checkpoint_loads(tiny: Htsat, tmp_path: Path, published: Published) -> None:
    tiny.image.norm.running_mean.normal_()
    path = save(published(tiny), tmp_path / "htsat.ckpt")
    torch.manual_seed(4)
    other = Htsat(TINY).eval()
    windows = torch.randn(2, 2000)
    assert not torch.equal(other(windows)[-1], tiny(windows)[-1])
    load(other, path)
    assert torch.equal(other(windows)[-1], tiny(windows)[-1])


def test_missing_and_unexpected_keys_are_named(tiny: Htsat, tmp_path: Path, published: Published) -> None:
    state = published(tiny)
    del state["sed_model.layers.2.blocks.4.mlp.fc1.weight"]
    state["sed_model.absolute_pos_embed"] = torch.zeros(1)
    before = {name: x.clone() for name, x in tiny.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load(tiny, save(state, tmp_path / "htsat.ckpt"))
    assert "missing: stages.2.blocks.4.mlp.fc_in.weight" in str(caught.value)
    assert "unexpected: absolute_pos_embed" in str(caught.value)
    assert all(torch.equal(x, before[name]) for name, x in tiny.state_dict().items()), "half loaded"


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("layers.0.blocks.0.attn.relative_position_index", lambda x: x.flip(0), "differs from the one"),
        ("layers.0.blocks.1.attn_mask", lambda x: x * 0, "differs from the one"),
        ("spectrogram_extractor.stft.conv_imag.weight", lambda x: -x, "Fourier"),
        ("layers.1.downsample.reduction.weight", lambda x: x[1:], r"\[31, 64\], needed \[32, 64\]"),
    ],
)
def test_another_network_is_refused(
    tiny: Htsat, tmp_path: Path, key: str, change: Any, message: str, published: Published
) -> None:
    state = published(tiny)
    state[f"sed_model.{key}"] = change(state[f"sed_model.{key}"])
    with pytest.raises(WeightsError, match=message):
        load(tiny, save(state, tmp_path / "htsat.ckpt"))


def test_another_window_is_refused(tiny: Htsat, tmp_path: Path, published: Published) -> None:
    with pytest.raises(WeightsError, match="differs from the one"):
        load(Htsat(replace(TINY, window=8)), save(published(tiny), tmp_path / "htsat.ckpt"))


def test_files_that_are_no_checkpoint_are_refused(tiny: Htsat, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        load(tiny, tmp_path / "absent.ckpt")
    rubbish = tmp_path / "rubbish.ckpt"
    rubbish.write_bytes(b"<html>404</html>")
    with pytest.raises(WeightsError, match="cannot be read as plain weights"):
        load(tiny, rubbish)
    torch.save({"weights": 1}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match="no named tensors"):
        load(tiny, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"holds no HTS-AT: its names are norm\.weight"):
        load(tiny, save({"norm.weight": torch.zeros(1)}, tmp_path / "bare.ckpt"))


def test_code_in_a_checkpoint_is_not_executed(
    tiny: Htsat,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    published: Published,
) -> None:
    with pytest.raises(WeightsError, match="cannot be read as plain weights"):
        load(tiny, save({**published(tiny), "sed_model.x": Hostile()}, tmp_path / "evil.ckpt"))
    assert "executed" not in capsys.readouterr().out
