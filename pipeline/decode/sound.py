"""From decoded pieces of sound, of any rate and channels, to the exact mono samples of a clip.

Pieces come with the container's times, which round (Matroska: to a millisecond), jump (lost packets) and
lie. They are put on one line of samples: consecutive ones touch, a jump becomes a gap of silence that is
remembered. Channels are mixed with FFmpeg's weights, so that speech in a centre channel stays as loud as it
is; the rate is converted by libswresample, the same for every decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

JUMP_S = 0.05  # a time further than this from where the last piece ended is a gap, not rounding
FILTER_S = 0.05  # sound on both sides of a clip that the rate conversion looks at
_HALF = math.sqrt(0.5)
_WEIGHTS = {
    "FC": 1.0,
    **dict.fromkeys(("FL", "FR", "FLC", "FRC", "DL", "DR", "WL", "WR"), _HALF),
    **dict.fromkeys(("SL", "SR", "BL", "BR", "BC", "SDL", "SDR"), 0.5),
    **dict.fromkeys(("LFE", "LFE2"), 0.0),
}


_USUAL = {
    1: ("FC",),
    2: ("FL", "FR"),
    3: ("FL", "FR", "LFE"),
    4: ("FL", "FR", "FC", "BC"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}  # FFmpeg's guess for a stream that only counts its channels


def channel_names(said: Sequence[str]) -> tuple[str, ...]:
    """The channels' names, guessed from their number where the stream does not name them."""
    return tuple(said) if all(name in _WEIGHTS for name in said) else _USUAL.get(len(said), tuple(said))


def weights(channels: Sequence[str]) -> Float:
    """FFmpeg's weight of each channel in a mono mix, not normalised; a single channel counts 1."""
    if len(channels) < 2:
        return np.ones(len(channels), dtype=np.float32)
    found = np.array([_WEIGHTS.get(name, 0.5) for name in channels], dtype=np.float32)
    return found if found.any() else np.ones_like(found)


def mixed_to_mono(samples: NDArray[np.generic], channels: Sequence[str]) -> Float:
    """Samples `[C, n]` of any PCM type -> mono float32 `[n]`, full scale 1.0."""
    if samples.dtype.kind in "iu":
        middle = 128.0 if samples.dtype.kind == "u" else 0.0  # only 8-bit PCM is unsigned
        scale = float(2 ** (8 * samples.dtype.itemsize - 1))
        values = ((samples.astype(np.float64) - middle) / scale).astype(np.float32)
    else:
        values = samples.astype(np.float32, copy=False)
    if len(values) == 1:
        return np.ascontiguousarray(values[0])
    named = channels if len(channels) == len(values) else [""] * len(values)
    mix = weights(channel_names(named))
    mono: Float = (mix / mix.sum()) @ values
    return mono


def resampled(mono: Float, from_hz: int, to_hz: int) -> Float:
    """Convert the rate of `[n]`; sample 0 stays at the same time."""
    if from_hz == to_hz or not mono.size:
        return mono
    import av

    frame = av.AudioFrame.from_ndarray(mono[None], format="fltp", layout="mono")
    frame.sample_rate = from_hz
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=to_hz)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts])


@dataclass
class Sound:
    """Mono sound of one stream at its own rate; sample 0 is at media time `start_s`; `spans_s` are the real parts."""

    mono: Float
    rate_hz: int
    start_s: float
    spans_s: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def within(self, start_s: float, end_s: float) -> float:
        """Seconds of real sound between two media times."""
        return sum(max(0.0, min(b, end_s) - max(a, start_s)) for a, b in self.spans_s)

    def window(self, start_s: float, samples: int, rate_hz: int) -> Float:
        """Exactly `samples` samples at `rate_hz` from media time `start_s`; silence where there is no sound.

        The part handed to the rate conversion begins where both sample grids meet best, so a time is hit
        to well below a sample wherever the stream's own grid allows it.
        """
        out = np.zeros(samples, dtype=np.float32)
        edge = math.ceil(FILTER_S * self.rate_hz)
        wanted = (start_s - self.start_s) * self.rate_hz  # in native samples
        first = math.floor(wanted) - edge
        first -= self._meeting(wanted - first, rate_hz)
        last = math.ceil(wanted + samples * self.rate_hz / rate_hz) + edge
        inside = slice(max(first, 0), max(min(last, self.mono.size), 0))
        if inside.stop <= inside.start:
            return out
        part = np.zeros(last - first, dtype=np.float32)
        part[inside.start - first : inside.stop - first] = self.mono[inside]
        skip = round((wanted - first) * rate_hz / self.rate_hz)
        found = resampled(part, self.rate_hz, rate_hz)[skip : skip + samples]
        out[: found.size] = found
        return out

    def _meeting(self, ahead: float, rate_hz: int) -> int:
        period = self.rate_hz // math.gcd(self.rate_hz, rate_hz)
        offsets = (ahead + np.arange(period)) * rate_hz / self.rate_hz
        return int(np.argmin(np.round(np.abs(offsets - np.round(offsets)), 6)))


