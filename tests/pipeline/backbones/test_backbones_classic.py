"""The classic backbones: declared shapes, fixed scale, what changes their tokens, independence of clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caeav.pipeline.backbones import audio_backbones, visual_backbones
from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.classic.visual import resize

RATE = 16_000
T = 6


def street(seed: int = 0, t: int = T, height: int = 90, width: int = 160) -> NDArray[np.uint8]:
    """A grey, cluttered, still background, `[T, H, W, 3]`."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(60, 160, (height // 5, width // 5, 1)).repeat(5, 0).repeat(5, 1).repeat(3, 2)
    return np.broadcast_to(ground, (t, *ground.shape)).astype(np.uint8).copy()


def with_box(colour: tuple[int, int, int], seen: range, size: int = 14) -> NDArray[np.uint8]:
    """`street` with a box moving right in the segments `seen`."""
    frames = street()
    for t in seen:
        frames[t, 40 : 40 + size, 10 + 20 * t : 10 + 20 * t + size] = colour
    return frames


def noise(seed: int = 0, level: float = 0.01) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((T, RATE)) * level).astype(np.float32)


def with_tone(hz: float, heard: range) -> NDArray[np.float32]:
    windows = noise()
    time = np.arange(RATE) / RATE
    for t in heard:
        windows[t] += (0.3 * np.sin(2 * np.pi * hz * time)).astype(np.float32)
    return windows


def visual(frames: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    return visual_backbones["classic"](ModelChoice("classic")).tokens([frames])[0]


def audio(windows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    return audio_backbones["classic"](ModelChoice("classic")).tokens([windows])[0]


CASES = [
    pytest.param(visual_backbones, lambda seed: street(seed), id="visual"),
    pytest.param(audio_backbones, lambda seed: noise(seed), id="audio"),
]


@pytest.mark.parametrize(("registry", "make"), CASES)
def test_tokens_have_the_declared_shapes_and_heads_divide_their_channels(
    registry: Any, make: Callable[[int], NDArray[Any]]
) -> None:
    backbone = registry["classic"](ModelChoice("classic"))
    tokens = backbone.tokens([make(0)])[0]
    assert list(tokens) == [tap.name for tap in backbone.taps()]
    for tap in backbone.taps():
        assert tokens[tap.name].shape == (T, tap.tokens, tap.channels)
        assert tokens[tap.name].dtype == np.float32
        assert tap.channels % 8 == 0
        assert np.isfinite(tokens[tap.name].astype(np.float16)).all()


@pytest.mark.parametrize(("registry", "make"), CASES)
def test_a_clip_does_not_depend_on_its_batch(registry: Any, make: Callable[[int], NDArray[Any]]) -> None:
    together = registry["classic"](ModelChoice("classic")).tokens([make(0), make(1)])
    alone = registry["classic"](ModelChoice("classic")).tokens([make(1)])[0]
    for name in alone:
        assert together[1][name].tobytes() == alone[name].tobytes()


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((T, 64, 64, 3), dtype=np.uint8),
        np.full((T, 64, 64, 3), 255, dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (T, 64, 64, 3), dtype=np.uint8),
        np.zeros((1, 20, 300, 3), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 2, (2, 200, 150, 3), dtype=np.uint8) * np.uint8(255),
    ],
)
def test_any_frames_give_values_of_about_unit_scale(frames: NDArray[np.uint8]) -> None:
    for tokens in visual(frames).values():
        assert np.isfinite(tokens).all()
        assert np.abs(tokens).max() < 25
        assert tokens.std() < 4


@pytest.mark.parametrize("level", [0.0, 1e-6, 0.1, 1.0])
@pytest.mark.parametrize("samples", [1600, RATE, 3 * RATE])
def test_any_audio_gives_values_of_about_unit_scale(level: float, samples: int) -> None:
    windows = (np.random.default_rng(0).uniform(-1, 1, (T, samples)) * level).astype(np.float32)
    for tokens in audio(windows).values():
        assert np.isfinite(tokens).all()
        assert np.abs(tokens).max() < 25
        assert tokens.std() < 4


def test_full_scale_clicks_stay_in_range() -> None:
    windows = np.zeros((T, RATE), dtype=np.float32)
    windows[:, ::4000] = 1.0
    assert all(np.abs(tokens).max() <= 30 for tokens in audio(windows).values())


def distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(a - b).mean()))


@pytest.mark.parametrize("stage", ["visual.stage1", "visual.stage2", "visual.stage3", "visual.stage4"])
def test_a_small_object_changes_the_tokens_of_its_segments(stage: str) -> None:
    empty, seen = visual(street())[stage], visual(with_box((220, 30, 30), range(2, 4)))[stage]
    assert distance(seen[3], empty[3]) > 0.05
    assert distance(seen[3], empty[3]) > 1.5 * distance(seen[0], empty[0])


def test_the_deepest_tap_distinguishes_colours_regardless_of_position() -> None:
    red, blue = (
        visual(with_box(colour, range(T)))["visual.stage4"].mean(1)
        for colour in ((220, 30, 30), (30, 30, 220))
    )
    across = distance(red[2], blue[2])
    assert across > 1.5 * distance(red[2], red[3])


def test_local_tokens_react_to_their_own_region() -> None:
    empty, seen = (
        visual(street())["visual.stage1"],
        visual(with_box((220, 30, 30), range(T)))["visual.stage1"],
    )
    change = np.abs(seen[0] - empty[0]).mean(axis=-1).reshape(8, 8)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert row in (3, 4)  # rows 40 to 54 of 90
    assert column in (0, 1)  # columns 10 to 24 of 160


@pytest.mark.parametrize("stage", ["audio.stage1", "audio.stage2", "audio.stage3", "audio.stage4"])
def test_a_tone_changes_the_tokens_of_its_segments(stage: str) -> None:
    still, heard = audio(noise())[stage], audio(with_tone(800, range(2, 4)))[stage]
    assert distance(heard[3], still[3]) > 0.3
    assert distance(heard[3], still[3]) > 2 * distance(heard[0], still[0])


def test_audio_tokens_are_ordered_by_time_then_frequency() -> None:
    windows = np.zeros((1, RATE), dtype=np.float32)
    time = np.arange(RATE // 2) / RATE
    windows[0, RATE // 2 :] = np.sin(2 * np.pi * 200 * time)  # low, in the second half
    level = audio(windows)["audio.stage1"][0, :, 0].reshape(8, 8)
    row, column = np.unravel_index(level.argmax(), level.shape)
    assert row >= 4
    assert column == 0


def test_arrays_that_are_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"float64 \(2, 8, 8, 3\), expected uint8"):
        visual_backbones["classic"](ModelChoice("classic")).tokens([np.zeros((2, 8, 8, 3))])


@pytest.mark.parametrize(("height", "width"), [(7, 5), (128, 128), (300, 401)])
def test_resizing_keeps_flat_frames_flat_and_the_mean(height: int, width: int) -> None:
    flat = np.full((1, height, width, 3), 51, dtype=np.uint8)
    np.testing.assert_allclose(resize(flat, 32, 48), 0.2, atol=1e-6)
    varied = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    assert abs(resize(varied, 4, 4).mean() - varied.mean() / 255) < 0.02


def test_halving_is_the_mean_of_two_by_two_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    wanted = frames.reshape(2, 4, 2, 6, 2, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(resize(frames, 4, 6), wanted, atol=1e-6)
