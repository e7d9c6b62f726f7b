"""Unusual media: joined, truncated, mirrored, with odd audio; only what is real is called real, the rest is noted."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_signals import frame_times, note_codes

from caeav.manifests.readers import MEDIA_EXTENSIONS
from caeav.pipeline.media.clip import DecodeError, Sampling
from caeav.pipeline.media.registry import decoders

RATE = 16000


def _tone(seconds: float, hz: float, rate_hz: int = RATE, channels: int = 1) -> np.ndarray[Any, Any]:
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return np.tile(np.round(12000 * np.sin(2 * np.pi * hz * times)).astype(np.int16), (channels, 1))


def _pitch(wave: Any, rate_hz: int = RATE) -> float:
    """The strongest frequency of a piece of audio, without its first and last tenth."""
    inside = wave[len(wave) // 10 : -len(wave) // 10]
    spectrum = np.abs(np.fft.rfft(inside * np.hanning(inside.size)))
    return float(np.argmax(spectrum) * rate_hz / inside.size)


@pytest.mark.parametrize(
    ("suffix", "codec"), [("flv", "aac"), ("ts", "aac"), ("mkv", "pcm_s16le"), ("avi", "pcm_s16le")]
)
@pytest.mark.parametrize("start_s", [0.0, 14.0])
def test_no_stale_frame_is_real_where_the_audio_continues(
    write: Any, read_number: Any, suffix: str, codec: str, start_s: float
) -> None:
    made = write(
        f"longer.{suffix}",
        frame_s=frame_times(2),
        audio=_tone(24, 440, 44100),
        rate_hz=44100,
        audio_codec=codec,
    )
    clip = decoders["pyav"]().decode(str(made.path), start_s, Sampling(5, 1.0, RATE))
    late = suffix == "flv"  # it starts with the encoder delay of the audio, so its frames end after 2 s
    assert clip.frames_ok == ((True,) * (2 + late) + (False,) * (3 - late) if start_s == 0 else (False,) * 5)
    assert all(clip.audio_ok) and "short_video" in note_codes(clip) and "damaged" not in note_codes(clip)
    assert read_number(clip.frames[-1]) in (57, 58, 59)


def test_no_decoder_calls_a_stale_frame_real(write: Any, decoder: Any) -> None:
    made = write("longer.mkv", frame_s=frame_times(2), audio=_tone(24, 440), rate_hz=RATE)
    clip = decoder.decode(str(made.path), 0.0, Sampling(4, 1.0, RATE))
    assert clip.frames_ok == (True, True, False, False) and "short_video" in note_codes(clip)


def test_a_long_frame_is_real_until_the_next(write: Any, decoder: Any) -> None:
    """Slides have four seconds between frames; a frame shown meanwhile is not stale."""
    made = write("slides.mkv", frame_s=[0.0, 4.0, 8.0], audio=_tone(9, 440), rate_hz=RATE)
    clip = decoder.decode(str(made.path), 0.0, Sampling(8, 1.0, RATE))
    assert all(clip.frames_ok)


def test_a_truncated_file_with_its_index_is_refused_past_its_data(shared: Path, decoder: Any) -> None:
    path = shared / "cases" / "cut_off_faststart.mp4"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with pytest.raises(DecodeError, match=r"promises 30\.000 s, the file's packets end at 12\.800 s"):
        decoder.decode(str(path), 18.0, Sampling(4, 1.0, RATE))


@pytest.mark.parametrize(
    ("degrees", "mirrored"), [(d, m) for d in (0, 90, 180, 270) for m in ((0, 0), (1, 0), (0, 1))]
)
def test_frames_are_rotated_and_mirrored_as_the_container_says(
    write: Any, decoder: Any, degrees: int, mirrored: tuple[int, int]
) -> None:
    sampling = Sampling(1, 1.0, RATE)
    flat = (
        decoders["pyav"]()
        .decode(str(write("plain.mp4", frame_s=frame_times(1)).path), 0.0, sampling)
        .frames[0]
    )
    path = write(
        "asked.mp4", frame_s=frame_times(1), rotation=degrees, mirrored=(bool(mirrored[0]), bool(mirrored[1]))
    ).path
    clip = decoder.decode(str(path), 0.0, sampling)
    expected = np.rot90(flat, degrees // 90)
    expected = expected[:, ::-1] if mirrored[0] else expected
    expected = expected[::-1] if mirrored[1] else expected
    assert np.abs(clip.frames[0].astype(int) - expected).mean() < 3
    rotated = [note.detail for note in clip.notes if note.code == "rotated"]
    if any(mirrored):
        assert any("mirrored" in detail for detail in rotated)
    elif degrees:
        assert rotated or (degrees == 180 and decoder.name == "decord")
    else:
        assert not rotated


def test_planar_audio_of_eight_channels_is_mixed(write: Any, decoder: Any) -> None:
    """Planar 7.1 once crashed the process; a tone in the centre keeps its weight, one in the LFE channel has none."""
    silent = np.zeros(2 * 48000, dtype=np.int16)
    for channel, share in ((2, 1 / 4.4142), (4, 0.5 / 4.4142), (3, 0.0)):
        audio = np.stack([_tone(2, 100, 48000)[0] if c == channel else silent for c in range(8)])
        made = write(
            f"eight{channel}.mp4", frame_s=frame_times(2), audio=audio, layout="7.1", rate_hz=48000,
            audio_codec="aac", bit_rate=512_000,
        )  # fmt: skip
        clip = decoder.decode(str(made.path), 0.0, Sampling(2, 1.0, RATE))
        middle = np.abs(clip.wave[RATE // 2 : 3 * RATE // 2]).max()
        assert middle == pytest.approx(share * 12000 / 32768, abs=0.01)
        assert all(clip.frames_ok) and all(clip.audio_ok)


@pytest.mark.parametrize("name", ["pyav", "decord"])
def test_a_custom_channel_order_is_decoded_without_a_crash(shared: Path, name: str) -> None:
    """In a separate process, which PyAV used to crash; torchcodec reads the order with the same code."""
    if name != "pyav":
        pytest.importorskip(name)
    path = shared / "cases" / "pcm_5.1_film_order.mov"
    if not path.is_file():
        pytest.skip(f"no {path}")
    code = (
        "import sys; from caeav.pipeline.media.registry import decoders; "
        "from caeav.pipeline.media.clip import Sampling; "
        "clip = decoders[sys.argv[2]]().decode(sys.argv[1], 0.0, Sampling(2, 1.0, 16000)); "
        "print(clip.frames_ok, clip.audio_ok, [n.detail for n in clip.notes]); del clip"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(True, True) (True, True)" in done.stdout and "FL FC FR SL SR LFE" in done.stdout


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
@pytest.mark.parametrize("start_s", [1.0, 4.0, 6.0])
def test_parts_of_a_joined_file_follow_each_other(
    write: Any, read_number: Any, tmp_path: Path, suffix: str, start_s: float
) -> None:
    """After 4 s the clock and the frame numbers start again, and the tone changes."""
    video = {"ts": "libx264", "mpg": "mpeg2video"}[suffix]
    parts = [
        write(f"{hz}.{suffix}", frame_s=frame_times(4), audio=_tone(4, hz, 48000), rate_hz=48000, audio_codec="mp2",
              video_codec=video, clock=30).path.read_bytes()
        for hz in (500, 1500)
    ]  # fmt: skip
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(parts))
    clip = decoders["pyav"]().decode(str(joined), start_s, Sampling(2, 1.0, RATE))
    for t in range(2):
        time_s = start_s + t + 0.5
        assert clip.frames_ok[t] and clip.audio_ok[t]
        assert read_number(clip.frames[t]) == pytest.approx(30 * (time_s % 4), abs=6)
        assert _pitch(clip.wave[t * RATE : (t + 1) * RATE]) == pytest.approx(
            500 if time_s < 4 else 1500, abs=5
        )
    assert start_s < 4 - 2 - 1 or "joined" in note_codes(clip)
    for name in ("torchcodec", "decord"):
        try:
            other = decoders[name]()
            other.decode(str(joined), start_s, Sampling(2, 1.0, RATE))
        except DecodeError as error:
            assert "2 files joined" in str(error) and "--decoder pyav" in str(error)
        except Exception as error:  # the library may not be installed
            assert "load" in str(error) or "No module" in str(error)
        else:
            pytest.fail(f"{name} reads what it cannot place")


@pytest.mark.parametrize(("suffix", "codec", "rate_hz"), [("flac", "flac", RATE), ("ogg", "libopus", 48000)])
def test_joined_audio_files_play_one_after_the_other(
    write: Any, tmp_path: Path, suffix: str, codec: str, rate_hz: int
) -> None:
    parts = [
        write(
            f"{hz}.{suffix}", audio=_tone(4, hz, rate_hz), rate_hz=rate_hz, audio_codec=codec
        ).path.read_bytes()
        for hz in (500, 1500)
    ]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(parts))
    for start_s, hz in ((0.0, 500), (2.0, 500), (5.0, 1500)):
        clip = decoders["pyav"]().decode(str(joined), start_s, Sampling(1, 1.0, RATE))
        assert clip.audio_ok == (True,) and _pitch(clip.wave) == pytest.approx(hz, abs=5)


def test_a_sample_rate_that_changes_is_followed_or_refused(write: Any, tmp_path: Path, decoder: Any) -> None:
    parts = [
        write(
            f"{rate}.mp3", audio=_tone(5, hz, rate), rate_hz=rate, audio_codec="libmp3lame"
        ).path.read_bytes()
        for rate, hz in ((22050, 500), (24000, 1500))
    ]
    joined = tmp_path / "rates.mp3"
    joined.write_bytes(b"".join(parts))
    if decoder.name != "pyav":
        with pytest.raises(DecodeError, match=r"its sample rate changes, which .* does not follow"):
            decoder.decode(str(joined), 0.0, Sampling(8, 1.0, RATE))
        return
    clip = decoder.decode(str(joined), 0.0, Sampling(8, 1.0, RATE))
    pitches = [_pitch(part) for part in clip.wave.reshape(8, -1)]
    assert pitches[:4] == pytest.approx([500] * 4, abs=5) and pitches[6:] == pytest.approx([1500] * 2, abs=5)
    assert any(n.code == "rate_changes" and "24000 Hz" in n.detail for n in clip.notes)


@pytest.mark.parametrize("start_s", [0.0, 6.0])
def test_a_palette_survives_a_seek_or_is_refused(shared: Path, decoder: Any, start_s: float) -> None:
    path = shared / "cases" / "palette.avi"
    if not path.is_file():
        pytest.skip(f"no {path}")
    if decoder.name != "pyav":
        with pytest.raises(DecodeError, match="loses its palette"):
            decoder.decode(str(path), start_s, Sampling(2, 1.0, RATE))
        return
    assert decoder.decode(str(path), start_s, Sampling(2, 1.0, RATE)).frames.mean() > 240


def test_audio_shorter_than_half_a_segment_is_real_if_there_is_no_more(write: Any, decoder: Any) -> None:
    made = write("short.wav", audio=_tone(0.45, 500), rate_hz=RATE)
    clip = decoder.decode(str(made.path), 0.0, Sampling(2, 1.0, RATE))
    assert clip.audio_ok == (True, False)
    assert any(n.code == "short_audio" and "0.450 of 2.000 s" in n.detail for n in clip.notes)


def test_the_short_rest_of_longer_audio_is_not_real(write: Any) -> None:
    made = write("long.wav", audio=_tone(8.3, 500), rate_hz=RATE)
    clip = decoders["pyav"]().decode(str(made.path), 8.0, Sampling(1, 1.0, RATE))
    assert clip.audio_ok == (False,) and "short_audio" in note_codes(clip)


def test_channels_that_cancel_are_not_called_digital_silence(write: Any, decoder: Any) -> None:
    tone = _tone(2, 500)[0]
    made = write("opposite.wav", audio=np.stack([tone, -tone]), layout="stereo", rate_hz=RATE)
    [said] = [
        n.detail
        for n in decoder.decode(str(made.path), 0.0, Sampling(2, 1.0, RATE)).notes
        if n.code == "silent_audio"
    ]
    assert "cancel" in said and "digital silence" not in said
    quiet = write("quiet.wav", audio=np.zeros((2, 2 * RATE), dtype=np.int16), layout="stereo", rate_hz=RATE)
    [said] = [
        n.detail
        for n in decoders["pyav"]().decode(str(quiet.path), 0.0, Sampling(2, 1.0, RATE)).notes
        if n.code == "silent_audio"
    ]
    assert said == "digital silence: every sample is zero"


def test_audio_keeps_its_time_where_the_containers_clock_starts_late(write: Any) -> None:
    """Both streams begin at 5 s of the container's clock, which is media time 0."""
    noise = np.random.default_rng(0).integers(-9000, 9000, (1, 3 * RATE), dtype=np.int16)
    made = write(
        "late.mkv", frame_s=[5 + s for s in frame_times(3)], audio=noise, audio_from_s=5.0, rate_hz=RATE
    )
    clip = decoders["pyav"]().decode(str(made.path), 1.0, Sampling(2, 1.0, RATE))
    assert np.array_equal(clip.wave, noise[0, RATE:].astype(np.float32) / 32768)


