"""The `classic` audio backbone: log-mel patches, pooled into four taps like the stages of a network.

It needs no weights and only numpy. Tokens lie on grids of time x frequency (8x8, 4x4, 2x2, 2x2; frequency fastest);
the last tap adds to each token a summary of the whole segment: spectrum, rhythm, pitch, loudness, and change to the
neighbouring segments. Levels are given both as they are and over the clip's own background, so that an event stands
out of steady noise. Everything is brought to about unit scale by fixed constants.
Shapes: `T` segments, `F` spectral frames per segment, `M` tokens, `D` channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.classic.visual import Floats, dct_matrix, neighbours, pool, to_tokens
from caeav.pipeline.store.record import Tap

VERSION = 1
TAPS = (
    Tap("audio.stage1", 64, 32),
    Tap("audio.stage2", 16, 64),
    Tap("audio.stage3", 4, 128),
    Tap("audio.stage4", 4, 256),
)
RATE_HZ = 16_000
BANDS = 64
FRAMES = 96
FFT = 512
LOW_HZ = 50.0
FLOOR_DB = -80.0
GRID = 8
LAGS = 24
LOW_PITCH_HZ, HIGH_PITCH_HZ = 70.0, 1200.0
_POOL = {"mean": (0.0, 1.3), "max": (0.8, 0.9), "std": (0.5, 1.8)}


class ClassicAudio:
    """Taps `audio.stage1` ... `audio.stage4` of 64, 16, 4 and 4 tokens."""

    name = "classic"
    modality: Literal["audio"] = "audio"
    runs_in: Literal["worker"] = "worker"
    rate_hz: int | None = RATE_HZ

    def __init__(self, choice: ModelChoice) -> None:
        choice.refuse_options()

    def taps(self) -> tuple[Tap, ...]:
        """From shallow to deep."""
        return TAPS

    def describe(self) -> Mapping[str, Any]:
        """All settings; there are no weights."""
        return {
            "version": VERSION,
            "rate_hz": RATE_HZ,
            "bands": BANDS,
            "frames": FRAMES,
            "fft": FFT,
            "low_hz": LOW_HZ,
            "grid": GRID,
        }

    def tokens(self, clips: Sequence[NDArray[Any]]) -> list[dict[str, Floats]]:
        """Windows float32 `[T, samples]` at `RATE_HZ` -> `{tap: [T, M, D]}`, clip by clip."""
        return [self._clip(windows) for windows in clips]

    def _clip(self, windows: NDArray[Any]) -> dict[str, Floats]:
        if windows.ndim != 2 or windows.dtype != np.float32 or windows.size == 0:
            raise ValueError(f"windows are {windows.dtype} {windows.shape}, expected float32 [T, samples]")
        spectra = analyse(windows, RATE_HZ)
        patches = _patches(spectra)
        stages = (
            np.concatenate([patches, _places(len(patches), GRID)], axis=-1),
            _stage2(patches),
            _stage3(patches),
            _stage4(patches, summarise(spectra)),
        )
        return {tap.name: to_tokens(x) for tap, x in zip(TAPS, stages, strict=True)}


def _patches(spectra: Spectra) -> Floats:
    """`[T, GRID, GRID, 30]`: descriptors of patches of 12 spectral frames x 8 bands."""
    level, above = spectra.level_db, spectra.above_db
    t = len(level)
    f, b = FRAMES // GRID, BANDS // GRID
    onset = np.maximum(np.diff(above, axis=1, prepend=above[:, :1]), 0)

    def cut(x: Floats) -> Floats:
        return x.reshape(t, GRID, f, GRID, b).transpose(0, 1, 3, 2, 4)  # [T, time, frequency, f, b]

    here, over, rise = cut(level), cut(above), cut(onset)
    mean = here.mean(axis=(3, 4))
    over_mean = over.mean(axis=(3, 4))
    before, after = neighbours(t)
    waves = dct_matrix(f, 4).T @ here @ dct_matrix(b, 4)  # [T, time, frequency, 4, 4]
    flat = waves.reshape(t, GRID, GRID, 16)[..., 1:]
    single = [
        (mean + 50) / 15,
        (here.max(axis=(3, 4)) + 42) / 15,
        (here.min(axis=(3, 4)) + 60) / 15,
        over_mean / 5 - 0.7,
        over.max(axis=(3, 4)) / 8 - 1,
        (over > 6).mean(axis=(3, 4)) * 4 - 0.7,
        here.std(axis=(3, 4)) / 3 - 1.5,
        rise.mean(axis=(3, 4)) - 1,
        rise.max(axis=(3, 4)) / 6 - 1.3,
        (here.max(axis=4) - here.mean(axis=4)).mean(axis=3) / 3 - 1.7,  # peaks along frequency: tones
        (here.max(axis=3) - here.mean(axis=3)).mean(axis=3) / 3 - 1.5,  # peaks along time: clicks
        (mean - mean[before]) / 8,
        (mean - mean[after]) / 8,
        (over_mean - over_mean[before]) / 5,
        (over_mean - over_mean[after]) / 5,
    ]
    return np.concatenate([np.stack(single, axis=-1), flat / 12], axis=-1).astype(np.float32)


def _stage2(patches: Floats) -> Floats:
    size = 4
    parts = [_pool(patches, size, "mean"), _pool(patches, size, "max"), _places(len(patches), size)]
    return np.concatenate([*parts, _pool(patches[..., [3, 4]], size, "std")], axis=-1)


def _stage3(patches: Floats) -> Floats:
    size = 2
    pooled = [_pool(patches, size, how) for how in ("mean", "max", "std")]
    inner = _pool(patches, 4, "mean")[..., [0, 3, 4, 7, 9]]  # a 2x2 view inside each token
    t = len(patches)
    inside = inner.reshape(t, size, 2, size, 2, 5).transpose(0, 1, 3, 2, 4, 5).reshape(t, size, size, 20)
    uneven = patches[..., :16].std(axis=(1, 2))[:, None, None] * 1.5 - 0.7  # over the whole segment
    wide = np.broadcast_to(uneven, (t, size, size, 16))
    return np.concatenate([*pooled, inside, wide, _places(t, size)], axis=-1)


def _stage4(patches: Floats, summary: Floats) -> Floats:
    size, t = 2, len(patches)
    near = [_pool(patches, size, how) for how in ("mean", "max", "std")]
    local = np.concatenate([*near, _places(t, size), _pool(patches[..., [0, 3, 4, 7]], size, "max")], axis=-1)
    whole = np.broadcast_to(summary[:, None, None], (t, size, size, summary.shape[-1]))
    return np.concatenate([local, whole], axis=-1)


def _pool(x: Floats, size: int, how: str) -> Floats:
    return pool(x, size, how, *_POOL[how])


def _places(t: int, size: int) -> Floats:
    """Where each token lies: time and frequency, `[T, size, size, 2]`."""
    at = ((np.arange(size) + 0.5) / size * 2 - 1) * 1.5
    grid = np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1).astype(np.float32)
    return np.broadcast_to(grid, (t, size, size, 2))


@dataclass(frozen=True)
class Spectra:
    """One clip's spectra.

    power `[T, FRAMES, FFT/2+1]`; level_db `[T, FRAMES, BANDS]`, from `FLOOR_DB` up; above_db, of the same shape: how
    far over the clip's own background.
    """

    power: Floats
    level_db: Floats
    above_db: Floats
    rate_hz: int


def analyse(windows: Floats, rate_hz: int) -> Spectra:
    """Windows `[T, samples]` -> spectra at `FRAMES` evenly spaced times of each segment.

    A spectrum near a segment's border reaches into the neighbouring segment; the ends of the clip are padded with
    silence.
    """
    t, samples = windows.shape
    wave = np.pad(windows.reshape(-1), (FFT // 2, FFT // 2))
    middles = (np.arange(FRAMES) + 0.5) * (samples / FRAMES)
    # [T, FRAMES]; the padding turns middles into starts
    starts = (np.arange(t)[:, None] * samples + middles[None]).astype(np.int64)
    cut = np.lib.stride_tricks.sliding_window_view(wave, FFT)[starts.reshape(-1)]
    spectrum = np.fft.rfft(cut * np.hanning(FFT).astype(np.float32), axis=-1)
    power = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(np.float32)
    power *= np.float32((2 / (FFT / 2)) ** 2 / 2)  # a full-scale sine reads about -3 dB
    mel = power @ mel_weights(rate_hz)
    level = 10 * np.log10(mel + np.float32(10 ** (FLOOR_DB / 10)))
    above = np.maximum(level - noise_floor_db(level), 0).reshape(t, FRAMES, BANDS)
    return Spectra(power.reshape(t, FRAMES, -1), level.reshape(t, FRAMES, BANDS), above, rate_hz)


def noise_floor_db(level_db: Floats) -> Floats:
    """`[BANDS]`: the background, i.e. the level that every band exceeds for most of the clip (its lower quintile)."""
    return np.asarray(np.quantile(level_db.reshape(-1, BANDS), 0.2, axis=0), dtype=np.float32)


@lru_cache(maxsize=4)
def mel_weights(rate_hz: int) -> Floats:
    """Triangular filters `[FFT/2+1, BANDS]`; each sums to 1, so that a band is a mean power.

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


