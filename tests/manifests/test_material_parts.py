"""Recordings cut to their audible parts, pictures with alpha, and the frames behind them."""

from __future__ import annotations

import wave as wave_files
from pathlib import Path

import numpy as np
import pytest
from material_world import RATE_HZ, recording
from numpy.typing import NDArray
from PIL import Image

from caeav.manifests.synthetic.material_media import (
    UnusableFile,
    problem_of,
    read_background,
    read_picture,
    read_sound,
    resized,
)
from caeav.manifests.synthetic.media import mp4, wav
from caeav.manifests.synthetic.pictures import GENTLE, look_of, paste
from caeav.manifests.synthetic.recordings import at_level, frame_levels, loud_stretches, played
from caeav.manifests.synthetic.sprites import MOTIONS

RNG = np.random.default_rng(0)


def by_second(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt((wave.reshape(-1, RATE_HZ) ** 2).mean(axis=1)))


def test_silence_is_cut_and_the_sound_kept_with_a_little_before_and_after() -> None:
    ((start, end),) = loud_stretches(recording(700.0).astype(np.float64), RATE_HZ)
    assert start / RATE_HZ == pytest.approx(2.0 - 0.05, abs=0.021)
    assert end / RATE_HZ == pytest.approx(2.4 + 0.3, abs=0.021)


def test_pauses_are_never_longer_than_what_is_kept_around_sounds() -> None:
    bark = recording(700.0, 0.2, 1.0)
    wave = played(np.concatenate((bark, bark)).astype(np.float64), RATE_HZ, 10 * RATE_HZ, RNG)
    silent = frame_levels(wave, RATE_HZ) < 1e-4
    longest = max(len(run) for run in "".join("x" if s else " " for s in silent).split())
    assert 0.2 <= longest * 0.02 <= 0.4
    assert len(wave) == 10 * RATE_HZ


def test_a_click_does_not_make_the_rest_of_a_recording_quiet() -> None:
    fire = 0.01 * np.random.default_rng(1).standard_normal(5 * RATE_HZ)
    fire[RATE_HZ : RATE_HZ + 40] = 1.0
    assert loud_stretches(fire, RATE_HZ) == [(0, len(fire))]
    tick = np.zeros(RATE_HZ)
    tick[8_000:8_100] = 0.5
    assert len(loud_stretches(tick, RATE_HZ)) == 1  # a single tick is a sound, too
    assert loud_stretches(np.zeros(RATE_HZ), RATE_HZ) == []
    assert loud_stretches(tick * 1e-4, RATE_HZ) == []


