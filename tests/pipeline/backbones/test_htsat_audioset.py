"""The `hts-at` backbone of stores: its taps are the live network's stages, from the published file."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones import audio_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.htsat.audioset import HtsAt
from caeav.pipeline.backbones.weights import WeightsError


@pytest.fixture
def backbone(tiny_htsat: Path, front: dict[str, Any]) -> Any:
    return audio_backbones["hts-at"](ModelChoice("hts-at", str(tiny_htsat), front))


@pytest.fixture
def windows() -> Any:
    return (0.3 * np.random.default_rng(0).standard_normal((4, 1000))).astype(np.float32)


def test_taps_are_the_outputs_of_the_live_networks_stages(backbone: HtsAt, windows: Any) -> None:
    found = backbone.tokens([windows])[0]
    live = backbone.live()
    with torch.no_grad():
        x = live.embed(torch.from_numpy(windows))
        for i, (tap, stage) in enumerate(zip(backbone.taps(), live.stages, strict=True)):
            for block in stage.blocks:
                x = block(x)
            assert tap.name == f"audio.stage{i + 1}" and (4, tap.tokens, tap.channels) == x.shape
            assert np.array_equal(found[tap.name], x.numpy())
            x = stage.merge(x) if i < 3 else x


def test_a_clip_does_not_depend_on_its_batch(backbone: HtsAt, windows: Any) -> None:
    alone = backbone.tokens([windows])[0]
    batch = torch.stack([torch.zeros(4, 1000), backbone.prepare(windows), 5 * torch.ones(4, 1000)])
    with torch.no_grad():
        together = backbone.forward(batch)
    for name, x in alone.items():
        assert np.abs(x - together[name][1].numpy()).max() <= 1e-5 * np.abs(x).max()
        assert bool(torch.isfinite(together[name]).all()), "an empty clip in the batch must not spoil others"


def test_only_requested_taps_are_declared_and_returned(
    tiny_htsat: Path, front: dict[str, Any], windows: Any
) -> None:
    some = HtsAt(ModelChoice("hts-at", str(tiny_htsat), {**front, "taps": ["audio.stage4", "audio.stage2"]}))
    assert len(some.offered_taps) == 5
    assert [tap.name for tap in some.taps()] == ["audio.stage2", "audio.stage4"]
    assert list(some.tokens([windows])[0]) == ["audio.stage2", "audio.stage4"]


def test_the_windows_themselves_can_be_a_tap(tiny_htsat: Path, front: dict[str, Any], windows: Any) -> None:
    raw = {**front, "segment_s": 0.5, "taps": ["audio.windows"]}
    backbone = HtsAt(ModelChoice("hts-at", str(tiny_htsat), raw))
    assert [(tap.name, tap.tokens, tap.channels) for tap in backbone.taps()] == [("audio.windows", 1000, 1)]
    found = backbone.tokens([windows])[0]
    assert list(found) == ["audio.windows"] and np.array_equal(found["audio.windows"][..., 0], windows)
    both = HtsAt(ModelChoice("hts-at", str(tiny_htsat), {**raw, "taps": ["audio.stage1", "audio.windows"]}))
    assert list(both.tokens([windows])[0]) == ["audio.windows", "audio.stage1"]
    with pytest.raises(CaeavError, match="declared with 1000") as caught:
        backbone.prepare(windows[:, :400])
    assert "set segment_s of hts-at to 0.2" in str(caught.value)


def test_the_module_is_frozen_and_in_eval_mode(backbone: HtsAt) -> None:
    assert not backbone.module().training
    assert not any(p.requires_grad for p in backbone.module().parameters())


def test_the_description_holds_all_settings_and_no_path(
    backbone: HtsAt, tiny_htsat: Path, front: dict[str, Any]
) -> None:
    message = backbone.describe()
    assert message["weights"]["source"] == tiny_htsat.name and message["weights"]["digest"].startswith(
        "sha256:"
    )
    assert str(tiny_htsat.parent) not in str(message)
    assert message["settings"].items() >= front.items() and message["settings"]["filling"] == "repeat"
    again = HtsAt(ModelChoice("hts-at", str(tiny_htsat), message["settings"]))
    assert again.describe() == message


def test_the_published_front_end_is_the_default_and_avs_has_its_own() -> None:
    usual = HtsAt(ModelChoice("hts-at", "random:0", {"preset": "reference"}))
    assert usual.describe() == HtsAt(ModelChoice("hts-at", "random:0")).describe()
    assert usual.describe()["settings"] | {"taps": 0} == {
        "rate_hz": 32_000,
        "fft": 1024,
        "hop": 320,
        "bands": 64,
        "low_hz": 50.0,
        "high_hz": 14_000.0,
        "window_s": 10,
        "mel": "slaney",
        "filling": "repeat",
        "int16": False,
        "segment_s": 1.0,
        "taps": 0,
    }
    assert [(tap.tokens, tap.channels) for tap in usual.taps()] == [
        (4096, 96),
        (1024, 192),
        (256, 384),
        (64, 768),
    ]
    avs = HtsAt(ModelChoice("hts-at", "random:0", {"preset": "reference-avs"})).describe()["settings"]
    assert avs == usual.describe()["settings"] | {"window_s": 5}


def test_random_weights_depend_on_the_seed() -> None:
    same, again, other = (
        HtsAt(ModelChoice("hts-at", f"random:{seed}")).module().state_dict()["patches.proj.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(same, again) and not torch.equal(same, other)


def test_without_weights_the_file_to_get_is_named(tmp_path: Path) -> None:
    for weights in ("", str(tmp_path), str(tmp_path / "absent.ckpt")):
        with pytest.raises(WeightsError) as caught:
            HtsAt(ModelChoice("hts-at", weights))
        assert "HTSAT_AudioSet_Saved_1.ckpt" in str(caught.value)
        assert "its authors: the repository RetroCirce/HTS-Audio-Transformer" in str(caught.value)


def test_another_front_end_than_the_weights_were_trained_with_is_refused(
    tiny_htsat: Path, front: dict[str, Any]
) -> None:
    with pytest.raises(WeightsError, match="are not the mel filters of 3000 Hz"):
        HtsAt(ModelChoice("hts-at", str(tiny_htsat), {**front, "rate_hz": 3000}))


def test_a_segment_longer_than_the_networks_window_is_refused(backbone: HtsAt) -> None:
    backbone.check_segment(2.0)
    for ask in (
        lambda: backbone.check_segment(2.1),
        lambda: backbone.prepare(np.zeros((2, 4200), dtype=np.float32)),
    ):
        with pytest.raises(CaeavError, match=r"2\.1 s are too long for hts-at, whose window is 2 s"):
            ask()


def test_other_files_are_refused(tmp_path: Path, tiny_htsat: Path) -> None:
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {"sed_model.x": torch.zeros(1)}}, other)
    with pytest.raises(WeightsError, match="holds no HTS-AT"):
        HtsAt(ModelChoice("hts-at", str(other)))


@pytest.mark.parametrize("prefix", ["", "sed_model.", "module.sed_model.", "model.sed_model.", "_orig_mod."])
def test_training_prefixes_are_removed(
    prefix: str, backbone: HtsAt, tiny_htsat: Path, windows: Any, front: dict[str, Any], tmp_path: Path
) -> None:
    """A checkpoint of Lightning with callbacks gives the tokens of the plain file."""
    held = torch.load(tiny_htsat, weights_only=True)["state_dict"]
    state = {prefix + name.removeprefix("sed_model."): x for name, x in held.items()}
    callbacks = {"callbacks": {torch.optim.Adam: {"best": "x"}}, "hyper_parameters": Namespace(lr=1)}
    torch.save({"state_dict": state, **callbacks}, tmp_path / "w.ckpt")
    found = HtsAt(ModelChoice("hts-at", str(tmp_path / "w.ckpt"), front)).tokens([windows])[0]
    for name, x in backbone.tokens([windows])[0].items():
        np.testing.assert_array_equal(found[name], x)
