"""YAMNet: it gives the values that another program computed, and reads its weights in both formats."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.backbones import audio_backbones
from caeav.pipeline.backbones.catalogue import find_facts
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.record_check import check_model
from caeav.pipeline.backbones.weights import WeightsError
from caeav.pipeline.backbones.yamnet.audio import YamnetBackbone
from caeav.pipeline.backbones.yamnet.checkpoint import from_keras
from caeav.pipeline.backbones.yamnet.frontend import (
    BANDS,
    OFFSET,
    LogMel,
    hann_window,
    mel_weights,
    take_patch,
)
from caeav.pipeline.backbones.yamnet.network import LAYERS, Yamnet, pad_same
from caeav.pipeline.extract.jobs import TokenOptions

needs_h5py = pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="h5py is not installed")
ALL_TAPS = ["audio.layer4", "audio.layer6", "audio.layer12", "audio.layer14", "audio.embedding"]


@pytest.fixture(scope="module")
def real(shared: Path) -> Path:
    path = shared / "weights" / "yamnet.safetensors"
    if not path.is_file():
        pytest.skip(f"no weights of YAMNet at {path}")
    return path


def make(weights: Path | str = "random:0", **settings: Any) -> YamnetBackbone:
    backbone = audio_backbones["yamnet"](ModelChoice("yamnet", str(weights), settings))
    assert isinstance(backbone, YamnetBackbone)
    return backbone


def windows(samples: int = 16_000, t: int = 3) -> NDArray[np.float32]:
    return (0.3 * np.random.default_rng(0).standard_normal((t, samples))).astype(np.float32)


def keras_arrays() -> dict[str, NDArray[np.float32]]:
    """Random weights in the layout of the authors' file: layer by layer, separate batch norms, doubled names."""
    rng = np.random.default_rng(7)
    found: dict[str, NDArray[np.float32]] = {}

    def put(layer: str, name: str, values: NDArray[Any]) -> None:
        found[f"{layer}/{layer}/{name}:0"] = values.astype(np.float32)

    def convolution(layer: str, name: str, shape: tuple[int, ...], channels: int) -> None:
        fan_in = np.prod(shape) / channels
        put(layer, name, rng.normal(0, fan_in**-0.5, shape))
        put(f"{layer}/bn", "beta", rng.normal(0.1, 0.2, channels))
        put(f"{layer}/bn", "moving_mean", rng.normal(0, 0.1, channels))
        put(f"{layer}/bn", "moving_variance", rng.uniform(0.001, 1, channels))

    before = 1
    for number, (channels, _) in LAYERS.items():
        if number == 1:
            convolution("layer1/conv", "kernel", (3, 3, 1, channels), channels)
        else:
            depthwise = (3, 3, before, 1)
            convolution(f"layer{number}/depthwise_conv", "depthwise_kernel", depthwise, before)
            convolution(f"layer{number}/pointwise_conv", "kernel", (1, 1, before, channels), channels)
        before = channels
    put("dense", "kernel", rng.normal(0, 0.03, (before, 521)))
    put("dense", "bias", rng.normal(0, 1, 521))
    return found


def same(x: Tensor, weight: Tensor, step: int, groups: int = 1) -> Tensor:
    """TensorFlow's SAME convolution for any size, from its documentation."""
    pads: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // step) - 1) * step + weight.shape[-1] - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=step, groups=groups)