def test_playing_starts_at_any_of_the_sounds() -> None:
    two = np.concatenate((recording(500.0, 0.3, 1.0), recording(1500.0, 0.3, 1.0))).astype(np.float64)
    starts = set()
    for seed in range(8):
        wave = played(two, RATE_HZ, RATE_HZ // 4, np.random.default_rng(seed))
        starts.add(round(np.abs(np.fft.rfft(wave)).argmax() * 4, -2))
    assert starts == {500, 1500}


def test_every_second_is_loud_enough_and_peaks_are_limited() -> None:
    wave = np.random.default_rng(2).standard_normal(6 * RATE_HZ) * np.repeat([1, 0.01, 1, 0.1, 2, 1], RATE_HZ)
    wave[::4000] = 40.0
    level = at_level(wave, 0.1, RATE_HZ)
    seconds = by_second(level)
    assert np.sqrt((level**2).mean()) == pytest.approx(0.1)
    assert seconds.min() > 0.07
    assert np.abs(level).max() < 0.7


def test_a_recording_is_mixed_and_resampled(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(recording(700.0), RATE_HZ))
    for rate in (16_000, 24_000, 44_100):
        wave = read_sound(path, rate)
        assert len(wave) == pytest.approx(4.4 * rate, abs=64)
        spectrum = np.abs(np.fft.rfft(wave))
        assert spectrum.argmax() * rate / len(wave) == pytest.approx(700, abs=5)
        assert not wave.flags.writeable


def test_longer_recordings_are_cut_and_other_files_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(wav(np.full(62 * 8000, 0.1, np.float32), 8000))
    assert len(read_sound(path, 16_000)) == 60 * 16_000
    film = tmp_path / "film.mp4"
    film.write_bytes(
        mp4(
            (np.full((64, 64, 3), 8 * i, np.uint8) for i in range(20)),
            np.zeros(16_000, np.float32),
            size_px=64,
            fps=10,
            rate_hz=16_000,
        )
    )
    assert problem_of("sound", film) == "it is silent"
    assert problem_of("background", film) == "" and problem_of("picture", film) != ""
    assert problem_of("background", path) == "it has no frames"
    (tmp_path / "empty.wav").touch()
    assert "it is empty" in problem_of("sound", tmp_path / "empty.wav")
    assert "it is empty" in problem_of("sound", tmp_path / "none.wav")
    with wave_files.open(str(tmp_path / "six.wav"), "wb") as out:
        out.setparams((6, 2, 8000, 0, "NONE", ""))
        out.writeframes(b"\x10\x10" * 6 * 8000)
    assert problem_of("sound", tmp_path / "six.wav") == "it has 6 channels; mono and stereo are read"


def test_a_background_is_a_random_square_of_a_random_frame(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    grey = (np.full((64, 64, 3), 5 * i, np.uint8) for i in range(50))
    film.write_bytes(mp4(grey, np.zeros(80_000, np.float32), size_px=64, fps=10, rate_hz=16_000))
    walls = [read_background(film, 32, np.random.default_rng(seed)) for seed in range(6)]
    assert all(wall.shape == (32, 32, 3) for wall in walls)
    assert len({round(float(wall.mean()), -1) for wall in walls}) > 1
    assert np.array_equal(walls[0], read_background(film, 32, np.random.default_rng(0)))
    still = tmp_path / "wide.png"
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 30:] = 255
    Image.fromarray(wide).save(still)
    parts = [read_background(still, 16, np.random.default_rng(seed)) for seed in range(8)]
    assert {part.shape for part in parts} == {(16, 16, 3)}
    assert len({round(float(part.mean())) for part in parts}) > 2


def test_a_picture_is_cropped_to_what_is_seen_and_multiplied_by_alpha(tmp_path: Path) -> None:
    rgba = np.zeros((30, 40, 4), np.uint8)
    rgba[..., 0] = 200  # colour where nothing is seen
    rgba[10:20, 5:25, 1] = 100
    rgba[10:20, 5:25, 3] = 255
    rgba[10:20, 24, 3] = 51
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = read_picture(tmp_path / "a.png")
    assert image.shape == (10, 20, 4)
    assert image[0, 0] == pytest.approx([200, 100, 0, 1]) and image[0, -1] == pytest.approx([40, 20, 0, 0.2])
    Image.fromarray(rgba[..., :3]).save(tmp_path / "opaque.jpg")
    assert read_picture(tmp_path / "opaque.jpg").shape == (30, 40, 4)
    with pytest.raises(UnusableFile, match="million"):
        Image.new("L", (10_000, 6_000), 1).save(tmp_path / "huge.png")
        read_picture(tmp_path / "huge.png")


def square(size: int = 10) -> NDArray[np.float32]:
    """Red, with a green right half."""
    image = np.zeros((size, size, 4), np.float32)
    image[..., 0], image[..., 3] = 255, 1
    image[:, size // 2 :, :2] = (0, 255)
    return image


def test_a_picture_is_drawn_at_its_place_and_cut_at_the_border() -> None:
    canvas = np.full((40, 60, 3), 50, np.float32)
    top, left, cover = paste(canvas, square(), 30.0, 20.0, 1.0, 0.0)
    assert cover.sum() == pytest.approx(100, rel=0.01)
    rows, columns = np.nonzero(cover >= 0.5)
    assert (rows.min() + top, rows.max() + top) == (15, 24)
    assert (columns.min() + left, columns.max() + left) == (25, 34)
    assert canvas[20, 26] == pytest.approx([255, 0, 0]) and canvas[20, 33] == pytest.approx([0, 255, 0])
    assert canvas[20, 23] == pytest.approx([50, 50, 50])
    paste(canvas, square(), 0.0, 40.0, 1.0, 0.0)
    assert canvas[39, 0] == pytest.approx([0, 255, 0]) and canvas[39, 5] == pytest.approx([50, 50, 50])
    before = canvas.copy()
    assert paste(canvas, square(), 200.0, 20.0, 1.0, 0.0)[2].size == 0
    assert paste(canvas, square(), -200.0, 20.0, 1.0, 0.0)[2].size == 0
    assert np.array_equal(canvas, before)


def test_a_picture_turns_and_scales() -> None:
    canvas = np.zeros((60, 60, 3), np.float32)
    _, _, cover = paste(canvas, square(), 30.0, 30.0, 2.0, np.pi / 2)
    assert cover.sum() == pytest.approx(400, rel=0.02)
    assert canvas[38, 30] == pytest.approx([0, 255, 0], abs=1) and canvas[22, 30, 0] == pytest.approx(
        255, abs=1
    )


def test_half_transparent_pixels_let_half_through() -> None:
    canvas = np.full((20, 20, 3), 100, np.float32)
    _, _, cover = paste(canvas, square() * 0.25, 10.0, 10.0, 1.0, 0.0)
    assert canvas[10, 7] == pytest.approx([255 / 4 + 75, 75, 75])
    assert cover.max() == pytest.approx(0.25)


def test_a_look_has_the_object_size_and_varies_in_brightness_and_mirroring() -> None:
    sizes, mirrored = set(), set()
    for seed in range(8):
        look = look_of(resized(square(40), 40, 80), 15.0, np.random.default_rng(seed))
        sizes.add(look.shape)
        mirrored.add(bool(look[7, 3, 0] < look[7, -3, 0]))
        assert look[..., 3].max() == pytest.approx(1) and 0.8 < look.max() / 255 < 1.2
    assert sizes == {(15, 30, 4)} and mirrored == {False, True}


@pytest.mark.parametrize("name", GENTLE)
def test_pictures_stay_upright_and_of_one_size(name: str) -> None:
    poses = [MOTIONS[name](t / 20) for t in range(600)]
    assert max(abs(pose.angle) for pose in poses) <= 0.6 and {pose.scale for pose in poses} == {1.0}
