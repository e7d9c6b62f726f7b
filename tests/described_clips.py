"""Tones, and the descriptor captioner's texts of frames and audio."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.media.clip import DecodedClip

RATE = 16_000
T = 10
ALL, NONE = (True,) * T, (False,) * T
SECONDS = np.arange(T * RATE) / RATE


def describe_frames(frames: NDArray[np.uint8] | None) -> str:
    clip = DecodedClip(frames, None, ALL, NONE)
    return visual_captioners["descriptor"](ModelChoice("descriptor")).caption([clip])[0]


def describe_audio(wave: NDArray[np.float32] | None) -> str:
    clip = DecodedClip(None, wave, NONE, ALL)
    return audio_captioners["descriptor"](ModelChoice("descriptor")).caption([clip])[0]


def tone(hz: float, seconds: range, level: float = 0.3, gate_hz: float = 0.0) -> NDArray[np.float32]:
    """Faint noise for `T` seconds, with a tone in some of them, interrupted `gate_hz` times per second."""
    wave = np.random.default_rng(0).standard_normal(T * RATE) * 0.002
    gate = np.isin(SECONDS.astype(int), list(seconds)) & (np.sin(2 * np.pi * gate_hz * SECONDS + 0.1) > 0)
    return (wave + gate * level * np.sin(2 * np.pi * hz * SECONDS)).astype(np.float32)