@dataclass
class SoundLine:
    """Collects a stream's pieces in order; `tick_s` is the container's clock resolution.

    Pieces outside `keep_s` (media times) are left out, so a lying clock cannot ask for hours of silence.
    """

    tick_s: float
    keep_s: tuple[float, float]
    rate_hz: int = 0
    errors: list[str] = field(default_factory=list)
    _pieces: list[tuple[float, Float]] = field(default_factory=list)
    _end_s: float | None = None

    @property
    def start_s(self) -> float | None:
        """Media time of the first piece."""
        return self._pieces[0][0] if self._pieces else None

    @property
    def end_s(self) -> float | None:
        """Media time at which the last piece ends."""
        return self._end_s

    def add(self, time_s: float | None, mono: Float, rate_hz: int) -> None:
        """Append a piece; without a time it follows the last one. The first piece's rate becomes the line's."""
        self.rate_hz = self.rate_hz or rate_hz
        if rate_hz != self.rate_hz:  # the stream changed its rate in the middle
            mono = resampled(mono, rate_hz, self.rate_hz)
        if time_s is None:
            time_s = self._end_s or 0.0
        self._end_s = time_s + mono.size / self.rate_hz
        if self._end_s >= self.keep_s[0] and time_s <= self.keep_s[1]:
            self._pieces.append((time_s, mono))

    def _runs(self) -> list[tuple[float, list[Float]]]:
        """Pieces that touch, joined: (start, pieces) a run; the start is what all times of the run agree with."""
        runs: list[tuple[float, list[Float]]] = []
        offsets: list[list[float]] = []  # of each run: piece time - samples before it
        count = 0
        for time_s, mono in self._pieces:
            offset = time_s - count / self.rate_hz
            if not runs or abs(offset - offsets[-1][-1]) > JUMP_S:
                runs.append((time_s, []))
                offsets.append([])
                count, offset = 0, time_s
            offsets[-1].append(offset)
            runs[-1][1].append(mono)
            count += mono.size
        return [(self._agreed(o), pieces) for o, (_, pieces) in zip(offsets, runs, strict=True)]

    def _agreed(self, offsets: list[float]) -> float:
        """The start that all rounded times allow: the first one if it does, else the middle of what does."""
        half_s = self.tick_s / 2 + 1e-9
        low, high = max(offsets) - half_s, min(offsets) + half_s
        if self.tick_s * self.rate_hz <= 1.0 or low > high or low <= offsets[0] <= high:
            return offsets[0]
        return (low + high) / 2

    def sound(self) -> Sound:
        """Everything collected as one `Sound`, which is empty (no spans) when nothing was."""
        runs = self._runs()
        if not runs:
            return Sound(np.zeros(0, dtype=np.float32), self.rate_hz or 1, 0.0, [], self.errors)
        start_s = min(run_s for run_s, _ in runs)
        spans: list[tuple[float, float]] = []
        placed: list[tuple[int, Float]] = []
        for run_s, pieces in runs:
            joined = np.concatenate(pieces)
            spans.append((run_s, run_s + joined.size / self.rate_hz))
            placed.append((round((run_s - start_s) * self.rate_hz), joined))
        total = max(at + joined.size for at, joined in placed)
        mono = np.zeros(total, dtype=np.float32)
        for at, joined in placed:
            mono[at : at + joined.size] = joined
        return Sound(mono, self.rate_hz, start_s, _merged(spans), self.errors)


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
        else:
            merged.append((start_s, end_s))
    return merged
