"""The `descriptor` captioner for sound: measures loudness, pitch, tone, rhythm and when it is heard, and says so.

It hears the wave only, never labels. At most 32 words, since that is what the `hashed` text backbone keeps.
Shapes: `T` segments, `F` spectral frames a segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.melscale import BANDS, FRAMES, Floats, analyse, band_centres_hz
from caeav.pipeline.backbones.sound_summary import periodicity
from caeav.pipeline.captioners.words import pick, spans_words
from caeav.pipeline.media.clip import DecodedClip

VERSION = 1
RATE_HZ = 16_000
HEARD_DB = 3.0
"""A segment holds the sound when its loudest bands rise this far over the clip's background."""


class DescribeSound:
    """One or two sentences: what is heard (loudness, pitch, tone, rhythm, when), then the background."""

    name = "descriptor"
    modality: Literal["audio"] = "audio"
    runs_in: Literal["worker"] = "worker"
    rate_hz: int | None = RATE_HZ

    def __init__(self, choice: ModelChoice) -> None:
        choice.refuse_options()

    def describe(self) -> Mapping[str, Any]:
        """Settings."""
        return {"version": VERSION, "rate_hz": RATE_HZ, "heard_db": HEARD_DB}

    def caption(self, clips: Sequence[DecodedClip]) -> list[str]:
        """One text a clip; empty without sound."""
        return ["" if clip.wave is None else _write(clip.wave, len(clip.audio_ok)) for clip in clips]


def _write(wave: Floats, segments: int) -> str:
    windows = wave.reshape(segments, -1)
    rms_db = 10 * np.log10(np.square(windows).mean(axis=1) + 1e-12)
    if rms_db.max() < -75:
        return "Silence."
    sound = analyse(windows, RATE_HZ)
    above = sound.above_db
    loudest = np.sort(above, axis=-1)[..., -BANDS // 8 :].mean(
        axis=(1, 2)
    )  # [T] dB, the upper eighth of the bands
    heard = loudest > max(HEARD_DB, 0.4 * float(loudest.max()))
    if float(loudest.max()) < 2 * HEARD_DB:  # nothing rises over the background: the background is the sound
        heard = np.ones(segments, dtype=np.bool_)
        above = sound.level_db - sound.level_db.min()
    pitches = periodicity(sound)
    tone = [_tone(pitches[t], above[t]) for t in np.flatnonzero(heard)]
    where = spans_words(heard.tolist())
    level = pick(float(rms_db[heard].mean()), ((-50, "very quiet"), (-35, "quiet"), (-20, "clear")), "loud")
    texture = pick(float(np.median(tone)), ((0.35, "noisy"), (0.6, "rough")), "tonal")
    pitch, glide = _pitch(above[heard])
    text = f"A {level} {pitch} {texture} sound, {_rhythm(sound.power[heard])}{glide}, {where}."
    if not heard.all():
        ground = float(rms_db[~heard].mean())
        text += f" Else {pick(ground, ((-60, 'silence'), (-40, 'faint noise')), 'noise')}."
    return text


def _tone(pitch: Floats, above: Floats) -> float:
    """Periodicity `[F/2, lags]` of the louder half of a segment's frames, 0 (noise) to 1 (one steady tone)."""
    weight = above.mean(axis=-1)[::2]
    return float(pitch[weight >= np.median(weight)].max(axis=-1).mean())


def _pitch(above: Floats) -> tuple[str, str]:
    """Word for where the energy lies, and for the way it glides within segments."""
    weight = np.square(np.maximum(above - 3, 0)) + np.float32(1e-3)
    octaves = np.log2(band_centres_hz(RATE_HZ)).astype(np.float32)
    loud = weight.sum(axis=-1)  # [T, F]
    centre = (weight @ octaves) / loud
    middle = float((centre * loud).sum() / loud.sum())
    steps = ((350, "low"), (900, "middle"), (2200, "high"))
    word = pick(2**middle, steps, "very high")
    share = loud / loud.sum(axis=1, keepdims=True)
    time = np.linspace(-0.5, 0.5, FRAMES, dtype=np.float32)
    off_time = time - (share * time).sum(axis=1, keepdims=True)
    variance = (share * off_time**2).sum(axis=1) + 1e-6
    slope = float(np.median((share * off_time * centre).sum(axis=1) / variance))  # octaves a segment
    return word, pick(slope, ((-0.5, ", falling"), (0.5, "")), ", rising")


def _rhythm(power: Floats) -> str:
    """Word for how the amplitude swings: steady, or its strongest rate from the spectrum of the envelope."""
    envelope = np.sqrt(power.sum(axis=-1))  # [T, F]
    centred = envelope - envelope.mean(axis=1, keepdims=True)
    swing = np.abs(np.fft.rfft(centred, axis=1)).mean(axis=0) * (2 / FRAMES)
    depth = float(envelope.std(axis=1).mean() / (envelope.mean() + 1e-6))
    if depth < 0.3:
        return "steady"
    rate = 1 + int(swing[1:32].argmax())
    if rate == 1:
        return "swelling"
    return "beating " + pick(rate, ((4, "slowly"), (8, "evenly"), (16, "fast")), "very fast")