def run_unfolded(held: Mapping[str, NDArray[np.float32]], patch: Tensor) -> tuple[Tensor, Tensor]:
    """Embedding and scores of the authors' network with separate batch norms, in float64."""
    x = patch.double().unsqueeze(1)

    def get(layer: str, name: str) -> Tensor:
        return torch.from_numpy(held[f"{layer}/{layer}/{name}:0"]).double()

    def norm(layer: str, x: Tensor) -> Tensor:
        mean, variance, beta = (
            get(f"{layer}/bn", name) for name in ("moving_mean", "moving_variance", "beta")
        )
        return F.relu(F.batch_norm(x, mean, variance, None, beta, eps=1e-4))

    for number, (_, step) in LAYERS.items():
        if number == 1:
            x = norm("layer1/conv", same(x, get("layer1/conv", "kernel").permute(3, 2, 0, 1), step))
            continue
        layer = f"layer{number}/depthwise_conv"
        kernel = get(layer, "depthwise_kernel").permute(2, 3, 0, 1)
        x = norm(layer, same(x, kernel, step, groups=x.shape[1]))
        layer = f"layer{number}/pointwise_conv"
        x = norm(layer, same(x, get(layer, "kernel").permute(3, 2, 0, 1), 1))
    embedding = x.mean(dim=(2, 3))
    return embedding, torch.sigmoid(embedding @ get("dense", "kernel") + get("dense", "bias"))


def write_h5(path: Path, held: Mapping[str, NDArray[Any]]) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["backend"] = b"tensorflow"
        for name, x in held.items():
            file[name] = x
        file.create_group("input_1")
    return path


# --- equal to what another program computed


