"""From decoded pieces of mono audio, at any rate, to the exact samples of a clip.

Pieces come with the container's times, which are rounded (Matroska: to a millisecond), jump (lost packets) and lie.
Here they are laid on one line of samples: consecutive pieces touch, and a jump becomes a gap of silence that is
remembered, so that every sample of a clip is known to be real or not. libswresample converts the rate, for every
decoder; where the rate changes in mid-stream, each stretch is converted separately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.media.scan import merge_spans

Float = NDArray[np.float32]

JUMP_S = 0.05  # a time further than this from where the last piece ended is a gap, not rounding
ROUGH_S = 0.0015  # stamps that differ by less are equal but for rounding
SILENT_PEAK = 1e-4  # -80 dBFS
FILTER_S = 0.05  # audio before and after a clip that the rate conversion looks at


def resample(mono: Float, from_hz: int, to_hz: int) -> Float:
    """Convert the rate of `[n]`; sample 0 stays at the same time."""
    if from_hz == to_hz or not mono.size:
        return mono
    import av

    frame = av.AudioFrame.from_ndarray(mono[None], format="fltp", layout="mono")
    frame.sample_rate = from_hz
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=to_hz)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts])


@dataclass(frozen=True)
class Stretch:
    """Mono samples `[n]` of one rate; sample 0 is at media time `start_s`."""

    mono: Float
    rate_hz: int
    start_s: float

    @property
    def end_s(self) -> float:
        """Media time after the last sample."""
        return self.start_s + self.mono.size / self.rate_hz

    def window(self, start_s: float, samples: int, rate_hz: int) -> Float:
        """Exactly `samples` samples at `rate_hz` from media time `start_s`; silence where there is no audio.

        The part handed to the rate conversion begins where both sample grids meet best, so that times are exact to well
        below a sample wherever the stream's own grid allows it.
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
        found = resample(part, self.rate_hz, rate_hz)[skip : skip + samples]
        out[: found.size] = found
        return out

    def _meeting(self, ahead: float, rate_hz: int) -> int:
        period = self.rate_hz // math.gcd(self.rate_hz, rate_hz)
        offsets = (ahead + np.arange(period)) * rate_hz / self.rate_hz
        return int(np.argmin(np.round(np.abs(offsets - np.round(offsets)), 6)))


@dataclass
class Audio:
    """What a decoder returned of one audio stream: stretches in order, only one unless the rate changes.

    spans_s: the real parts, in media time. loudest: where the mix of the channels is silent, the largest sample of any
    channel, or None where that is not known.
    """

    stretches: list[Stretch] = field(default_factory=list)
    spans_s: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    loudest: float | None = 0.0

    @classmethod
    def of(cls, mono: Float, rate_hz: int, start_s: float) -> Audio:
        """Audio without a hole."""
        stretch = Stretch(mono, rate_hz, start_s)
        return cls([stretch], [(stretch.start_s, stretch.end_s)])

    def within(self, start_s: float, end_s: float) -> float:
        """Seconds of real audio between two media times."""
        return sum(max(0.0, min(b, end_s) - max(a, start_s)) for a, b in self.spans_s)

    def window(self, start_s: float, samples: int, rate_hz: int) -> Float:
        """Exactly `samples` samples at `rate_hz` from media time `start_s`; silence where there is no audio."""
        if len(self.stretches) == 1:
            return self.stretches[0].window(start_s, samples, rate_hz)
        out = np.zeros(samples, dtype=np.float32)
        for stretch in self.stretches:
            low, high = (
                min(max(round((at_s - start_s) * rate_hz), 0), samples)
                for at_s in (stretch.start_s, stretch.end_s)
            )
            if high > low:
                out[low:high] = stretch.window(start_s, samples, rate_hz)[low:high]
        return out


