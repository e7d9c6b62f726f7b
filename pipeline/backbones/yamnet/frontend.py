"""YAMNet's front end, from a segment of sound to one log-mel patch of 0.96 s (research/audioset/yamnet, `features.py`).

Frames of 400 samples every 160 at 16 kHz, periodic Hann window, FFT of 512 with zeros behind the frame, magnitude (not
power), 64 mel bands from 125 to 7500 Hz, `log(mel + 0.001)`. 15,600 samples make exactly one patch of 96 frames.
The authors' 8-bit export holds its mel filters in 8 bits, too, which moves a patch by about 1 % of its largest value.
`N` windows; patches are `[N, 96, 64]`, time by band.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE_HZ = 16_000
FRAME, HOP, FFT = 400, 160, 512
FRAMES, BANDS = 96, 64
LOW_HZ, HIGH_HZ = 125.0, 7500.0
OFFSET = 0.001
"""Added to a mel value before the logarithm."""
SAMPLES = FRAME + (FRAMES - 1) * HOP
"""What one patch hears: 15,600 samples."""
PLACES = ("centre", "start")
MELS = ("float", "int8")
"""Mel filters as the authors' program computes them, or rounded as in their 8-bit export."""


def take_patch(windows: Tensor, place: str) -> Tensor:
    """The 15,600 samples of each window that are heard: `[N, n]` -> `[N, 15600]`.

    At the window's `centre`, or from its `start` as the authors' program reads a file. A shorter window is filled up
    with silence: on both sides of it, or behind it.
    """
    left = (windows.shape[-1] - SAMPLES) // 2 if place == "centre" else 0
    right = windows.shape[-1] - SAMPLES - left
    return F.pad(windows, (-left, -right))


def mel_weights(mel: str = MELS[0]) -> Tensor:
    """Triangles over mel (HTK's formula), as TensorFlow makes them: `[64, 257]`, float32, computed in float64.

    Rising and falling are straight in mel, not in hertz. `int8`: all are whole multiples of 1/127 of the largest.
    """
    bins = _mel(torch.arange(FFT // 2 + 1, dtype=torch.float64) * RATE_HZ / FFT)
    edges = torch.linspace(float(_mel(LOW_HZ)), float(_mel(HIGH_HZ)), BANDS + 2, dtype=torch.float64)
    low, middle, high = (edges[i : i + BANDS].unsqueeze(1) for i in range(3))
    triangles = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0)
    if mel == "int8":
        grain = triangles.max() / 127
        triangles = (triangles / grain).round() * grain
    return triangles.float()


def hann_window() -> Tensor:
    """The periodic Hann window `[400]`."""
    return torch.hann_window(FRAME, periodic=True, dtype=torch.float64).float()


def _mel(hz: Tensor | float) -> Tensor:
    return 1127 * torch.log1p(torch.as_tensor(hz, dtype=torch.float64) / 700)


class LogMel(nn.Module):
    """Windows `[N, 15600]` -> log-mel patches `[N, 96, 64]`."""

    window: Tensor
    mel: Tensor

    def __init__(self, mel: str = MELS[0]) -> None:
        super().__init__()
        self.register_buffer("window", hann_window(), persistent=False)
        self.register_buffer("mel", mel_weights(mel), persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        """In float32 whatever the network runs in: half precision is too coarse for a spectrum."""
        with torch.autocast(windows.device.type, enabled=False):
            frames = windows.to(self.window.dtype).unfold(-1, FRAME, HOP) * self.window  # [N, 96, 400]
            magnitude = torch.fft.rfft(frames, n=FFT).abs()  # [N, 96, 257]
            return torch.log(magnitude @ self.mel.T + OFFSET)
