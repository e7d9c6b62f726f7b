"""Previews of clips: frames in order, a spectrogram of the same seconds, or the reason why there is none."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from caeav.manifests.clip import Manifest
from caeav.pipeline.media.preview import View, _spectrogram, previews


def test_previews_show_frames_and_audio_or_the_reason_why_not(
    small_manifest: Manifest, tmp_path: Path
) -> None:
    film = Path(small_manifest.media_root) / small_manifest.clips[0].media
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    views = [View("a", film, 0.0), View("later", film, 2.0), View("gone", tmp_path / "no.mp4", 0.0)]
    views.append(View("bad", tmp_path / "bad.mp4", 0.0))
    found = {seen.key: seen for seen in previews(views, 2, 1.0, height=32)}
    strip = Image.open(io.BytesIO(found["a"].strip))
    width, height = found["a"].size
    assert strip.size == (2 * width, height) and height == 32
    assert Image.open(io.BytesIO(found["a"].sound)).size == (2 * width, 48)
    assert found["a"].strip != found["later"].strip and found["a"].problem == ""
    assert "the file is gone" in found["gone"].problem and "not readable media" in found["bad"].problem
    assert found["bad"].strip == b"" == found["gone"].sound


def test_a_spectrogram_shows_a_tone_at_its_frequency_and_time() -> None:
    seconds = np.arange(32_000) / 16_000
    wave = np.where(seconds < 1, np.sin(2 * np.pi * 4000 * seconds), 0).astype(np.float32)
    drawn = np.asarray(Image.open(io.BytesIO(_spectrogram(wave, 100))).convert("L")).astype(int)  # [48, 100]
    assert drawn.shape == (48, 100)
    assert drawn[:, :45].max() > 200 > 80 > drawn[:, 60:].max()
    assert drawn[:, 20].argmax() < 24  # high frequencies are at the top
    silent = np.asarray(Image.open(io.BytesIO(_spectrogram(np.zeros(100, np.float32), 50))).convert("L"))
    assert silent.max() == silent.min()
