"""Golden numbers of the embedded backbones: this version must give the tokens of earlier ones.

The sums have random signs, so that exchanged places, channels or segments and changed constants change them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caeav.pipeline.backbones import audio_backbones, text_backbones, visual_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.classic.audio import band_centres_hz, mel_weights, pitch_lags
from caeav.pipeline.backbones.classic.text import random_vector
from caeav.pipeline.backbones.classic.visual import LIMIT, area_weights, dct_matrix, resize
from caeav.pipeline.backbones.record_check import array_statistics

T = 5


def frames() -> NDArray[np.uint8]:
    """A disc moving over uneven ground, with a cut before segment 3."""
    y, x = np.mgrid[:96, :160]
    found = []
    for t in range(T):
        grain = ((x * 7919 + y * 104729 + t * 1299709) ** 2 >> 7) % 23
        red = x + grain + 8 * t
        green = y * 2 + 40 * ((x // 12 + y // 12) % 2)
        blue = (x * y // 97) % 128 + 50
        if t >= 3:
            red, blue = 255 - red, 240 - blue
        disc = (x - 30 - 24 * t) ** 2 + (y - 40) ** 2 < 14**2
        colours = [np.where(disc, c, ground) for c, ground in ((230, red), (30, green), (40, blue))]
        found.append(np.stack(colours, axis=-1).clip(0, 255))
    return np.stack(found).astype(np.uint8)


def windows() -> NDArray[np.float32]:
    """Knocks, a rising tone from the third second on, and hiss that is louder in the last second."""
    n = np.arange(T * 16_000)
    s = n / 16_000
    tone = np.where(s < 2, 0, 0.3 * np.sin(2 * np.pi * (220 * s + 90 * s * s)))
    knock = sum(np.exp(-70 * np.abs(s - at)) for at in (1.3, 3.7)) * np.sin(2 * np.pi * 95 * s)
    hiss = (((n * 1103515245 + 12345) >> 8) % 2001 - 1000) / 40_000
    return (tone + 0.4 * knock + hiss * (1 + (s > 4) * 3)).astype(np.float32).reshape(T, 16_000)


def numbers(x: NDArray[Any]) -> list[float]:
    found = array_statistics(x)
    return [found["mean"], found["std"], *found["sums"][:4]]


GOLDEN = {
    "visual.stage1": [-0.084, 0.966, -0.14, 2.1, 0.31, 1.35],
    "visual.stage2": [-0.09, 1.206, 0.57, -0.7, 0.25, -0.53],
    "visual.stage3": [-0.033, 1.15, -0.22, 0.17, 1.61, -0.43],
    "visual.stage4": [0.254, 1.429, 0.82, -0.18, -0.15, 0.27],
    "audio.stage1": [-0.037, 1.525, 0.7, 0.48, -1.11, 1.07],
    "audio.stage2": [-0.165, 1.563, 0.38, 0.84, 0.3, -0.67],
    "audio.stage3": [0.248, 1.8, -1.84, 0.26, -0.1, -0.06],
    "audio.stage4": [0.027, 1.594, -2.01, 0.77, 0.01, 1.11],
}


def test_classic_tokens_have_not_changed() -> None:
    found = visual_backbones["classic"](ModelChoice("classic")).tokens([frames()])[0]
    found |= audio_backbones["classic"](ModelChoice("classic")).tokens([windows()])[0]
    assert list(found) == list(GOLDEN)
    for name, x in found.items():
        assert numbers(x) == pytest.approx(GOLDEN[name], abs=0.0065), name


def test_hashed_tokens_have_not_changed() -> None:
    texts = ["A small Red disc; moves!", "", "Ünder the red disc a dog"]
    tokens, mask = text_backbones["hashed"](ModelChoice("hashed")).encode(texts)
    assert mask.sum(axis=1).tolist() == [5, 0, 6]
    assert numbers(tokens) == pytest.approx([0.008, 0.338, -0.51, 2.07, 0.62, -1.22], abs=0.0065)
    assert np.square(tokens[mask]).mean(axis=1) == pytest.approx(np.ones(11), rel=1e-5)
    vector = random_vector("word dog", 4096)
    assert vector.std() == pytest.approx(1, abs=0.03) and abs(float(vector.mean())) < 0.05


def test_tokens_stay_inside_the_range_of_float16_for_any_input() -> None:
    loud = np.where(np.arange(32_000) % 2, -1e6, 1e6).astype(np.float32).reshape(2, 16_000)
    taps = audio_backbones["classic"](ModelChoice("classic")).tokens([loud])[0]
    assert max(float(np.abs(x).max()) for x in taps.values()) == LIMIT
    flash = np.zeros((3, 32, 32, 3), np.uint8)
    flash[1] = 255
    flash[:, ::2, ::2, 0] = 255
    taps = visual_backbones["classic"](ModelChoice("classic")).tokens([flash])[0]
    assert max(float(np.abs(x).max()) for x in taps.values()) <= LIMIT


def test_mel_filters_are_normalised_triangles_on_the_htk_scale() -> None:
    weights, centres = mel_weights(16_000), band_centres_hz(16_000)
    assert weights.sum(axis=0) == pytest.approx(np.ones(64), rel=1e-5)
    mel = 2595 * np.log10(1 + centres / 700)
    assert np.diff(mel) == pytest.approx(np.full(63, mel[1] - mel[0]))
    assert mel[0] - 2595 * np.log10(1 + 50 / 700) == pytest.approx(mel[1] - mel[0])
    peaks = weights.argmax(axis=0) * 16_000 / 512
    assert np.abs(peaks - centres).max() <= 16_000 / 512 / 2 + 1e-6


def test_the_cosine_transform_is_orthonormal() -> None:
    basis = dct_matrix(12, 12)
    assert basis.T @ basis == pytest.approx(np.eye(12), abs=1e-6)
    assert dct_matrix(12, 3) == pytest.approx(basis[:, :3])


def test_pitch_lags_go_from_high_to_low() -> None:
    lags = pitch_lags(16_000)
    assert lags[0] == pytest.approx(16_000 / 1200) and lags[-1] == pytest.approx(16_000 / 70)
    assert (np.diff(np.log(lags)) > 0).all()


def test_area_weights_are_right_for_shrinking_and_enlarging() -> None:
    assert area_weights(4, 2).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert area_weights(2, 4) == pytest.approx(
        np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]), abs=1e-6
    )
    ramp = np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1).repeat(3, axis=3)
    assert resize(ramp, 3, 4) == pytest.approx(ramp / 255, abs=1e-6)
    assert resize(ramp, 1, 2)[0, 0, :, 0] == pytest.approx(np.array([4.5, 6.5]) / 255, abs=1e-6)
