"""The audio of a clip: the voices that its scenario says are heard, over background noise.

A voice is one function: an endless waveform, which repeats at least about twice a second, so that any second of it can
be recognised. It gets the times `t` (float64 [n], seconds, evenly spaced) and the clip's random numbers, with which it
varies its pitch and pace, and returns [n] at any level. `waveform` sets the level (root mean square, full scale 1) and
switches voices on and off at whole seconds, with short fades inside the second, so no other second holds any of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from caeav.manifests.synthetic.casting import Cast
from caeav.manifests.synthetic.classes import CLASSES
from caeav.manifests.synthetic.material_media import read_sound
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.recordings import at_level, played
from caeav.manifests.synthetic.scenario import Scenario, generator

Wave = NDArray[np.float64]
Voice = Callable[[Wave, Generator], Wave]


def _tone(t: Wave, hz: Wave | float) -> Wave:
    """A sine whose frequency may change over time."""
    step = t[1] - t[0]
    return np.sin(2 * np.pi * (np.cumsum(hz) * step if isinstance(hz, np.ndarray) else hz * t))


def _harmonics(t: Wave, hz: Wave | float, levels: tuple[float, ...]) -> Wave:
    return np.asarray(np.add.reduce([level * _tone(t, hz * (i + 1)) for i, level in enumerate(levels)]))


def _cycle(t: Wave, per_s: float, rng: Generator) -> Wave:
    """The phase, in [0, 1), of something that repeats `per_s` times a second."""
    return (t * per_s + rng.random()) % 1.0


def _noise(t: Wave, rng: Generator) -> Wave:
    """White noise without its low frequencies: differences of neighbours."""
    white = rng.standard_normal(len(t) + 1)
    return np.asarray(white[1:] - 0.9 * white[:-1])


def _pitch(rng: Generator, hz: float) -> float:
    """`hz`, up to 12 % lower or higher."""
    return float(hz * 2 ** rng.uniform(-0.17, 0.17))


def _rising_chirps(t: Wave, rng: Generator) -> Wave:
    u = _cycle(t, rng.uniform(2.5, 3.5), rng)
    return _tone(t, _pitch(rng, 450) * 4**u) * (u < 0.75) * np.sin(np.pi * np.minimum(u / 0.75, 1))


def _engine(t: Wave, rng: Generator) -> Wave:
    beat = 1 + 0.8 * np.sin(2 * np.pi * rng.uniform(8, 13) * t)
    return _harmonics(t, _pitch(rng, 85), (1, 0.9, 0.7, 0.5, 0.35, 0.25)) * beat


def _noise_bursts(t: Wave, rng: Generator) -> Wave:
    u = _cycle(t, rng.uniform(3.5, 5.5), rng)
    return _noise(t, rng) * np.exp(-6 * u)


def _bell(t: Wave, rng: Generator) -> Wave:
    per_s = rng.uniform(1.7, 2.4)
    u = _cycle(t, per_s, rng) / per_s
    hz = _pitch(rng, 620)
    partials = (
        (0.5, 0.5, 2.0),
        (1.0, 1.0, 3.0),
        (1.19, 0.7, 4.0),
        (2.0, 0.6, 5.0),
        (2.74, 0.5, 7.0),
        (4.07, 0.3, 9.0),
    )
    rings = [level * _tone(t, hz * ratio) * np.exp(-decay * u) for ratio, level, decay in partials]
    return np.asarray(np.add.reduce(rings))


def _beeps(t: Wave, rng: Generator) -> Wave:
    u = _cycle(t, rng.uniform(3.0, 4.5), rng)
    return np.tanh(8 * _tone(t, _pitch(rng, 1000))) * (u < 0.5)


def _trill(t: Wave, rng: Generator) -> Wave:
    high = _cycle(t, rng.uniform(9, 12), rng) < 0.5
    return _tone(t, _pitch(rng, 2300) * np.where(high, 1.19, 1.0))


def _clicks(t: Wave, rng: Generator) -> Wave:
    per_s = rng.uniform(11, 17)
    u = _cycle(t, per_s, rng) / per_s
    return (_tone(t, _pitch(rng, 3400)) + 0.5 * _noise(t, rng)) * np.exp(-250 * u)


def _vibrato(t: Wave, rng: Generator) -> Wave:
    hz = _pitch(rng, 330) * (1 + 0.06 * np.sin(2 * np.pi * rng.uniform(5, 7) * t))
    return _harmonics(t, hz, (1, 0.5, 0.35, 0.1))


def _siren(t: Wave, rng: Generator) -> Wave:
    u = _cycle(t, rng.uniform(1.2, 1.7), rng)
    return _harmonics(t, _pitch(rng, 1700) * 0.35**u, (1, 0.3))


def _drops(t: Wave, rng: Generator) -> Wave:
    per_s = rng.uniform(5, 7)
    turn = t * per_s
    u = (turn % 1.0) / per_s
    height = rng.uniform(0.7, 1.5, int(turn[-1]) + 1)[turn.astype(np.intp)]
    return _tone(t, _pitch(rng, 900) * height * (1 + 6 * u)) * np.exp(-28 * u)


def _thumps(t: Wave, rng: Generator) -> Wave:
    per_s = rng.uniform(1.9, 2.5)
    u = _cycle(t, per_s, rng) / per_s
    second = np.maximum(u - 0.16, 0)
    hz = _pitch(rng, 110)
    return np.asarray(_tone(t, hz) * (np.exp(-18 * u) + 0.8 * (u > 0.16) * np.exp(-22 * second)))


def _buzz(t: Wave, rng: Generator) -> Wave:
    hz = _pitch(rng, 210) * (1 + 0.04 * np.sin(2 * np.pi * rng.uniform(1, 3) * t))
    phase = np.cumsum(hz) * (t[1] - t[0]) % 1.0
    saw = 2 * phase - 1
    return np.asarray(np.diff(np.tanh(3 * saw), prepend=0.0) + 0.2 * saw)


VOICES: dict[str, Voice] = {
    "rising_chirps": _rising_chirps,
    "engine": _engine,
    "noise_bursts": _noise_bursts,
    "bell": _bell,
    "beeps": _beeps,
    "trill": _trill,
    "clicks": _clicks,
    "vibrato": _vibrato,
    "siren": _siren,
    "drops": _drops,
    "thumps": _thumps,
    "buzz": _buzz,
}

RHYTHMIC = frozenset({"rising_chirps", "noise_bursts", "beeps", "clicks", "drops", "thumps"})
"""Voices that pause between pulses: nearly silent for at least a third of the time, the others for a sixth at most."""


FADE_S = 0.03
VOICE_LEVEL = (0.06, 0.13)
NOISE_BELOW_DB = (9.0, 24.0)  # how far the noise lies below the middle of VOICE_LEVEL
NOISE_SLOPES = (0.0, 0.5, 1.0)  # white, pink, brown: amplitude falls with frequency to this power


def waveform(options: SyntheticOptions, scenario: Scenario, cast: Cast | None = None) -> NDArray[np.float32]:
    """The whole clip: mono float32 [seconds * rate_hz] in -1..1. With a `cast`, voices are its recordings."""
    rng = generator(options, "audio", scenario.index)
    rate = options.rate_hz
    t = np.arange(options.seconds * rate) / rate
    mix = _background(rng, t, rate, scenario.cut_s)
    for number in sorted(set().union(*scenario.heard)):
        heard = np.array([number in second for second in scenario.heard])
        if cast is None:
            wave = VOICES[CLASSES[scenario.cls(number)].voice](t, rng)
            level = scenario.things[number].level if scenario.things else rng.uniform(*VOICE_LEVEL)
            mix += _at_level(wave, level) * _gate(heard, rate)
        else:
            level = scenario.things[number].level if scenario.things else rng.uniform(*VOICE_LEVEL)
            mix += _recorded(cast.sounds[number].path, level, heard, rate, rng) * _gate(heard, rate)
    return np.tanh(mix).astype(np.float32)  # peaks are rounded off, not clipped


def _recorded(path: Path, level: float, heard: NDArray[np.bool_], rate: int, rng: Generator) -> Wave:
    """A recording at `level` in the seconds that are heard, each unbroken stretch of which begins with a sound; zeros
    in the others: [T * rate]."""
    recording = read_sound(path, rate)
    wave = np.zeros(len(heard) * rate)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], heard, [False]))))
    for start, end in zip(edges[::2] * rate, edges[1::2] * rate, strict=True):
        wave[start:end] = played(recording, rate, end - start, rng)
    inside = np.repeat(heard, rate)
    wave[inside] = at_level(wave[inside], level, rate)
    return wave


def _at_level(wave: Wave, level: float) -> Wave:
    return np.asarray(wave * (level / np.sqrt(np.mean(wave**2))))


def _gate(heard: NDArray[np.bool_], rate: int) -> Wave:
    """1 in the seconds that are heard and 0 in the others, [T * rate]; the fades lie in the seconds that are heard."""
    gate = np.repeat(heard.astype(np.float64), rate)
    n = int(FADE_S * rate)
    slope = np.linspace(0, 1, n, endpoint=False)
    for second in np.flatnonzero(heard):
        start, end = second * rate, (second + 1) * rate
        if second == 0 or not heard[second - 1]:
            gate[start : start + n] = slope
        if second + 1 == len(heard) or not heard[second + 1]:
            gate[end - n : end] = slope[::-1]
    return gate


def _background(rng: Generator, t: Wave, rate: int, cut_s: int | None) -> Wave:
    """Coloured noise and a hum, which change at a cut."""
    before = _scene(rng, t, rate)
    if cut_s is None:
        return before
    return np.where(t < cut_s, before, _scene(rng, t, rate))


def _scene(rng: Generator, t: Wave, rate: int) -> Wave:
    spectrum = np.fft.rfft(rng.standard_normal(len(t)))
    hz = np.maximum(np.fft.rfftfreq(len(t), 1 / rate), 30.0)
    noise = np.fft.irfft(spectrum * hz ** -float(rng.choice(NOISE_SLOPES)), len(t))
    level = float(np.mean(VOICE_LEVEL)) * 10 ** (-rng.uniform(*NOISE_BELOW_DB) / 20)
    hum = np.sin(2 * np.pi * rng.uniform(50, 240) * t + rng.uniform(0, 6.3))
    return _at_level(noise, level) + _at_level(hum, level * rng.uniform(0, 0.7))
