"""The front end of HTS-AT and CLAP, from waveforms to a square image: log-mel, norm, fold (REFERENCE sections 1 and 6).

`N` windows; spectrograms are `[N, frames, bands]`. Whatever is random acts in training mode only. Frozen backbones run
in eval mode, so it matters only to reproduce the reference, which left its frozen networks in training mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLOOR = 1e-10
"""Power below this (-100 dB) is cut."""
MelScale = Literal["slaney", "htk"]
Filling = Literal["repeat", "repeatpad"]


@dataclass(frozen=True)
class FrontEnd:
    """The published network's front end; `image_size` is the edge of its square image, a multiple of `bands`.

    window_s: length of the network's input; a shorter window is repeated and cut (`repeat`), or repeated as often as
    it fits whole and followed by silence (`repeatpad`). mel: `slaney` filters of equal area, or `htk` of equal height.
    int16: samples are first rounded to 16 bits, as laion-clap does.
    """

    rate_hz: int = 32_000
    fft: int = 1024
    hop: int = 320
    bands: int = 64
    low_hz: float = 50.0
    high_hz: float = 14_000.0
    image_size: int = 256
    window_s: int = 10
    mel: MelScale = "slaney"
    filling: Filling = "repeat"
    int16: bool = False

    @property
    def folds(self) -> int:
        """How many pieces of time are stacked along frequency."""
        return self.image_size // self.bands

    @property
    def frames(self) -> int:
        """How many spectral frames the image holds."""
        return self.image_size * self.folds


def _mel(hz: Tensor, scale: MelScale) -> Tensor:
    """Slaney's scale is linear up to 1 kHz and logarithmic above; HTK's is one logarithm."""
    if scale == "htk":
        return 2595 * torch.log10(1 + hz / 700)
    step = math.log(6.4) / 27
    return torch.where(hz < 1000, hz * (3 / 200), 15 + torch.log(hz.clamp(min=1000) / 1000) / step)


def _hz(mel: Tensor, scale: MelScale) -> Tensor:
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    step = math.log(6.4) / 27
    return torch.where(mel < 15, mel * (200 / 3), 1000 * torch.exp(step * (mel - 15)))


def mel_weights(config: FrontEnd) -> Tensor:
    """Triangular filters `[fft / 2 + 1, bands]`, float32, computed in float64."""
    bins = torch.linspace(0, config.rate_hz / 2, config.fft // 2 + 1, dtype=torch.float64)
    limits = _mel(torch.tensor([config.low_hz, config.high_hz], dtype=torch.float64), config.mel)
    edges = _hz(
        torch.linspace(float(limits[0]), float(limits[1]), config.bands + 2, dtype=torch.float64), config.mel
    )
    rise = (bins.unsqueeze(1) - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - bins.unsqueeze(1)) / (edges[2:] - edges[1:-1])
    triangles = torch.minimum(rise, fall).clamp(min=0)
    return (triangles * (2 / (edges[2:] - edges[:-2])) if config.mel == "slaney" else triangles).float()


def fill_window(windows: Tensor, samples: int, filling: Filling = "repeat") -> Tensor:
    """Windows repeated up to `samples`: `[N, n]` -> `[N, samples]` (one second becomes ten)."""
    length = windows.shape[-1]
    if filling == "repeat" or length >= samples:
        return windows.repeat(1, -(-samples // length))[:, :samples]
    whole = windows.repeat(1, samples // length)
    return F.pad(whole, (0, samples - whole.shape[-1]))


def round_int16(windows: Tensor) -> Tensor:
    """To 16 bits (-1..1 becomes -32767..32767), rounded towards zero, and back."""
    return (windows.clamp(-1, 1) * 32767).trunc() / 32767


def mix_up(x: Tensor, share: Tensor) -> Tensor:
    """`share_n x_n + (1 - share_n) x_{N-1-n}`, `x` `[N, ...]`, `share` `[N]`: the reference mixes only spectrograms."""
    share = share.view(-1, *(1 for _ in x.shape[1:]))
    return share * x + (1 - share) * x.flip(0)


def drop_stripes(x: Tensor, dim: int, widest: int, stripes: int) -> Tensor:
    """SpecAugment: in every row of `x` `[N, frames, bands]` zero `stripes` random bands of axis `dim`."""
    length = x.shape[dim]
    place = torch.arange(length, device=x.device)
    keep = torch.ones(x.shape[0], length, dtype=torch.bool, device=x.device)
    for _ in range(stripes):
        width = torch.randint(0, widest, (x.shape[0], 1), device=x.device).clamp(max=length - 1)
        start = (torch.rand(x.shape[0], 1, device=x.device) * (length - width)).long()
        keep &= (place < start) | (place >= start + width)
    return x * keep.unsqueeze(2 if dim == 1 else 1)


def fold(x: Tensor, image_size: int) -> Tensor:
    """Spectrogram `[N, 1, frames, bands]` -> image `[N, 1, image_size, image_size]`.

    Time is stretched to fill the image (bicubic, corners aligned), then cut into `image_size / bands` pieces that are
    stacked along frequency: row = piece * bands + band. Raises `ValueError` for more frames than fit.
    """
    rows, one, frames, bands = x.shape
    folds = image_size // bands
    if frames > image_size * folds:
        raise ValueError(f"{frames} spectral frames do not fit an image of {image_size * folds}")
    if frames < image_size * folds:
        x = F.interpolate(x, (image_size * folds, bands), mode="bicubic", align_corners=True)
    x = x.transpose(2, 3).reshape(rows, one, bands, folds, image_size)
    return x.transpose(2, 3).reshape(rows, one, image_size, image_size)


class MelImage(nn.Module):
    """Windows `[N, samples]` -> folded, normalised log-mel images `[N, 1, image_size, image_size]`."""

    filters: Tensor
    taper: Tensor

    def __init__(self, config: FrontEnd) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.BatchNorm1d(config.bands)  # over the mel axis
        self.register_buffer("filters", mel_weights(config))
        self.register_buffer("taper", torch.hann_window(config.fft), persistent=False)

    def log_mel(self, windows: Tensor) -> Tensor:
        """`[N, samples]` -> decibels `[N, frames, bands]`."""
        c = self.config
        spectrum = torch.stft(
            windows, c.fft, c.hop, window=self.taper, center=True, pad_mode="reflect", return_complex=True
        )
        power = spectrum.abs().square().transpose(1, 2)  # [N, frames, fft / 2 + 1]
        return 10 * torch.log10((power @ self.filters).clamp(min=FLOOR))

    def forward(self, windows: Tensor, mixup: Tensor | None = None) -> Tensor:
        """`mixup` `[N]`: the shares of `mix_up`, which acts in training only."""
        with torch.autocast(
            windows.device.type, enabled=False
        ):  # half precision is too coarse for a spectrum
            x = self.log_mel(windows.to(self.taper.dtype))
            x = self.norm(x.flatten(0, 1)).view_as(x)
        if self.training:
            x = drop_stripes(drop_stripes(x, 1, 64, 2), 2, 8, 2)
            if mixup is not None:
                x = mix_up(x, mixup)
        return fold(x.unsqueeze(1), self.config.image_size)
