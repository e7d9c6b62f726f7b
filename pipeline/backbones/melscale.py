"""Log-mel pictures of sound with numpy alone. Shapes: `T` segments, `F` spectral frames a segment, 64 bands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

BANDS = 64
FRAMES = 96
FFT = 512
LOW_HZ = 50.0
FLOOR_DB = -80.0


def hz_to_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """HTK mel scale."""
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0))


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `hz_to_mel`."""
    return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))


def band_centres_hz(rate_hz: int) -> NDArray[np.float64]:
    """Middle frequency of each of the `BANDS` bands."""
    return mel_to_hz(np.linspace(hz_to_mel(LOW_HZ), hz_to_mel(rate_hz / 2), BANDS + 2))[1:-1]


@lru_cache(maxsize=4)
def mel_weights(rate_hz: int) -> Floats:
    """Triangular filters `[FFT/2+1, BANDS]`; each sums to 1, so a band is a mean power.

    A band narrower than the spacing of the spectrum is widened to it, so that none is empty.
    """
    spacing = rate_hz / FFT
    edges = mel_to_hz(np.linspace(hz_to_mel(LOW_HZ), hz_to_mel(rate_hz / 2), BANDS + 2))
    bins = np.arange(FFT // 2 + 1)[:, None] * spacing
    centre = edges[1:-1]
    rise = np.maximum(centre - edges[:-2], spacing)
    fall = np.maximum(edges[2:] - centre, spacing)
    triangle = np.maximum(0.0, np.minimum(1 + (bins - centre) / rise, 1 - (bins - centre) / fall))
    return np.asarray(triangle / triangle.sum(axis=0), dtype=np.float32)


@dataclass(frozen=True)
class Sound:
    """One clip's spectra.

    power `[T, FRAMES, FFT/2+1]`; level_db `[T, FRAMES, BANDS]`, from `FLOOR_DB` up; above_db, of the same shape: how
    far over the clip's own background.
    """

    power: Floats
    level_db: Floats
    above_db: Floats
    rate_hz: int


def analyse(windows: Floats, rate_hz: int) -> Sound:
    """Windows `[T, samples]` -> spectra at `FRAMES` evenly spaced places of each segment.

    A spectrum near a segment's border reads into the neighbouring segment; the ends of the clip are padded with
    silence.
    """
    t, samples = windows.shape
    wave = np.pad(windows.reshape(-1), (FFT // 2, FFT // 2))
    middles = (np.arange(FRAMES) + 0.5) * (samples / FRAMES)
    starts = (np.arange(t)[:, None] * samples + middles[None]).astype(
        np.int64
    )  # [T, FRAMES], padding shifts them
    cut = np.lib.stride_tricks.sliding_window_view(wave, FFT)[starts.reshape(-1)]
    spectrum = np.fft.rfft(cut * np.hanning(FFT).astype(np.float32), axis=-1)
    power = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(np.float32)
    power *= np.float32((2 / (FFT / 2)) ** 2 / 2)  # a full-scale sine reads about -3 dB
    mel = power @ mel_weights(rate_hz)
    level = 10 * np.log10(mel + np.float32(10 ** (FLOOR_DB / 10)))
    above = np.maximum(level - noise_floor_db(level), 0).reshape(t, FRAMES, BANDS)
    return Sound(power.reshape(t, FRAMES, -1), level.reshape(t, FRAMES, BANDS), above, rate_hz)


def noise_floor_db(level_db: Floats) -> Floats:
    """`[BANDS]`: what every band keeps up for most of the clip (its lower quintile), i.e. the background."""
    return np.asarray(np.quantile(level_db.reshape(-1, BANDS), 0.2, axis=0), dtype=np.float32)


def dct_matrix(n: int, k: int) -> Floats:
    """Orthonormal DCT-II, `[n, k]`: `x @ dct_matrix(n, k)` gives the `k` lowest coefficients."""
    basis = np.cos(np.pi * (2 * np.arange(n)[:, None] + 1) * np.arange(k)[None] / (2 * n)) * np.sqrt(2 / n)
    basis[:, 0] /= np.sqrt(2)
    return np.asarray(basis, dtype=np.float32)
