"""Truncated, flipped, renamed and oversized files: an error or true notes, never a silent loss."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_signals import note_codes

from caeav.pipeline.media.clip import DecodeError, Limits, Sampling
from caeav.pipeline.media.registry import decoders

SAMPLING = Sampling(4, 1.0, 32000)


@pytest.fixture
def good(write: Any) -> bytes:
    """A file of 4 s, H.264 and PCM in Matroska: after truncation the rest is still exact."""
    audio = np.random.default_rng(1).integers(-20000, 20000, (1, 4 * 32000), dtype=np.int16)
    content: bytes = write("good.mkv", frame_s=[n / 30 for n in range(120)], audio=audio).path.read_bytes()
    return content


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_a_truncated_file_has_only_its_remaining_content_called_real(
    good: bytes, tmp_path: Path, decoder: Any, share: float
) -> None:
    (tmp_path / "whole.mkv").write_bytes(good)
    (tmp_path / "cut.mkv").write_bytes(good[: round(len(good) * share)])
    whole = decoder.decode(str(tmp_path / "whole.mkv"), 0.0, SAMPLING)
    cut = decoder.decode(str(tmp_path / "cut.mkv"), 0.0, SAMPLING)
    assert not all(cut.audio_ok) and not all(cut.frames_ok)
    assert {"short_audio", "short_video", "damaged"} <= note_codes(cut)
    assert any("header promises 4." in note.detail for note in cut.notes)
    audio = cut.wave.reshape(4, -1), whole.wave.reshape(4, -1)
    kept = cut.facts["audio"]["samples"]
    assert np.array_equal(cut.wave[: kept - 64], whole.wave[: kept - 64])
    for t in range(4):
        if cut.audio_ok[t] and (t + 1) * 32000 <= kept:
            assert np.array_equal(audio[0][t], audio[1][t])
        if cut.frames_ok[t] and (t + 0.5) * 32000 <= kept:
            assert np.abs(cut.frames[t].astype(int) - whole.frames[t]).mean() < 1.0


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_give_an_error_or_whole_arrays(
    good: bytes, tmp_path: Path, decoder: Any, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    content = bytearray(good)
    for at in generator.integers(500, len(content), 40):
        content[at] ^= int(generator.integers(1, 256))
    path = tmp_path / "flipped.mkv"
    path.write_bytes(content)
    try:
        clip = decoder.decode(str(path), 0.0, SAMPLING)
    except DecodeError as error:
        assert str(error)
        return
    if clip.frames is not None:
        assert clip.frames.shape == (4, 64, 160, 3) and clip.frames.dtype == np.uint8
    if clip.wave is not None:
        assert clip.wave.shape == (SAMPLING.samples,) and np.isfinite(clip.wave).all()
    if not all(clip.frames_ok) or not all(clip.audio_ok):
        assert note_codes(clip) & {"damaged", "short_audio", "short_video", "no_video", "no_audio"}


def test_lost_audio_in_the_middle_is_counted(shared: Path, tmp_path: Path) -> None:
    """With overwritten AAC packets, frames stay, lost audio is noted in seconds, later audio keeps its time."""
    source = shared / "data" / "media" / "vas_dog_02754.mp4"
    if not source.is_file():
        pytest.skip(f"no {source}")
    import av

    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for packet in container.demux(container.streams.audio[0]):
            if packet.size and 3.0 <= float(packet.pts * packet.time_base) < 6.0:
                content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path = tmp_path / "holed.mp4"
    path.write_bytes(content)
    sampling = Sampling(10, 1.0, 32000)
    whole = decoders["pyav"]().decode(str(source), 0.0, sampling)
    holed = decoders["pyav"]().decode(str(path), 0.0, sampling)
    assert all(holed.frames_ok)
    assert [n for n, ok in enumerate(holed.audio_ok) if not ok] == [3, 4, 5]
    [damaged] = [note.detail for note in holed.notes if note.code == "damaged"]
    assert "decoding errors, first: " in damaged and "s of sound decoded of 10.000 s promised" in damaged
    later = slice(7 * 32000, 10 * 32000)
    assert np.abs(holed.wave[later] - whole.wave[later]).max() < 1e-3


def test_audio_that_does_not_decode_leaves_the_frames(shared: Path, tmp_path: Path, decoder: Any) -> None:
    source = shared / "data" / "media" / "vas_dog_02754.mp4"
    if not source.is_file():
        pytest.skip(f"no {source}")
    import av

    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        for packet in container.demux(container.streams.audio[0]):
            if packet.size:
                content[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path = tmp_path / "mute.mp4"
    path.write_bytes(content)
    clip = decoder.decode(str(path), 0.0, Sampling(10, 1.0, 16000))
    assert all(clip.frames_ok) and not any(clip.audio_ok)
    assert clip.wave.shape == (160000,) and not clip.wave.any()
    assert any(n.code == "damaged" and "no sample decodes of 10.000 s" in n.detail for n in clip.notes)


def test_files_that_are_not_media_are_refused_with_the_reason(tmp_path: Path, decoder: Any) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a film\n" * 100)
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.mp4"))
    expected = {
        "missing.mp4": "cannot read missing.mp4: No such file",
        "empty.mp4": r"empty.mp4 is empty \(0 bytes\)",
        "text.mp4": r"text.mp4 \(1100 bytes\) is not readable media",
        "folder.mp4": "is not a regular file",
        "pipe.mp4": "is not a regular file",
        "socket.mp4": "is not a regular file",
    }
    for name, reason in expected.items():
        with pytest.raises(DecodeError, match=reason):
            decoder.decode(str(tmp_path / name), 0.0, SAMPLING)


def test_a_file_that_points_at_other_files_is_not_followed(write: Any, tmp_path: Path) -> None:
    """FFmpeg would open playlists and scripts under any name."""
    write("secret.ts", frame_s=[n / 30 for n in range(60)], clock=90000)
    (tmp_path / "list.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.ts\n#EXT-X-ENDLIST\n"
    )
    (tmp_path / "script.mp4").write_text("ffconcat version 1.0\nfile secret.ts\n")
    for name in ("list.mp4", "script.mp4"):
        with pytest.raises(DecodeError, match="is not readable media"):
            decoders["pyav"]().decode(str(tmp_path / name), 0.0, SAMPLING)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"file_bytes": 1000}, r"file size: \d+ bytes is more than the allowed 1000 bytes"),
        ({"frame_pixels": 100}, "picture size: 10240 pixels is more than the allowed 100 pixels"),
        ({"duration_s": 2.0}, r"duration: 4\S* s is more than the allowed 2 s"),
        ({"streams": 1}, "number of streams: 2 is more than the allowed 1"),
        ({"packets": 20}, "packets read for one clip: 21 is more than the allowed 20"),
        ({"audio_rate_hz": 8000}, "audio rate: 32000 Hz is more than the allowed 8000 Hz"),
        ({"frames": 10}, "pictures decoded for one clip: 11 is more than the allowed 10"),
    ],
)
def test_every_limit_is_an_error_with_value_and_limit(
    good: bytes, tmp_path: Path, limits: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "good.mkv"
    path.write_bytes(good)
    with pytest.raises(DecodeError, match=reason):
        decoders["pyav"](replace(Limits(), **limits)).decode(str(path), 0.0, SAMPLING)  # type: ignore[call-arg]