@pytest.mark.parametrize("sound", ["1-100032-A.ogg", "1-17367-A.ogg", "1-187207-A.ogg", "3-144028-A.ogg"])
def test_real_weights_give_what_another_program_computed(real: Path, sound: str) -> None:
    expected = load_file(real.with_name("yamnet_expected.safetensors"))
    backbone = make(real, taps=ALL_TAPS)
    wave = expected[f"{sound}/waveform"]
    found = backbone.tokens([wave.numpy()])[0]
    for layer in (4, 6, 12, 14):
        wanted = expected[f"{sound}/layer{layer}.pointwise"]
        tokens = torch.from_numpy(found[f"audio.layer{layer}"])
        maps = tokens.transpose(1, 2).reshape(wanted.shape)  # tokens are the map's positions, row by row
        off = (maps - wanted.float()).abs()
        # layer 4 was stored in half precision, whose rounding is 2^-11 of a value
        rounding = 2.0**-11 * wanted.float().abs() if wanted.dtype is torch.float16 else 0.0
        assert bool((off <= 1e-4 * wanted.float().abs().max() + rounding).all())
    module = backbone.module()
    assert isinstance(module, Yamnet)
    embedding = torch.from_numpy(found["audio.embedding"][:, 0])
    for name, x in (
        ("logmel", module.log_mel(wave)),
        ("embedding", embedding),
        ("scores", module.scores(embedding)),
    ):
        wanted = expected[f"{sound}/{name}"]
        assert x.shape == wanted.shape
        assert float((x - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_the_exact_filters_differ_from_those_of_the_8_bit_export_by_their_rounding(real: Path) -> None:
    """Weights of the export are used with the export's filters, unless the setting says otherwise."""
    wave = load_file(real.with_name("yamnet_expected.safetensors"))["1-17367-A.ogg/waveform"].numpy()
    assert make(real).describe()["settings"]["mel"] == "int8"
    assert make().describe()["settings"]["mel"] == "float"
    rounded, exact = (
        make(real, taps=["audio.embedding"], mel=mel).tokens([wave])[0]["audio.embedding"]
        for mel in ("int8", "float")
    )
    off = np.abs(rounded - exact).max() / np.abs(rounded).max()
    assert 1e-3 < off < 2e-2


def test_real_weights_are_as_recorded(real: Path, tmp_path: Path) -> None:
    checked = check_model(ModelChoice("yamnet", str(real)), "audio backbone", Home(tmp_path))
    assert checked.against == "caeav" and checked.differences == []
    assert set(checked.statistics) == set(ALL_TAPS[:4])
    other = ModelChoice("yamnet", str(real), {"patch": "start"})
    assert check_model(other, "audio backbone", Home(tmp_path)).against == "", (
        "another setting, another record"
    )


# --- front end


def test_a_patch_is_the_log_of_the_mel_magnitude_of_its_frames() -> None:
    wave = windows(15_600, 1)
    found = LogMel()(torch.from_numpy(wave))[0].numpy()
    assert found.shape == (96, 64)
    n, k = np.arange(400), np.arange(257)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * n / 400)
    fourier = np.exp(-2j * np.pi * np.outer(n, k) / 512)
    for frame in (0, 50, 95):
        cut = wave[0, 160 * frame : 160 * frame + 400].astype(np.float64)
        mel = np.abs((cut * taper) @ fourier) @ mel_weights().numpy().T.astype(np.float64)
        np.testing.assert_allclose(found[frame], np.log(mel + 0.001), atol=1e-4)


def test_mel_filters_are_triangles_over_mel() -> None:
    found = mel_weights().numpy()

    def mel(hz: Any) -> Any:
        return 2595 * np.log10(1 + np.asarray(hz) / 700)

    edges = np.linspace(mel(125.0), mel(7500.0), 66)
    bins = mel(np.arange(257) * 16_000 / 512)
    wanted = np.stack([np.interp(bins, edges[b : b + 3], [0, 1, 0]) for b in range(64)])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert not found[:, 0].any() and not found[:, -1].any()


def test_8_bit_filters_are_whole_multiples_of_one_value() -> None:
    exact, rounded = mel_weights(), mel_weights("int8")
    steps = rounded / (exact.max() / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-4) and float(steps.max()) == pytest.approx(127)
    assert 0 < float((exact - rounded).abs().max()) <= float(exact.max()) / 254 * 1.001


def test_silence_gives_the_logarithm_of_the_offset() -> None:
    assert torch.allclose(LogMel()(torch.zeros(1, 15_600)), torch.tensor(OFFSET).log())


@pytest.mark.parametrize(
    ("samples", "place", "first", "zeros"),
    [
        (16_000, "centre", 200, (0, 0)),
        (16_000, "start", 0, (0, 0)),
        (15_600, "centre", 0, (0, 0)),
        (8_000, "centre", 0, (3_800, 3_800)),
        (8_000, "start", 0, (0, 7_600)),
        (31_200, "centre", 7_800, (0, 0)),
    ],
)
def test_a_patch_is_taken_from_the_centre_or_the_start_of_a_segment(
    samples: int, place: str, first: int, zeros: tuple[int, int]
) -> None:
    whole = torch.arange(1, samples + 1, dtype=torch.float32).repeat(2, 1)
    patch = make(patch=place).prepare(whole.numpy())
    assert torch.equal(patch, take_patch(whole, place)) and patch.shape == (2, 15_600)
    inner = patch[0, zeros[0] : 15_600 - zeros[1]]
    assert torch.equal(inner, torch.arange(first + 1, first + 1 + len(inner), dtype=torch.float32))
    assert not patch[0, : zeros[0]].any() and not patch[0, 15_600 - zeros[1] :].any()


def test_segments_much_longer_than_a_patch_are_refused() -> None:
    make().check_segment(1.95)
    for ask in (lambda: make().check_segment(2), lambda: make().prepare(windows(32_000))):
        with pytest.raises(
            CaeavError, match=r"segments of 2 s are too long for yamnet.* 1\.95 s are allowed"
        ) as caught:
            ask()
        assert "--segment-seconds 1" in str(caught.value)
    with pytest.raises(CaeavError, match="too long for yamnet"):  # before anything is decoded
        TokenOptions("none", ModelChoice("yamnet", "random:0")).job(segments=5, segment_s=2.0)


# --- network


@pytest.mark.parametrize("step", [1, 2])
def test_padding_equals_tensorflows(step: int) -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 2, 6, 4)))
    kernel = torch.from_numpy(np.random.default_rng(2).standard_normal((5, 2, 3, 3)))
    assert torch.allclose(F.conv2d(pad_same(x, step), kernel, stride=step), same(x, kernel, step))


