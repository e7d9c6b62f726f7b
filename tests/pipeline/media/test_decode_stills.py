"""Clips of images beside a wav, as in AVSBench: which image belongs to which second, and notes on bad ones."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caeav.pipeline.media.clip import DecodeError, Limits, Sampling
from caeav.pipeline.media.registry import decoders
from caeav.pipeline.media.stills import stills_folder

RATE_HZ = 8000
SAMPLING = Sampling(5, 1.0, RATE_HZ)
COLOURS = [(40 * n, 0, 255 - 40 * n) for n in range(1, 6)]


def write_wav(path: Path, seconds: float = 5.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    samples = (8000 * np.sin(2 * np.pi * 440 * t)).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        out.writeframes(samples.tobytes())
    return path


def write_images(folder: Path, pattern: str, numbers: list[int], size: tuple[int, int] = (8, 6)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", size, COLOURS[number - 1]).save(folder / pattern.format(number))
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """An S4 clip whose id looks like a command-line option."""
    write_images(tmp_path / "visual_frames/train/horse/-a_b", "-a_b_{}.png", [1, 2, 3, 4, 5])
    return write_wav(tmp_path / "audio_wav/train/horse/-a_b.wav")


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_each_second_has_its_image_and_the_audio_of_the_wav(
    clip: Path, decoder: str, needs: Callable[[str], None]
) -> None:
    needs({"pyav": "av"}.get(decoder, decoder))
    decoded = decoders[decoder]().decode(str(clip), 0.0, SAMPLING)
    assert decoded.frames is not None and decoded.frames.shape == (5, 6, 8, 3)
    assert [tuple(frame[3, 4].tolist()) for frame in decoded.frames] == COLOURS
    assert decoded.frames_ok == decoded.audio_ok == (True,) * 5
    assert decoded.wave is not None and np.abs(decoded.wave).max() == pytest.approx(8000 / 32768, rel=0.02)
    assert decoded.notes == []
    assert decoded.facts["video"] == {"codec": "stills", "fps": 1.0, "height": 6, "width": 8}


def test_ms3_images_are_found_without_a_split_folder_and_with_mp4_in_their_names(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "visual_frames/x_1", "x_1.mp4_{}.png", [1, 2, 3, 4, 5])
    wav = write_wav(tmp_path / "audio_wav/test/x_1.wav")
    assert stills_folder(str(wav)) == folder
    decoded = decoders["pyav"]().decode(str(wav), 0.0, SAMPLING)
    assert decoded.frames is not None
    assert [tuple(frame[0, 0].tolist()) for frame in decoded.frames] == COLOURS


def test_clips_of_several_sample_rates_share_their_images(clip: Path) -> None:
    slow, fast = decoders["pyav"]().decode_each(str(clip), 0.0, [SAMPLING, Sampling(5, 1.0, 16000)])
    assert slow.wave is not None and fast.wave is not None
    assert (slow.wave.size, fast.wave.size) == (40000, 80000)
    assert np.array_equal(slow.frames, fast.frames)


def test_a_wav_elsewhere_or_without_images_is_audio_only(tmp_path: Path) -> None:
    (tmp_path / "visual_frames/other").mkdir(parents=True)
    assert stills_folder(str(write_wav(tmp_path / "audio_wav/train/horse/a.wav"))) is None
    assert stills_folder(str(write_wav(tmp_path / "sounds/other.wav"))) is None
    assert stills_folder(str(tmp_path / "audio_wav" / "other.mp4")) is None
    alone = decoders["pyav"]().decode(str(tmp_path / "audio_wav/train/horse/a.wav"), 0.0, SAMPLING)
    assert alone.frames is None and "no_video" in {note.code for note in alone.notes}


def test_missing_and_damaged_images_are_replaced_and_noted(clip: Path) -> None:
    folder = stills_folder(str(clip))
    assert folder is not None
    (folder / "-a_b_5.png").unlink()
    (folder / "-a_b_2.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    Image.new("RGB", (16, 12), COLOURS[2]).save(folder / "-a_b_3.png")
    decoded = decoders["pyav"]().decode(str(clip), 0.0, SAMPLING)
    assert decoded.frames_ok == (True, False, True, True, False)
    assert decoded.frames is not None
    shown = [tuple(frame[3, 4].tolist()) for frame in decoded.frames]
    assert shown == [COLOURS[0], COLOURS[0], COLOURS[2], COLOURS[3], COLOURS[3]]
    said = {note.code: note.detail for note in decoded.notes}
    assert set(said) == {"short_video", "damaged", "size_changes"}
    assert "4 pictures; 1 of 5 segments have none" in said["short_video"]
    assert "-a_b_2.png is not a readable picture" in said["damaged"]


def test_audio_that_does_not_decode_leaves_the_images(clip: Path) -> None:
    clip.write_bytes(b"no wav at all")
    decoded = decoders["pyav"]().decode(str(clip), 0.0, SAMPLING)
    assert decoded.wave is None and decoded.audio_ok == (False,) * 5
    assert any(note.code == "damaged" and "not readable media" in note.detail for note in decoded.notes)
    folder = stills_folder(str(clip))
    assert folder is not None
    for frame in folder.iterdir():
        frame.write_bytes(b"")
    with pytest.raises(DecodeError, match="not readable media"):
        decoders["pyav"]().decode(str(clip), 0.0, SAMPLING)


def test_limits_apply_to_images(clip: Path) -> None:
    small = decoders["pyav"](Limits(frame_pixels=40))  # type: ignore[call-arg]  # every decoder here takes limits
    decoded = small.decode(str(clip), 0.0, SAMPLING)
    assert decoded.frames is None
    assert any("picture size: 48 pixels is more than the allowed 40" in note.detail for note in decoded.notes)
