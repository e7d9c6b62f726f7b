"""The sound of a clip: the voices its scenario says are heard, over background noise.

Levels are root mean squares of full scale (1.0). A voice is switched on and off at whole seconds with short
fades that lie inside the second, so that a second said to be without it holds none of it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario, generator
from caeav.manifests.synthetic.voices import VOICES, Wave
from caeav.manifests.synthetic.classes import CLASSES

FADE_S = 0.03
VOICE_LEVEL = (0.06, 0.13)
NOISE_BELOW_DB = (9.0, 24.0)  # how far the noise lies below the middle of VOICE_LEVEL
NOISE_SLOPES = (0.0, 0.5, 1.0)  # white, pink, brown: amplitude falls with frequency to this power


def waveform(options: SyntheticOptions, scenario: Scenario) -> NDArray[np.float32]:
    """The whole clip, mono float32 [seconds * rate_hz] in -1..1."""
    rng = generator(options, "sound", scenario.index)
    rate = options.rate_hz
    t = np.arange(options.seconds * rate) / rate
    mix = _background(rng, t, rate, scenario.cut_s)
    for number in sorted(set().union(*scenario.heard)):
        wave = VOICES[CLASSES[scenario.cls(number)].voice](t, rng)
        level = scenario.things[number].level if scenario.things else rng.uniform(*VOICE_LEVEL)
        gate = _gate(np.array([number in second for second in scenario.heard]), rate)
        mix += _levelled(wave, level) * gate
    return np.tanh(mix).astype(np.float32)  # no peak is cut off hard


def _levelled(wave: Wave, level: float) -> Wave:
    return np.asarray(wave * (level / np.sqrt(np.mean(wave**2))))


def _gate(heard: NDArray[np.bool_], rate: int) -> Wave:
    """1 in the seconds heard and 0 in the others, [T * rate]; the slopes lie in the seconds heard."""
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
    """Coloured noise and a hum; others after a cut, since the scene is another one."""
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
    return _levelled(noise, level) + _levelled(hum, level * rng.uniform(0, 0.7))