def test_taps_are_what_the_catalogue_says_and_the_embedding_is_the_mean_of_the_last() -> None:
    facts = find_facts("yamnet", "audio backbone")
    backbone = make()
    assert backbone.taps() == facts.taps and backbone.parameters == facts.parameters
    whole = make(taps=ALL_TAPS)
    assert [tap.name for tap in whole.taps()] == ALL_TAPS and whole.offered_taps == whole.taps()
    found = whole.tokens([windows()])[0]
    assert {name: x.shape for name, x in found.items()} == {
        tap.name: (3, tap.tokens, tap.channels) for tap in whole.taps()
    }
    np.testing.assert_allclose(
        found["audio.embedding"][:, 0], found["audio.layer14"].mean(axis=1), rtol=1e-5, atol=1e-7
    )
    assert all((x >= 0).all() for x in found.values())


def test_tokens_are_ordered_by_frame_then_band() -> None:
    """A click at the end of the patch changes only the last tokens."""
    wave = np.zeros((1, 15_600), np.float32)
    wave[0, -300:] = 0.5
    backbone = make(taps=["audio.layer4"])
    off = backbone.tokens([wave])[0]["audio.layer4"] != backbone.tokens([0 * wave])[0]["audio.layer4"]
    touched = off[0].any(axis=1).reshape(24, 16)  # [frames, bands]
    assert touched[-1].all() and not touched[:18].any()


def test_a_clip_does_not_depend_on_its_batch() -> None:
    backbone = make(taps=ALL_TAPS)
    alone = backbone.tokens([windows()])[0]
    prepared = backbone.prepare(windows())
    with torch.no_grad():
        together = backbone.forward(torch.stack([torch.zeros_like(prepared), prepared, 0.1 * prepared]))
    for name, x in alone.items():
        assert np.abs(x - together[name][1].numpy()).max() <= 1e-5 * np.abs(x).max()
        assert bool(torch.isfinite(together[name]).all()), "an empty clip in the batch must not spoil others"


def test_the_description_holds_all_settings_and_no_path(tmp_path: Path) -> None:
    save_file(make().module().state_dict(), tmp_path / "mine.safetensors")
    told = make(tmp_path / "mine.safetensors").describe()
    assert told["settings"] == {"patch": "centre", "mel": "float", "taps": ALL_TAPS[:4]}
    assert told["weights"]["source"] == "mine.safetensors" and str(tmp_path) not in str(told)
    assert make(tmp_path / "mine.safetensors", **told["settings"]).describe() == told


def test_random_weights_depend_on_the_seed() -> None:
    same, again, other = (make(f"random:{n}").module().state_dict()["classifier.bias"] for n in (1, 1, 2))
    assert torch.equal(same, again) and not torch.equal(same, other)


@pytest.mark.parametrize(("key", "value"), [("patch", "end"), ("mel", "int16")])
def test_invalid_settings_are_refused(key: str, value: str) -> None:
    with pytest.raises(CaeavError, match=f"setting '{key}' of yamnet is '{value}'"):
        make(**{key: value})


# --- weights


def test_without_weights_the_file_and_its_address_are_named(tmp_path: Path) -> None:
    for weights in ("", str(tmp_path), str(tmp_path / "absent.h5")):
        with pytest.raises(WeightsError) as caught:
            make(weights)
        assert "yamnet.h5" in str(caught.value)
        assert "https://storage.googleapis.com/audioset/yamnet.h5" in str(caught.value)


def test_a_folder_with_the_file_is_accepted(tmp_path: Path) -> None:
    state = make().module().state_dict()
    save_file(state, tmp_path / "yamnet.safetensors")
    found = make(tmp_path).module().state_dict()
    assert all(torch.equal(found[name], x) for name, x in state.items())