def test_non_finite_samples_are_set_to_zero_and_counted(tmp_path: Path, decoder: Any) -> None:
    samples = np.full(2 * RATE, 0.25, dtype="<f4")
    samples[100:110], samples[200] = np.nan, np.inf
    body = samples.tobytes()
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(body),
        b"WAVE",
        b"fmt ",
        16,
        3,
        1,
        RATE,
        4 * RATE,
        4,
        32,
        b"data",
        len(body),
    )
    (tmp_path / "nan.wav").write_bytes(head + body)
    clip = decoder.decode(str(tmp_path / "nan.wav"), 0.0, Sampling(2, 1.0, RATE))
    assert np.isfinite(clip.wave).all() and not clip.wave[100:110].any() and clip.wave[300] == 0.25
    assert any(n.code == "damaged" and "of 32000 samples are not numbers" in n.detail for n in clip.notes)


@pytest.mark.parametrize("start_s", [0.0, 6.5, 8.0])
def test_mpeg_ps_is_not_called_damaged_after_a_seek(write: Any, start_s: float) -> None:
    made = write(
        "whole.mpg", frame_s=frame_times(11), audio=_tone(11, 500, 48000), rate_hz=48000, audio_codec="ac3",
        video_codec="mpeg2video", clock=30,
    )  # fmt: skip
    clip = decoders["pyav"]().decode(str(made.path), start_s, Sampling(2, 1.0, RATE))
    assert "damaged" not in note_codes(clip) and all(clip.frames_ok) and all(clip.audio_ok)


