"""AVI stores no times: after lost bytes only its index says where frames and audio belong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.pipeline.media.clip import DecodeError, Sampling
from caeav.pipeline.media.registry import decoders

RATE = 16000
SAMPLING = Sampling(4, 1.0, RATE)
FPS = 30  # as `write` writes


def _zeroed(made: Any, first: float, last: float) -> str:
    """A copy of a file with a part of its bytes overwritten by zeros, as after a disk error."""
    content = bytearray(made.path.read_bytes())
    begin, end = round(len(content) * first), round(len(content) * last)
    content[begin:end] = bytes(end - begin)
    path: Path = made.path.with_name("zeroed.avi")
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("video_codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize(
    "audio_codec", ["pcm_s16le", "pcm_s24le", "pcm_mulaw", "adpcm_ms", "mp2", "libmp3lame"]
)
def test_frames_and_audio_after_lost_bytes_keep_their_time(
    write: Any, read_number: Any, needs: Any, video_codec: str, audio_codec: str
) -> None:
    needs("av")
    noise = np.random.default_rng(5).integers(-9000, 9000, 10 * RATE, dtype=np.int16)
    made = write("a.avi", frame_s=[n / FPS for n in range(10 * FPS)], audio=noise, rate_hz=RATE,
                 clock=FPS, video_codec=video_codec, audio_codec=audio_codec)  # fmt: skip
    pyav = decoders["pyav"]()
    zeroed = _zeroed(made, 0.3, 0.6)
    lost = 0
    for start_s in (0.0, 3.0, 6.0):  # the last one needs a seek
        whole = pyav.decode(str(made.path), start_s, SAMPLING)
        clip = pyav.decode(zeroed, start_s, SAMPLING)
        assert (
            all(whole.frames_ok) and all(whole.audio_ok) and not any(n.code == "damaged" for n in whole.notes)
        )
        for t in np.flatnonzero(clip.frames_ok):
            assert read_number(clip.frames[t]) == read_number(whole.frames[t])
        heard, right = clip.wave.reshape(4, RATE), whole.wave.reshape(4, RATE)
        for t in np.flatnonzero(clip.audio_ok):
            off = np.abs(heard[t] - right[t])[np.abs(heard[t]) > 0]
            assert np.median(off) < 0.01  # of noise of 0.15; at the start of the gap half a packet is zeros
        lost_here = clip.frames_ok.count(False) + clip.audio_ok.count(False)
        assert not lost_here or any(n.code == "damaged" for n in clip.notes)
        lost += lost_here
    assert 4 <= lost <= 16 and all(clip.frames_ok[2:]) and all(clip.audio_ok[2:])


@pytest.mark.parametrize("start_s", [0.0, 6.0])
def test_decoders_that_count_from_the_start_refuse_clips_after_lost_bytes(
    write: Any, decoder: Any, start_s: float
) -> None:
    noise = np.random.default_rng(5).integers(-9000, 9000, 10 * RATE, dtype=np.int16)
    made = write("a.avi", frame_s=[n / FPS for n in range(10 * FPS)], audio=noise, rate_hz=RATE,
                 clock=FPS, video_codec="mpeg4", audio_codec="pcm_s16le")  # fmt: skip
    zeroed = _zeroed(made, 0.3, 0.4)
    assert all(decoder.decode(str(made.path), start_s, SAMPLING).frames_ok)
    if decoder.name == "pyav":
        assert any(decoder.decode(zeroed, start_s, SAMPLING).frames_ok)
        return
    with pytest.raises(DecodeError, match=rf"or broken: {decoder.name} cannot tell where") as refused:
        decoder.decode(zeroed, start_s, SAMPLING)
    assert refused.value.hint == "use --decoder pyav"
