"""Unlearned descriptors of a whole second of sound: spectrum, rhythm, pitch, loudness, and change against neighbours.

All are brought to about unit scale by fixed constants. Shapes: `T` segments, `F` spectral frames a segment.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from caeav.pipeline.backbones.melscale import BANDS, FFT, FRAMES, Floats, Sound
from caeav.pipeline.backbones.patches import neighbours

CHANNELS = 160
LAGS = 24
LOW_PITCH_HZ, HIGH_PITCH_HZ = 70.0, 1200.0


def pitch_lags(rate_hz: int) -> Floats:
    """`[LAGS]` lags in samples, evenly spaced in log frequency from high to low pitch."""
    pitches = np.geomspace(HIGH_PITCH_HZ, LOW_PITCH_HZ, LAGS)
    return np.asarray(rate_hz / pitches, dtype=np.float32)


def periodicity(sound: Sound) -> Floats:
    """`[T, F/2, LAGS]`: normalised autocorrelation near each pitch lag (1: perfectly periodic).

    Every second spectral frame is enough. The value is the largest within the lag's step.
    """
    power = sound.power[:, ::2]
    correlation = np.fft.irfft(power, n=FFT, axis=-1)[..., : FFT // 2].astype(np.float32)
    window = np.square(np.abs(np.fft.rfft(np.hanning(FFT))))
    taper = np.fft.irfft(window)[: FFT // 2]  # the window's own (circular) decay with lag
    correlation /= correlation[..., :1] + np.float32(1e-9)
    correlation *= (taper[0] / taper).astype(np.float32)
    lags = pitch_lags(sound.rate_hz)
    edges = np.sqrt(lags[1:] * lags[:-1])
    low = np.concatenate([[lags[0] * 0.93], edges]).astype(int)
    high = np.concatenate([edges, [lags[-1] * 1.07]]).astype(int) + 1
    steps = [
        correlation[..., a : max(min(b, FFT // 2), a + 1)].max(axis=-1)
        for a, b in zip(low, high, strict=True)
    ]
    return np.stack(steps, axis=-1)


def modulation(envelope: Floats) -> Floats:
    """Envelopes `[T, F, N]` -> `[T, N, 6]`: strength of their swings around 1.5, 3, 6, 12, 24 and 40 a segment."""
    centred = envelope - envelope.mean(axis=1, keepdims=True)
    swing = np.abs(np.fft.rfft(centred, axis=1)).astype(np.float32) * np.float32(2 / FRAMES)  # [T, F/2+1, N]
    edges = (1, 3, 5, 9, 17, 33, FRAMES // 2 + 1)
    parts = [np.sqrt(np.square(swing[:, a:b]).sum(axis=1)) for a, b in pairwise(edges)]
    return np.stack(parts, axis=-1)


def summarise(sound: Sound) -> Floats:
    """`[T, CHANNELS]`: one vector a segment."""
    level, above = sound.level_db, sound.above_db  # [T, F, BANDS]
    t = len(level)
    halved = level.reshape(t, FRAMES, BANDS // 2, 2).mean(-1)
    above_halved = above.reshape(t, FRAMES, BANDS // 2, 2).mean(-1)
    mean = halved.mean(axis=1)
    quarter = above.reshape(t, FRAMES, 16, 4).mean(-1)
    quarter_mean = quarter.mean(axis=1)
    before, after = neighbours(t)
    flux = np.maximum(np.diff(above, axis=1), 0).mean(-1)  # [T, F-1] onset strength
    thirds = np.array_split(above, 3, axis=-1)
    envelopes = np.stack([above.mean(-1), *(third.mean(-1) for third in thirds)], axis=-1)  # [T, F, 4]
    pitch = periodicity(sound)
    parts = [
        (mean + 50) / 15,  # 32
        above_halved.max(axis=1) / 8 - 1,  # 32
        quarter.std(axis=1) / 3 - 0.7,  # 16
        (quarter_mean - quarter_mean[before]) / 5,  # 16
        (quarter_mean - quarter_mean[after]) / 5,  # 16
        modulation(envelopes).reshape(t, -1) / 3 - 0.5,  # 24
        pitch.mean(axis=1)[:, ::2] * 3 - 0.7,  # 12
        _shape(sound, above, flux, pitch),  # 12
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def _shape(sound: Sound, above: Floats, flux: Floats, pitch: Floats) -> Floats:
    """`[T, 12]`: where the energy lies and how it moves, noisiness, loudness, onsets, steadiness of pitch."""
    band = np.linspace(-1.5, 1.5, BANDS, dtype=np.float32)
    weight = np.maximum(above - 3, 0) + np.float32(1e-3)
    total = weight.sum(axis=-1)
    centroid = (weight @ band) / total  # [T, F]
    spread = np.sqrt(np.maximum((weight @ (band * band)) / total - centroid**2, 0))
    loud = total / total.sum(axis=1, keepdims=True)
    middle = (centroid * loud).sum(axis=1)
    time = np.linspace(-1, 1, FRAMES, dtype=np.float32)
    slope = (loud * time * (centroid - middle[:, None])).sum(axis=1)
    flat = sound.level_db.mean(-1) - 10 * np.log10((10 ** (sound.level_db / 10)).mean(-1))  # dB, 0: white
    rms = 10 * np.log10(sound.power.sum(-1).mean(axis=1) + np.float32(1e-8))
    best = pitch.max(axis=-1)
    return np.stack(
        [
            middle * 1.5,
            (centroid.std(axis=1) - 0.3) * 4,
            slope * 8,
            ((spread * loud).sum(axis=1) - 0.5) * 3,
            (flat.mean(axis=1) + 10) / 5,
            flat.std(axis=1) / 2 - 1,
            (rms + 35) / 12,
            flux.mean(axis=1) - 1,
            flux.max(axis=1) / 5 - 1,
            (flux > 3).mean(axis=1) * 20 - 1,
            best.mean(axis=1) * 3 - 1.5,
            pitch.argmax(axis=-1).std(axis=1) / 4 - 1,
        ],
        axis=-1,
    )
