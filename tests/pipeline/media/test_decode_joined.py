"""Joined audio files: each part follows the previous one to the sample, whatever the timestamps say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caeav.pipeline.media.clip import DecodeError, Sampling
from caeav.pipeline.media.registry import decoders

PARTS_S = 3.3


def _pitches(wave: Any, rate_hz: int) -> list[int]:
    """The strongest frequency of each tenth of a second."""
    blocks = wave.reshape(-1, rate_hz // 10)
    return [int(np.argmax(np.abs(np.fft.rfft(block)))) * 10 for block in blocks]


def _joined(write: Any, tmp_path: Path, suffix: str, codec: str, rates: tuple[int, ...]) -> Path:
    """Parts of 300, 500, 700, ... Hz."""
    parts = []
    for n, rate in enumerate(rates):
        times = np.arange(round(PARTS_S * rate)) / rate
        tone = np.round(12000 * np.sin(2 * np.pi * (300 + 200 * n) * times)).astype(np.int16)
        made = write(f"{n}.{suffix}", audio=tone, rate_hz=rate, audio_codec=codec)
        parts.append(made.path.read_bytes())
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("start_s", [0.0, 3.0, 6.0])
def test_the_end_of_a_joined_flac_part_is_not_overlapped_by_the_next(
    write: Any, tmp_path: Path, start_s: float
) -> None:
    """The last frames of a part have no timestamp; the next part once began a quarter of a second early."""
    path = _joined(write, tmp_path, "flac", "flac", (16000,) * 3)
    clip = decoders["pyav"]().decode(str(path), start_s, Sampling(3, 1.0, 16000))
    middles = [start_s + (n + 0.5) / 10 for n in range(30)]
    assert _pitches(clip.wave, 16000) == [300 + 200 * int(at / PARTS_S) for at in middles]
    assert all(clip.audio_ok)


def test_bare_aac_with_a_changing_rate_is_timed_by_its_samples(write: Any, tmp_path: Path) -> None:
    """Its demuxer keeps counting at the first rate, which once put later clips at a wrong time."""
    path = _joined(write, tmp_path, "aac", "aac", (16000, 24000, 32000, 16000))
    ends_s = np.cumsum([(-(-PARTS_S * rate // 1024) + 1) * 1024 / rate for rate in (16000, 24000, 32000)])
    for start_s in (0.0, 3.0, 6.0, 9.0):
        clip = decoders["pyav"]().decode(str(path), start_s, Sampling(3, 1.0, 16000))
        assert all(clip.audio_ok)
        for n, pitch in enumerate(_pitches(clip.wave, 16000)):
            at_s = start_s + (n + 0.5) / 10
            if min(abs(at_s - end_s) for end_s in ends_s) > 0.15:
                assert pitch == 300 + 200 * int(np.searchsorted(ends_s, at_s)), at_s
    for name in ("decord", "torchcodec"):
        with pytest.raises(DecodeError, match=r"joined\.aac is 4 files joined") as refused:
            decoders[name]().decode(str(path), 6.0, Sampling(3, 1.0, 16000))
        assert refused.value.hint == "use --decoder pyav"
