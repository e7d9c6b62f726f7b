"""A tiny set of source material for tests: each picture has its own colour, each recording its own pitch."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from caeav.manifests.synthetic.media import wav

CLASSES = ("bell", "cat", "dog", "drum", "rain (heavy)")
FILES = 3
RATE_HZ = 16_000


def hue(cls: int, number: int) -> float:
    """The hue (0..1) of a picture."""
    return (cls * FILES + number) / (len(CLASSES) * FILES)


def pitch_hz(cls: int, number: float) -> float:
    """The pitch of a recording."""
    return 400.0 + 150.0 * (cls * FILES + number)


def recording(hz: float, sounding_s: float = 0.4, silence_s: float = 2.0) -> NDArray[np.float32]:
    """Silence, a quiet tone, silence again."""
    t = np.arange(int(sounding_s * RATE_HZ)) / RATE_HZ
    silence = np.zeros(int(silence_s * RATE_HZ))
    return np.concatenate((silence, 0.02 * np.sin(2 * np.pi * hz * t), silence)).astype(np.float32)


def save_picture(path: Path, cls: int, number: int) -> None:
    """Save a disc in the picture's hue on a transparent ground, 40 by 60 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:40, :60]
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[..., :3] = np.array(colorsys.hsv_to_rgb(hue(cls, number), 1.0, 1.0)) * 255
    rgba[..., 3] = 255 * (np.hypot(x - 30, y - 20) < 15)
    Image.fromarray(rgba).save(path)


def save_sound(path: Path, cls: int, number: float) -> None:
    """Save the recording as a WAV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav(recording(pitch_hz(cls, number)), RATE_HZ))


def make_material(root: Path) -> Path:
    """Write `pictures/<class>/<number>.png` and `sounds/<class>/<number>.wav`."""
    for c, name in enumerate(CLASSES):
        for n in range(FILES):
            save_picture(root / "pictures" / name / f"{n}.png", c, n)
            save_sound(root / "sounds" / name / f"{n}.wav", c, n)
    return root