@needs_h5py
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: name.replace("dense/dense/", "dense_3/dense_3/"),
        lambda name: name.replace("dense/dense/", "logits/logits/"),
        lambda name: name.removesuffix(":0"),
    ],
    ids=["published", "numbered", "named", "without number"],
)
def test_the_authors_file_gives_the_values_of_their_network(
    rename: Callable[[str], str], tmp_path: Path
) -> None:
    held = keras_arrays()
    path = write_h5(tmp_path / "yamnet.h5", {rename(name): x for name, x in held.items()})
    backbone = make(path, taps=["audio.embedding"])
    assert backbone.describe()["settings"]["mel"] == "float"
    module = backbone.module()
    assert isinstance(module, Yamnet)
    found = backbone.tokens([windows()])[0]["audio.embedding"][:, 0]
    embedding, scores = run_unfolded(held, module.log_mel(backbone.prepare(windows())))
    assert float(embedding.std()) > 0.01
    np.testing.assert_allclose(found, embedding.numpy(), atol=1e-5 * float(embedding.max()))
    np.testing.assert_allclose(module.scores(torch.from_numpy(found)).numpy(), scores.numpy(), atol=1e-5)


def damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    held: dict[str, Any] = dict(keras_arrays())
    change(held)
    return held


@needs_h5py
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda h: h.pop("layer3/depthwise_conv/bn/layer3/depthwise_conv/bn/beta:0"),
            "layer3.depthwise lacks beta",
        ),
        (lambda h: h.pop("dense/dense/bias:0"), "missing: classifier.bias"),
        (lambda h: h.pop("layer5/pointwise_conv/layer5/pointwise_conv/kernel:0"), "layer5.pointwise lacks"),
        (lambda h: h.update({"layer15/conv/layer15/conv/gamma:0": np.ones(3)}), "unexpected: layer15/conv"),
        (
            lambda h: h.update({"layer4/pointwise_conv/bn/layer4/pointwise_conv/bn/gamma:0": np.ones(128)}),
            "unexpected: layer4",
        ),
        (
            lambda h: h.update({"layer1/conv/bn/layer1/conv/bn/beta:0": np.ones(7)}),
            "the batch norm of layer1.conv",
        ),
        (lambda h: h.update({"dense/dense/kernel:0": np.ones((1024, 10))}), "wrong shape: classifier.weight"),
        (
            lambda h: h.update({"dense/dense/bias:0": np.full(521, np.nan, np.float32)}),
            "not finite: classifier.bias",
        ),
    ],
)
def test_incomplete_and_wrong_keras_weights_are_refused(
    change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=said):
        make(write_h5(tmp_path / "yamnet.h5", damaged(change)))


def test_another_front_end_than_yamnets_is_refused(tmp_path: Path) -> None:
    state = dict(make().module().state_dict())
    own = {"mel": mel_weights(), "window": hann_window(), "log_offset": torch.full((BANDS,), OFFSET)}
    whole = state | {f"frontend.{name}": x.contiguous() for name, x in own.items()}
    path = tmp_path / "yamnet.safetensors"
    save_file(whole, path)
    assert make(path).describe()["settings"]["mel"] == "int8", "an export contains its front end"
    for name, x in own.items():
        save_file(whole | {f"frontend.{name}": 1.01 * x}, path)
        with pytest.raises(WeightsError, match=rf"frontend\.{name} are not YAMNet's front end"):
            make(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"holds no YAMNet: its names are conv1\.weight"):
        make(tmp_path / "other.safetensors")


def test_batch_norms_are_folded_exactly() -> None:
    """A norm of mean 2 and deviation 2 after a filter of ones gives half the filter and a bias of -1."""
    names = {"kernel:0": torch.ones(3, 3, 1, 4), "bn/beta:0": torch.zeros(4)}
    names |= {"bn/moving_mean:0": torch.full((4,), 2.0), "bn/moving_variance:0": torch.full((4,), 4 - 1e-4)}
    found = from_keras({f"layer1/conv/{name}": x for name, x in names.items()}, "w")
    assert torch.allclose(found["layer1.conv.weight"], torch.full((4, 1, 3, 3), 0.5))
    assert torch.allclose(found["layer1.conv.bias"], torch.full((4,), -1.0))