@dataclass
class AudioLine:
    """Collects a stream's pieces in order; `tick_s` is the resolution of the container's clock.

    Pieces outside `keep_s` (media times) are dropped, so that a lying clock cannot demand hours of silence.
    entered: reading began in the middle of the file, where the first stamps may belong to a packet cut in two.
    """

    tick_s: float
    keep_s: tuple[float, float]
    entered: bool = False
    errors: list[str] = field(default_factory=list)
    loudest: float = 0.0
    end_s: float | None = None  # media time at which the last piece ends
    _pieces: list[Stretch] = field(default_factory=list)

    def add(self, time_s: float | None, mono: Float, rate_hz: int) -> None:
        """Append a piece; without a time it follows the last one. Pieces may differ in rate."""
        if time_s is None:
            time_s = self.end_s or 0.0
        self.end_s = time_s + mono.size / rate_hz
        if self.end_s >= self.keep_s[0] and time_s <= self.keep_s[1]:
            self._pieces.append(Stretch(mono, rate_hz, time_s))

    def _runs(self) -> list[Stretch]:
        """Touching pieces of one rate, joined; a run starts where the times of all its pieces agree."""
        runs: list[list[Stretch]] = []
        offsets: list[list[float]] = []  # for each piece of each run: its time less the samples before it
        count = 0
        for n, piece in enumerate(self._pieces):
            after = self._pieces[n + 1] if n + 1 < len(self._pieces) else None
            offset = piece.start_s - count / piece.rate_hz
            if not runs or piece.rate_hz != runs[-1][-1].rate_hz:
                jumps = True
            else:
                last_s = offsets[-1][-1]
                jumps = abs(offset - last_s) > JUMP_S
                # a single stamp that is off, as in fragmented mp4, moves nothing
                if jumps and after is not None and after.rate_hz == piece.rate_hz:
                    following_s = after.start_s - (count + piece.mono.size) / piece.rate_hz
                    if abs(following_s - last_s) <= JUMP_S:
                        jumps, offset = False, last_s
            if jumps:
                runs.append([])
                offsets.append([])
                count, offset = 0, piece.start_s
            offsets[-1].append(offset)
            runs[-1].append(piece)
            count += piece.mono.size
        return [
            Stretch(np.concatenate([p.mono for p in run]), run[0].rate_hz, self._agreed(o, run[0].rate_hz))
            for o, run in zip(offsets, runs, strict=True)
        ]

    def _agreed(self, offsets: list[float], rate_hz: int) -> float:
        """The start that all rounded times allow: the first time if possible, else the middle of the allowed range."""
        if self.entered and offsets[0] > 0:
            middle_s = sorted(offsets)[len(offsets) // 2]
            if abs(middle_s - offsets[0]) > max(self.tick_s, ROUGH_S):
                return middle_s
        half_s = self.tick_s / 2 + 1e-9
        low, high = max(offsets) - half_s, min(offsets) + half_s
        if self.tick_s * rate_hz <= 1.0 or low > high or low <= offsets[0] <= high:
            return offsets[0]
        return (low + high) / 2

    def audio(self) -> Audio:
        """Everything collected; empty (no spans) if nothing was."""
        runs = self._runs()
        spans = merge_spans([(run.start_s, run.end_s) for run in runs])
        alike = [list(group) for _, group in groupby(runs, key=lambda run: run.rate_hz)]
        return Audio([_join_runs(group) for group in alike], spans, self.errors, self.loudest)


def _join_runs(runs: list[Stretch]) -> Stretch:
    """Runs of one rate as one stretch, with silence between them."""
    start_s, rate_hz = min(run.start_s for run in runs), runs[0].rate_hz
    at = [round((run.start_s - start_s) * rate_hz) for run in runs]
    mono = np.zeros(max(n + run.mono.size for n, run in zip(at, runs, strict=True)), dtype=np.float32)
    for n, run in zip(at, runs, strict=True):
        mono[n : n + run.mono.size] = run.mono
    return Stretch(mono, rate_hz, start_s)
