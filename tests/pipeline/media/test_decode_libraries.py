"""Known faults of decord and torchcodec are corrected or refused: starts of Vorbis and Opus, lost packets, joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_signals import noise

from caeav.pipeline.media.clip import DecodeError, Sampling
from caeav.pipeline.media.registry import decoders

RATE = 48000
CLICKS_S = (0.5, 1.5, 6.5)


def _clicks() -> np.ndarray[Any, Any]:
    audio = np.zeros(7 * RATE, dtype=np.int16)
    for at_s in CLICKS_S:
        audio[round(at_s * RATE) :][:48] = 29000
    return audio


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.webm", "libopus"),
        ("b.mkv", "libopus"),
        ("a.mp4", "libopus"),
        ("a.opus", "libopus"),
    ],
)
@pytest.mark.parametrize("start_s", [0.0, 6.0])
def test_a_click_in_opus_is_at_its_time(
    write: Any, decoder: Any, name: str, codec: str, start_s: float
) -> None:
    """Opus starts with 6.5 ms that must be dropped; otherwise all audio is late."""
    frames = {} if name == "a.opus" else {"frame_s": [n / 25 for n in range(175)]}
    if name == "a.webm":
        frames["video_codec"] = "libvpx"
    made = write(name, audio=_clicks(), rate_hz=RATE, audio_codec=codec, **frames)
    clip = decoder.decode(str(made.path), start_s, Sampling(1, 1.0, RATE))
    at = int(np.argmax(np.abs(clip.wave)))
    assert at / RATE == pytest.approx(0.5, abs=0.0015)


def test_decord_decodes_vorbis_in_webm_at_the_right_time(shared: Path, needs: Any) -> None:
    """The first packet gives no sample; decord counts from there, 16 ms early."""
    needs("decord")
    path = str(shared / "data" / "media" / "big_buck_bunny_432_433.webm")
    waves = [decoders[name]().decode(path, 0.0, Sampling(1, 1.0, 44100)).wave for name in ("pyav", "decord")]
    begins = [int(np.flatnonzero(wave)[0]) for wave in waves]
    assert abs(begins[1] - begins[0]) < 22  # half a millisecond: containers round


def test_wavpack_in_matroska_is_decoded_whole_or_not_called_real(write: Any, decoder: Any) -> None:
    """Its packets have no duration; torchcodec gives no sample of the first one, so it is not used."""
    made = write(
        "a.mkv",
        frame_s=[n / 25 for n in range(150)],
        audio=noise(6, 16000, level=9000),
        rate_hz=16000,
        audio_codec="wavpack",
    )
    clip = decoder.decode(str(made.path), 0.0, Sampling(3, 1.0, 16000))
    assert all(clip.frames_ok)
    if decoder.name == "torchcodec":
        assert not any(clip.audio_ok)
        assert any("torchcodec loses packets of wavpack in matroska" in note.detail for note in clip.notes)
    else:
        assert all(clip.audio_ok)
        assert np.abs(clip.wave - made.audio[0, : 3 * 16000] / 32768).max() < 0.01  # of 8 bits


@pytest.mark.parametrize(
    ("name", "codec"), [("a.wav", "adpcm_ms"), ("b.wav", "adpcm_ima_wav"), ("a.caf", "alac")]
)
def test_codecs_of_which_torchcodec_loses_packets_are_refused(
    write: Any, decoder: Any, name: str, codec: str
) -> None:
    made = write(name, audio=noise(4, 16000, level=9000), rate_hz=16000, audio_codec=codec)
    if decoder.name != "torchcodec":
        assert all(decoder.decode(str(made.path), 0.0, Sampling(3, 1.0, 16000)).audio_ok)
        return
    with pytest.raises(
        DecodeError, match=rf"torchcodec loses packets of {codec} in .*--decoder pyav does not"
    ):
        decoder.decode(str(made.path), 0.0, Sampling(3, 1.0, 16000))


def test_a_joined_matroska_is_refused_by_decoders_that_show_stale_frames(
    write: Any, tmp_path: Path, decoder: Any
) -> None:
    """Frames of part two have the times of part one and are dropped; what is then shown is the last of part one."""
    parts = [write(f"{n}.mkv", frame_s=[n / 25 for n in range(100)]).path.read_bytes() for n in range(2)]
    path = tmp_path / "joined.mkv"
    path.write_bytes(b"".join(parts))
    clip = decoder.decode(str(path), 0.0, Sampling(2, 1.0, 16000))
    assert all(clip.frames_ok)
    if decoder.name == "pyav":
        clip = decoder.decode(str(path), 2.0, Sampling(4, 1.0, 16000))
        assert clip.frames_ok == (True, True, False, False) and any(
            note.code == "damaged" for note in clip.notes
        )
        return
    with pytest.raises(DecodeError, match=r"joined.mkv is several files joined, or broken") as refused:
        decoder.decode(str(path), 2.0, Sampling(4, 1.0, 16000))
    assert refused.value.hint == "use --decoder pyav"


def test_torchcodec_calls_no_stale_frame_of_an_asf_file_real(write: Any, needs: Any) -> None:
    """It does not give the last frame of ASF files; the one before has another timestamp than the packet."""
    needs("torchcodec")
    made = write("a.wmv", frame_s=[n / 5 for n in range(13)], audio=noise(6, 16000, level=9000), rate_hz=16000,
                 video_codec="wmv2", audio_codec="wmav2", bit_rate=64000)  # fmt: skip
    wanted = Sampling(3, 1.0, 16000)
    right = decoders["pyav"]().decode(str(made.path), 0.0, wanted)
    clip = decoders["torchcodec"]().decode(str(made.path), 0.0, wanted)
    for ours, theirs, ok in zip(right.frames, clip.frames, clip.frames_ok, strict=True):
        assert not ok or np.abs(ours.astype(int) - theirs).mean() < 2
