"""Source media with known content: every picture shows its number, every second of the sound can be located.

A picture has 4 x 4 blocks, bright for the bits of its number that are set. It survives lossy codecs at 64 x 48, and its
colours and layout show whether it was rotated or recoloured. The sound is seeded noise between 200 and 3,000 Hz, so a
second of it is located by correlation, even at 8 kHz. Both run on one clock: picture `n` of a source with `fps`
pictures per second belongs to second `n / fps` of the sound.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48
RATE_HZ = 16_000
SOURCE_S = 64
ON, OFF = (225, 185, 60), (25, 30, 95)
BITS = 16
SEEN_LEVEL = 110  # between the brightness of the two colours

Image = NDArray[np.uint8]
Float = NDArray[np.float32]


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> Image:
    """The picture `[H, W, 3]` that shows `number`."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[:] = OFF
    for bit in range(BITS):
        row, column = divmod(bit, 4)
        if number >> bit & 1:
            image[
                row * height // 4 : (row + 1) * height // 4, column * width // 4 : (column + 1) * width // 4
            ] = ON
    return image


def number_in(image: Image) -> int:
    """The number shown by an upright picture `[H, W, 3]` of any size; -1 if a block is neither bright nor dark."""
    height, width = image.shape[:2]
    number = 0
    for bit in range(BITS):
        row, column = divmod(bit, 4)
        middle = image[
            row * height // 4 + height // 12 : (row + 1) * height // 4 - height // 12,
            column * width // 4 + width // 12 : (column + 1) * width // 4 - width // 12,
        ]
        level = float((middle @ np.array([0.299, 0.587, 0.114])).mean())
        if abs(level - SEEN_LEVEL) < 12:
            return -1
        number |= int(level > SEEN_LEVEL) << bit
    return number


@cache
def noise() -> Float:
    """The sound of all sources, `[SOURCE_S * RATE_HZ]`, the same on every machine."""
    samples = SOURCE_S * RATE_HZ
    spectrum = np.fft.rfft(np.random.default_rng(7).standard_normal(samples))
    pitch_hz = np.fft.rfftfreq(samples, 1 / RATE_HZ)
    spectrum[(pitch_hz < 200) | (pitch_hz > 3000)] = 0
    wave = np.fft.irfft(spectrum, samples)
    return np.clip(wave * 0.12 / wave.std(), -0.95, 0.95).astype(np.float32)


@cache
def _noise_spectrum(length: int) -> NDArray[Any]:
    return np.fft.rfft(noise(), length)


def place_of(wave: Float) -> tuple[float, float]:
    """The second of the source at which `wave` begins, and the correlation there (-1: inverted)."""
    length = 1 << (noise().size + wave.size).bit_length()
    found = np.fft.irfft(_noise_spectrum(length) * np.conj(np.fft.rfft(wave, length)), length)
    found = found[: noise().size - wave.size + 1]
    at = int(np.argmax(np.abs(found)))
    there = noise()[at : at + wave.size]
    norm = float(np.sqrt((there**2).sum() * (wave**2).sum())) + 1e-12
    return at / RATE_HZ, float((there * wave).sum()) / norm


def write_sources(folder: Path) -> None:
    """Write `noise.f32` and `pictures.rgb` (numbers 0, 1, 2, ...) into `folder`, for ffmpeg to encode."""
    noise().tofile(folder / "noise.f32")
    with (folder / "pictures.rgb").open("wb") as out:
        for number in range(1200):
            out.write(picture(number).tobytes())
