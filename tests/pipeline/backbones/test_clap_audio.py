"""CLAP's audio tower from both published formats: the same tokens, and those of transformers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hostile_pickle import Hostile
from safetensors.torch import load_file, save_file

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.backbones import audio_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.clap.audio import ClapAudio
from caeav.pipeline.backbones.weights import WeightsError

EVERY = [f"audio.{place}" for place in ("stage1", "stage2", "stage3", "stage4", "norm", "embedding")]


pytestmark = pytest.mark.usefixtures("offline_hub")


@pytest.fixture
def windows() -> Any:
    rng = np.random.default_rng(0)
    return (0.3 * rng.standard_normal((3, 1500))).astype(
        np.float32
    )  # 0.75 s at 2 kHz: repeated twice, then silence


def from_folder(tiny: Any, **settings: Any) -> ClapAudio:
    return ClapAudio(ModelChoice("clap", str(tiny.folder), {"taps": EVERY, **settings}))


@pytest.mark.parametrize("fused", [False, True])
def test_both_file_formats_give_the_same_tokens(
    tiny_clap: Callable[..., Any], windows: Any, fused: bool
) -> None:
    tiny = tiny_clap(fused)
    folder = from_folder(tiny)
    file = ClapAudio(ModelChoice("clap", str(tiny.file), {"taps": EVERY, **tiny.front}))
    assert folder.describe()["settings"] == file.describe()["settings"]
    assert folder.describe()["settings"]["mel"] == ("htk" if fused else "slaney")
    ours, theirs = folder.tokens([windows])[0], file.tokens([windows])[0]
    assert list(ours) == EVERY
    for name, x in ours.items():
        assert np.array_equal(x, theirs[name]), name


@pytest.mark.parametrize("fused", [False, True])
def test_the_tokens_are_those_of_transformers(
    tiny_clap: Callable[..., Any], windows: Any, fused: bool
) -> None:
    from transformers import ClapFeatureExtractor

    tiny = tiny_clap(fused)
    extractor = ClapFeatureExtractor.from_pretrained(tiny.folder)
    inputs = extractor(list(windows), sampling_rate=2000, return_tensors="pt")
    longer = torch.zeros(3, 1, dtype=torch.bool)  # transformers would mark one at random
    with torch.no_grad():
        wanted = tiny.model.audio_model.audio_encoder(
            inputs["input_features"].float(),
            is_longer=longer,
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
        )
        embedded = tiny.model.get_audio_features(
            inputs["input_features"].float(), is_longer=longer
        ).pooler_output
    found = from_folder(tiny, preset="transformers").tokens([windows])[0]
    for i in range(4):
        stage = wanted.hidden_states[i + 1].flatten(2).transpose(1, 2).numpy()
        assert np.abs(found[f"audio.stage{i + 1}"] - stage).max() < 2e-4 * np.abs(stage).max()
    assert np.allclose(found["audio.embedding"][:, 0], embedded.numpy(), atol=1e-4)


def test_rounding_to_int16_changes_the_tokens_and_the_recipe(
    tiny_clap: Callable[..., Any], windows: Any
) -> None:
    tiny = tiny_clap()
    rounded, whole = from_folder(tiny), from_folder(tiny, preset="transformers")
    assert rounded.describe()["settings"]["int16"] and not whole.describe()["settings"]["int16"]
    quiet = windows / 3000
    a, b = (x.tokens([quiet])[0]["audio.stage1"] for x in (rounded, whole))
    assert np.abs(a - b).max() > 1e-3


def test_tokens_have_the_declared_taps(tiny_clap: Callable[..., Any], windows: Any) -> None:
    backbone = ClapAudio(
        ModelChoice("clap", str(tiny_clap().folder), {"taps": ["audio.embedding", "audio.stage2"]})
    )
    found = backbone.tokens([windows])[0]
    assert [(tap.name, (3, tap.tokens, tap.channels)) for tap in backbone.taps()] == [
        (name, x.shape) for name, x in found.items()
    ]
    assert np.allclose(np.linalg.norm(found["audio.embedding"], axis=-1), 1, atol=1e-5)


def test_a_backbone_can_be_made_again_from_its_description(
    tiny_clap: Callable[..., Any], windows: Any
) -> None:
    tiny = tiny_clap(True)
    first = from_folder(tiny)
    again = ClapAudio(ModelChoice("clap", str(tiny.folder), first.describe()["settings"]))
    assert again.describe() == first.describe()
    assert str(tiny.folder.parent) not in str(first.describe())
    assert np.array_equal(first.tokens([windows])[0]["audio.norm"], again.tokens([windows])[0]["audio.norm"])


def test_a_missing_and_an_unknown_key_are_named(tiny_clap: Callable[..., Any]) -> None:
    tiny = tiny_clap()
    state = load_file(tiny.folder / "model.safetensors")
    gone = "audio_model.audio_encoder.layers.1.blocks.0.attention.self.key.weight"
    extra = {"audio_model.audio_encoder.layers.0.blocks.0.surprise": torch.zeros(1)}
    save_file({k: x for k, x in state.items() if k != gone} | extra, tiny.folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing: trunk.stages.1.blocks.0.attn.qkv.weight") as caught:
        from_folder(tiny)
    assert "trunk.stages.0.blocks.0.surprise" in str(caught.value)


def test_an_audio_tower_alone_is_refused(tiny_clap: Callable[..., Any]) -> None:
    """`ClapAudioModel.save_pretrained` writes such files; other loaders fill the rest with random values."""
    tiny = tiny_clap()
    tiny.model.audio_model.save_pretrained(tiny.folder)
    with pytest.raises(WeightsError, match="no CLAP checkpoint"):
        from_folder(tiny)


def test_a_wrong_shape_is_named(tiny_clap: Callable[..., Any]) -> None:
    tiny = tiny_clap()
    held = torch.load(tiny.file, weights_only=False)
    name = "module.audio_branch.layers.2.downsample.norm.weight"
    held["state_dict"][name] = held["state_dict"][name][1:]
    torch.save(held, tiny.file)
    with pytest.raises(WeightsError, match=r"trunk.stages.2.merge.norm.weight is \[127\], needed \[128\]"):
        ClapAudio(ModelChoice("clap", str(tiny.file), tiny.front))


def test_another_front_end_than_the_weights_were_trained_with_is_refused(
    tiny_clap: Callable[..., Any],
) -> None:
    tiny = tiny_clap()
    with pytest.raises(WeightsError, match="mel filters of 4000 Hz"):
        ClapAudio(ModelChoice("clap", str(tiny.file), {**tiny.front, "rate_hz": 4000}))


def test_a_front_end_of_another_checkpoint_is_refused(tiny_clap: Callable[..., Any]) -> None:
    fused, unfused = tiny_clap(True), tiny_clap(False)
    stray = (unfused.folder / "preprocessor_config.json").read_bytes()
    (fused.folder / "preprocessor_config.json").write_bytes(stray)
    with pytest.raises(WeightsError, match=r"the front end truncates by|has fusion"):
        from_folder(fused)


def test_a_folder_without_its_front_end_is_refused(tiny_clap: Callable[..., Any]) -> None:
    tiny = tiny_clap()
    (tiny.folder / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"lacks preprocessor_config.json"):
        from_folder(tiny)


def test_code_in_a_checkpoint_is_refused(
    tiny_clap: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = tiny_clap()
    held = torch.load(tiny.file, weights_only=False)
    torch.save(held | {"optimizer": Hostile()}, tiny.file)
    with pytest.raises(WeightsError, match="cannot be read as plain weights"):
        ClapAudio(ModelChoice("clap", str(tiny.file), tiny.front))
    assert "executed" not in capsys.readouterr().out


def test_without_weights_the_hub_repository_is_named() -> None:
    with pytest.raises(WeightsError, match="laion/clap-htsat-unfused"):
        audio_backbones["clap"](ModelChoice("clap"))


def test_unknown_taps_and_front_ends_are_refused(tiny_clap: Callable[..., Any]) -> None:
    tiny = tiny_clap()
    with pytest.raises(CaeavError, match="has no tap stage5"):
        from_folder(tiny, taps=["stage5"])
    with pytest.raises(CaeavError, match="'filling' of clap is 'mirror'"):
        from_folder(tiny, filling="mirror")
    for wrong in ({"high_hz": 4000.0}, {"hop": "forty"}, {"bands": 0}, {"low_hz": -1}):
        with pytest.raises(CaeavError, match="make no mel spectrogram"):
            from_folder(tiny, **wrong)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module._orig_mod."])
def test_training_prefixes_are_removed(prefix: str, tiny_clap: Callable[..., Any], windows: Any) -> None:
    tiny = tiny_clap()
    wanted = ClapAudio(ModelChoice("clap", str(tiny.file), tiny.front)).tokens([windows])[0]
    held = torch.load(tiny.file, weights_only=False)
    state = {prefix + name.removeprefix("module."): x for name, x in held["state_dict"].items()}
    torch.save(held | {"state_dict": state, "args": Namespace(lr=1)}, tiny.file)
    found = ClapAudio(ModelChoice("clap", str(tiny.file), tiny.front)).tokens([windows])[0]
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x)