def band_centres_hz(rate_hz: int) -> NDArray[np.float64]:
    """Centre frequency of each of the `BANDS` bands."""
    return mel_to_hz(np.linspace(hz_to_mel(LOW_HZ), hz_to_mel(rate_hz / 2), BANDS + 2))[1:-1]


def hz_to_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """HTK mel scale."""
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hz) / 700.0))


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `hz_to_mel`."""
    return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))


def summarise(spectra: Spectra) -> Floats:
    """`[T, 160]`: one vector per segment."""
    level, above = spectra.level_db, spectra.above_db  # [T, F, BANDS]
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
    pitch = periodicity(spectra)
    parts = [
        (mean + 50) / 15,  # 32
        above_halved.max(axis=1) / 8 - 1,  # 32
        quarter.std(axis=1) / 3 - 0.7,  # 16
        (quarter_mean - quarter_mean[before]) / 5,  # 16
        (quarter_mean - quarter_mean[after]) / 5,  # 16
        modulation(envelopes).reshape(t, -1) / 3 - 0.5,  # 24
        pitch.mean(axis=1)[:, ::2] * 3 - 0.7,  # 12
        _shape(spectra, above, flux, pitch),  # 12
    ]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def _shape(spectra: Spectra, above: Floats, flux: Floats, pitch: Floats) -> Floats:
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
    flat = spectra.level_db.mean(-1) - 10 * np.log10((10 ** (spectra.level_db / 10)).mean(-1))  # dB, 0: white
    rms = 10 * np.log10(spectra.power.sum(-1).mean(axis=1) + np.float32(1e-8))
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


def periodicity(spectra: Spectra) -> Floats:
    """`[T, F/2, LAGS]`: normalised autocorrelation near each pitch lag (1: perfectly periodic).

    Every second spectral frame is enough. The value is the largest within the lag's step.
    """
    power = spectra.power[:, ::2]
    correlation = np.fft.irfft(power, n=FFT, axis=-1)[..., : FFT // 2].astype(np.float32)
    window = np.square(np.abs(np.fft.rfft(np.hanning(FFT))))
    taper = np.fft.irfft(window)[: FFT // 2]  # the window's own (circular) decay with lag
    correlation /= correlation[..., :1] + np.float32(1e-9)
    correlation *= (taper[0] / taper).astype(np.float32)
    lags = pitch_lags(spectra.rate_hz)
    edges = np.sqrt(lags[1:] * lags[:-1])
    low = np.concatenate([[lags[0] * 0.93], edges]).astype(int)
    high = np.concatenate([edges, [lags[-1] * 1.07]]).astype(int) + 1
    steps = [
        correlation[..., a : max(min(b, FFT // 2), a + 1)].max(axis=-1)
        for a, b in zip(low, high, strict=True)
    ]
    return np.stack(steps, axis=-1)


def pitch_lags(rate_hz: int) -> Floats:
    """`[LAGS]` lags in samples, evenly spaced in log frequency from high to low pitch."""
    pitches = np.geomspace(HIGH_PITCH_HZ, LOW_PITCH_HZ, LAGS)
    return np.asarray(rate_hz / pitches, dtype=np.float32)


def modulation(envelope: Floats) -> Floats:
    """Envelopes `[T, F, N]` -> `[T, N, 6]`: how strongly they swing about 1.5, 3, 6, 12, 24 and 40 times a segment."""
    centred = envelope - envelope.mean(axis=1, keepdims=True)
    swing = np.abs(np.fft.rfft(centred, axis=1)).astype(np.float32) * np.float32(2 / FRAMES)  # [T, F/2+1, N]
    edges = (1, 3, 5, 9, 17, 33, FRAMES // 2 + 1)
    parts = [np.sqrt(np.square(swing[:, a:b]).sum(axis=1)) for a, b in pairwise(edges)]
    return np.stack(parts, axis=-1)
