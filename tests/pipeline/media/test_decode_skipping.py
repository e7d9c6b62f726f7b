"""Frames that no other frame needs are skipped far from the wanted ones, without changing the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from caeav.pipeline.media import pyav
from caeav.pipeline.media.clip import DecodedClip, Limits, Sampling
from caeav.pipeline.media.frames import Frames
from caeav.pipeline.media.pyav import PyAVDecoder
from caeav.pipeline.media.scan import Plan

SAMPLING = Sampling(4, 1.0, 16000)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 s of H.264 at 25 fps with three B-frames in a row; every frame's brightness tells its number."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    grain = np.random.default_rng(0).integers(0, 60, (96, 128, 3), dtype=np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "libx264", rate=25, options={"x264-params": "bframes=3:b-adapt=0:b-pyramid=none"}
        )
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for n in range(125):
            frame = np.roll(grain, 2 * n, axis=1) + np.uint8(n)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return path


class Counting(PyAVDecoder):
    """Counts decoded frames."""

    decoded = 0

    def read(self, plan: Plan) -> tuple[Frames | None, object]:  # type: ignore[override]
        frames, audio = super().read(plan)
        self.decoded = frames.decoded if frames else 0
        return frames, audio


def decode_with_and_without_skipping(
    path: Path, start_s: float, monkeypatch: pytest.MonkeyPatch
) -> tuple[DecodedClip, DecodedClip, int, int]:
    skipping, whole = Counting(Limits()), Counting(Limits())
    one = skipping.decode(str(path), start_s, SAMPLING)
    monkeypatch.setattr(pyav, "SKIPPING", ())
    other = whole.decode(str(path), start_s, SAMPLING)
    return one, other, skipping.decoded, whole.decoded


@pytest.mark.parametrize("start_s", [0.0, 0.36, 1.0])
def test_skipping_gives_the_same_frames_with_fewer_decoded(
    film: Path, monkeypatch: pytest.MonkeyPatch, start_s: float
) -> None:
    one, other, few, all_of_them = decode_with_and_without_skipping(film, start_s, monkeypatch)
    assert one.frames is not None and other.frames is not None
    np.testing.assert_array_equal(one.frames, other.frames)
    assert (one.frames_ok, one.notes, one.facts) == (other.frames_ok, other.notes, other.facts)
    assert few < 0.75 * all_of_them


@pytest.mark.parametrize("suffix", ["mov", "mkv"])
def test_a_clip_after_the_end_of_the_audio_is_still_reached_by_a_seek(write: Any, suffix: str) -> None:
    """The missing audio must not be searched for by decoding all frames before the clip."""
    noise = np.random.default_rng(0).integers(-9000, 9000, (1, 3 * 16000), dtype=np.int16)
    made = write(f"film.{suffix}", frame_s=[n / 30 for n in range(720)], audio=noise, rate_hz=16000)
    decoder = Counting(Limits())
    clip = decoder.decode(str(made.path), 20.0, SAMPLING)
    assert all(clip.frames_ok) and not any(clip.audio_ok)
    assert decoder.decoded < 6 * 30


def test_a_damaged_clip_is_decoded_without_skipping(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(film.read_bytes())
    for at in range(len(data) // 3, len(data) // 3 + 4000, 97):
        data[at] ^= 0xFF
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    one, other, few, all_of_them = decode_with_and_without_skipping(broken, 0.0, monkeypatch)
    assert "damaged" in {note.code for note in one.notes}
    assert one.frames is not None and other.frames is not None
    np.testing.assert_array_equal(one.frames, other.frames)
    assert (one.notes, few) == (other.notes, all_of_them)
