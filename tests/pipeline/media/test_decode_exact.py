"""Times are exact to the frame and the sample, on written files whose every frame and sample is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_signals import frame_times, noise

from caeav.pipeline.media.audio import AudioLine
from caeav.pipeline.media.clip import DecodeError, Sampling
from caeav.pipeline.media.registry import decoders

RATE = 32000
LSB = 1.01 / 32768


def _shown_at(frame_s: Any, time_s: float) -> int:
    return max(0, int(np.searchsorted(frame_s, time_s + 1e-6, side="right")) - 1)


@pytest.mark.parametrize("suffix", ["mkv", "mov"])
@pytest.mark.parametrize("start_s", [0.0, 1.0, 7.25])
def test_clips_have_the_right_frames_and_samples(
    write: Any, decoder: Any, read_number: Any, suffix: str, start_s: float
) -> None:
    """Also far inside the file, where a seek is needed, and at a fraction of a second."""
    made = write(f"exact.{suffix}", frame_s=frame_times(12), audio=noise(12, RATE))
    sampling = Sampling(4, 1.0, RATE)
    clip = decoder.decode(str(made.path), start_s, sampling)
    shown = [read_number(frame) for frame in clip.frames]
    assert shown == [_shown_at(made.frame_s, at) for at in sampling.centres_s(start_s)]
    first = round(start_s * RATE)
    expected = made.audio[0, first : first + sampling.samples] / 32768
    assert np.abs(clip.wave - expected).max() < LSB
    assert all(clip.frames_ok) and all(clip.audio_ok)


@pytest.mark.parametrize("rate_hz", [44100, 48000, 22050])
def test_resampling_keeps_the_time(write: Any, decoder: Any, rate_hz: int) -> None:
    """A tone at another rate, cut from the middle, equals the tone computed for those times."""
    times = np.arange(9 * rate_hz) / rate_hz
    tone = np.round(12000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
    made = write("tone.mov", frame_s=frame_times(9), audio=tone, rate_hz=rate_hz)
    clip = decoder.decode(str(made.path), 5.5, Sampling(3, 1.0, RATE))
    wanted = 12000 / 32768 * np.sin(2 * np.pi * 440 * (5.5 + np.arange(3 * RATE) / RATE))
    assert np.abs(clip.wave - wanted).max() < 2e-3  # one sample off would be 0.03


def test_audio_that_starts_after_the_video_keeps_its_time(write: Any, decoder: Any) -> None:
    made = write("late.mkv", frame_s=frame_times(4), audio=noise(3.5, RATE), audio_from_s=0.5)
    clip = decoder.decode(str(made.path), 0.0, Sampling(4, 1.0, RATE))
    half = RATE // 2
    assert not clip.wave[: half - 32].any()
    assert np.abs(clip.wave[half:] - made.audio[0, : 7 * half] / 32768).max() < LSB
    assert clip.audio_ok == (True, True, True, True)  # half of the first segment is real
    [note] = [note for note in clip.notes if note.code == "short_audio"]
    assert "3.500 of 4.000 s (112000 of 128000 samples), at 0.500-4.000 s" in note.detail


@pytest.mark.parametrize("start_s", [4.0, 11.0])
def test_a_clip_after_the_end_of_the_audio_is_silent_and_not_damaged(
    write: Any, decoder: Any, start_s: float
) -> None:
    made = write("ended.mov", frame_s=frame_times(14), audio=noise(3, RATE))
    clip = decoder.decode(str(made.path), start_s, Sampling(3, 1.0, RATE))
    assert all(clip.frames_ok) and not any(clip.audio_ok) and not clip.wave.any()
    assert {note.code for note in clip.notes} - {"longer_media"} == {"short_audio"}


def test_video_that_starts_after_the_audio_keeps_its_time(write: Any, decoder: Any, read_number: Any) -> None:
    made = write("video_late.mkv", frame_s=frame_times(2, from_s=2.0), audio=noise(4, RATE))
    clip = decoder.decode(str(made.path), 0.0, Sampling(4, 1.0, RATE))
    assert [read_number(frame) for frame in clip.frames] == [0, 0, 15, 45]
    assert clip.frames_ok == (False, False, True, True)
    [note] = [note for note in clip.notes if note.code == "short_video"]
    assert "starts at 2.000 s" in note.detail and "2 of 4 segments" in note.detail
    assert np.abs(clip.wave - made.audio[0] / 32768).max() < LSB


@pytest.mark.parametrize("start_s", [1.0, 8.0])
def test_media_time_starts_with_the_first_packet(write: Any, read_number: Any, start_s: float) -> None:
    """The clock of MPEG-TS starts at any value; media time 0 is the first packet."""
    made = write("clock.ts", frame_s=frame_times(12), clock=90000)
    clip = decoders["pyav"]().decode(str(made.path), start_s, Sampling(2, 1.0, RATE))
    first = round(start_s * 30)
    assert [read_number(frame) for frame in clip.frames] == [first + 15, first + 45]


def test_wrong_frames_of_a_decoder_are_not_called_real(write: Any, read_number: Any, decoder: Any) -> None:
    """In MPEG-TS decord and torchcodec begin at the second key frame; frames called real must be the right ones."""
    made = write("clock.ts", frame_s=frame_times(4), clock=90000)
    try:
        clip = decoder.decode(str(made.path), 0.0, Sampling(4, 1.0, RATE))
    except DecodeError as error:
        assert decoder.name != "pyav" and "mpegts" in str(error)  # nothing it returns could be checked
        return
    shown = [read_number(frame) for frame in clip.frames]
    right = [number == 15 + 30 * t for t, number in enumerate(shown)]
    assert (
        all(right) and all(clip.frames_ok)
    ) or decoder.name != "pyav"  # PyAV must not mark everything as lost
    assert all(is_right for is_right, ok in zip(right, clip.frames_ok, strict=True) if ok)
    assert all(clip.frames_ok) or "damaged" in {note.code for note in clip.notes}


def test_a_variable_frame_rate_is_followed_and_noted(write: Any, decoder: Any, read_number: Any) -> None:
    gaps = np.random.default_rng(3).choice([0.02, 0.04, 0.15], 120)
    frame_s = [0.0, *np.cumsum(gaps)]
    made = write("vfr.mp4", frame_s=frame_s)
    sampling = Sampling(int(frame_s[-1]), 1.0, RATE)
    clip = decoder.decode(str(made.path), 0.0, sampling)
    shown = [read_number(frame) for frame in clip.frames]
    assert shown == [_shown_at(frame_s, at) for at in sampling.centres_s(0.0)]
    assert any(note.code == "variable_frame_rate" and "0.150" in note.detail for note in clip.notes)


def test_six_channels_are_mixed_with_ffmpegs_weights(write: Any, decoder: Any) -> None:
    """A tone in the centre channel gets its weight 1 / 3.4142, one in the LFE channel none."""
    tone = np.round(20000 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.int16)
    silent = np.zeros_like(tone)
    for channel, share in ((0, 0.7071 / 3.4142), (2, 1 / 3.4142), (3, 0.0)):
        audio = np.stack([tone if c == channel else silent for c in range(6)])
        made = write(f"six{channel}.mkv", frame_s=frame_times(2), audio=audio, layout="5.1")
        clip = decoder.decode(str(made.path), 0.0, Sampling(2, 1.0, RATE))
        assert float(np.abs(clip.wave).max()) == pytest.approx(share * 20000 / 32768, abs=2e-3)
        assert "downmixed" in {note.code for note in clip.notes}


def test_a_gap_in_the_audio_keeps_its_place(write: Any) -> None:
    """Audio after lost packets is not moved forward (with PyAV, which gives times; the others join the rest)."""
    pieces = noise(4, RATE)[0].astype(np.float32) / 32768
    line = AudioLine(tick_s=1 / RATE, keep_s=(0.0, 10.0))
    for at in range(0, 4 * RATE, 1000):
        if not RATE <= at < 2 * RATE:
            line.add(at / RATE, pieces[at : at + 1000], RATE)
    audio = line.audio()
    wave = audio.window(0.0, 4 * RATE, RATE)
    assert not wave[RATE : 2 * RATE].any()
    assert np.array_equal(wave[2 * RATE :], pieces[2 * RATE :])
    assert audio.within(0.0, 4.0) == pytest.approx(3.0)


def test_times_rounded_to_milliseconds_do_not_move_samples() -> None:
    rate = 44100
    pieces = noise(3, rate)[0].astype(np.float32)
    line = AudioLine(tick_s=0.001, keep_s=(0.0, 10.0))
    for at in range(10 * 1024, pieces.size, 1024):  # starting in the middle, as after a seek
        line.add(round(at / rate, 3), pieces[at : at + 1024], rate)
    wave = line.audio().window(1.0, rate, rate)
    assert np.array_equal(wave, pieces[rate : 2 * rate])


def test_clips_before_the_start_or_past_the_end_are_errors(write: Any, decoder: Any) -> None:
    made = write("short.mov", frame_s=frame_times(2), audio=noise(2, RATE))
    with pytest.raises(DecodeError, match=r"starts at 20\.000 s but the media ends at 2\.0\d\d s"):
        decoder.decode(str(made.path), 20.0, Sampling(4, 1.0, RATE))
    with pytest.raises(DecodeError, match=r"starts at -1\.0 s"):
        decoder.decode(str(made.path), -1.0, Sampling(4, 1.0, RATE))


def test_a_guessed_duration_refuses_no_clip(write: Any, tmp_path: Path) -> None:
    """The duration of a bare stream is guessed from its first bit rate: here 4 s instead of 12 s."""
    parts = [
        write(
            f"{rate}.mp3", audio=noise(seconds, RATE), audio_codec="libmp3lame", bit_rate=rate
        ).path.read_bytes()
        for rate, seconds in ((320_000, 3), (64_000, 9))
    ]
    joined = tmp_path / "joined.mp3"
    joined.write_bytes(b"".join(parts))
    clip = decoders["pyav"]().decode(str(joined), 8.0, Sampling(3, 1.0, RATE))
    assert all(clip.audio_ok) and float(np.abs(clip.wave).max()) > 0.2
    with pytest.raises(DecodeError, match="nothing decodes"):
        decoders["pyav"]().decode(str(joined), 30.0, Sampling(3, 1.0, RATE))


def test_files_with_only_audio_or_only_video_are_decoded(write: Any, decoder: Any) -> None:
    sampling = Sampling(2, 1.0, RATE)
    audio = decoder.decode(str(write("sound.wav", audio=noise(2, RATE)).path), 0.0, sampling)
    assert audio.frames is None and audio.frames_ok == (False, False) and all(audio.audio_ok)
    assert {note.code for note in audio.notes} == {"no_video"}
    silent = decoder.decode(str(write("silent.mp4", frame_s=frame_times(2)).path), 0.0, sampling)
    assert silent.wave is None and silent.audio_ok == (False, False) and all(silent.frames_ok)
    assert {note.code for note in silent.notes} == {"no_audio"}