def test_a_guessed_duration_does_not_make_a_file_damaged(tmp_path: Path) -> None:
    """AMR does not store its duration; FFmpeg guesses 10.3 s for these 10 s."""
    random = np.random.default_rng(1)
    frames = [bytes([0x14]) + random.integers(0, 256, 32, dtype=np.uint8).tobytes() for _ in range(500)]
    (tmp_path / "noise.awb").write_bytes(b"#!AMR-WB\n" + b"".join(frames))
    clip = decoders["pyav"]().decode(str(tmp_path / "noise.awb"), 8.5, Sampling(2, 1.0, RATE))
    assert "damaged" not in note_codes(clip) and "short_audio" in note_codes(clip)


def test_non_square_pixels_are_noted(write: Any, decoder: Any) -> None:
    made = write("wide.mp4", frame_s=frame_times(1), pixel=(16, 11))
    clip = decoder.decode(str(made.path), 0.0, Sampling(1, 1.0, RATE))
    assert clip.frames.shape[1:3] == (64, 160)
    assert any(n.code == "non_square_pixels" and "players show 233x64" in n.detail for n in clip.notes)
    plain = write("plain.mp4", frame_s=frame_times(1))
    assert "non_square_pixels" not in note_codes(decoder.decode(str(plain.path), 0.0, Sampling(1, 1.0, RATE)))


def test_audio_with_a_gap_is_not_real_with_decoders_that_close_it(
    write: Any, tmp_path: Path, decoder: Any
) -> None:
    import av

    made = write("whole.mkv", frame_s=frame_times(4), audio=_tone(4, 500), rate_hz=RATE)
    path = tmp_path / "hole.mkv"
    with av.open(str(made.path)) as source, av.open(str(path), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.pts is None or (
                packet.stream.type == "audio" and 1.0 <= packet.pts * packet.time_base < 2.0
            ):
                continue
            packet.stream = streams[packet.stream_index]
            out.mux(packet)
    clip = decoder.decode(str(path), 0.0, Sampling(4, 1.0, RATE))
    assert all(clip.frames_ok)
    if decoder.name == "pyav":
        assert clip.audio_ok == (True, False, True, True) and "short_audio" in note_codes(clip)
    else:
        assert not any(clip.audio_ok) and any("there are holes in it" in n.detail for n in clip.notes)


@pytest.mark.parametrize("suffix", [".aiff", ".aif", ".mka", ".oga", ".wma", ".gif", ".vob", ".asf", ".3g2"])
def test_less_common_extensions_count_as_media(suffix: str) -> None:
    assert suffix in MEDIA_EXTENSIONS
