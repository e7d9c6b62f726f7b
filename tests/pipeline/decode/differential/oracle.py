"""What the `ffmpeg` command shows and plays of a file at any time: the yardstick of the differential test.

The file is read from its beginning, without a seek: pictures with the times ffmpeg gives them, turned upright and
brought to the code's size, sound on one line from time 0 (`aresample=async=1` fills gaps as players do), mixed to mono
with weights that sum to one. Time 0 is the container's start, as for every ffmpeg command.
"""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from making import Case
from truth import HEIGHT, RATE_HZ, WIDTH, Float, Image

TIME_TOLERANCE_S = 0.002  # containers that count milliseconds, in either direction
BLOCK_S = 0.05
QUIET_RMS = 1e-3  # the source's noise is a hundred times louder

_SHOWN = re.compile(r"showinfo.*? n: *\d+ .*?pts_time:(\S+) .*? sar:(\d+)/(\d+) s:(\d+)x(\d+)")


@dataclass
class Answer:
    """ffmpeg's answer. times_s, images `[N, 48, 64, 3]`: all pictures. shapes: width over height as displayed. wave `[n]` from 0 s."""

    times_s: list[float]
    images: Image
    shapes: list[float]
    wave: Float
    said: str

    @property
    def gap_s(self) -> float:
        """Usual time between two pictures."""
        return float(np.median(np.diff(self.times_s))) if len(self.times_s) > 1 else 0.04

    def shown(self, time_s: float) -> int | None:
        """Index of the picture shown at `time_s`: the last one not after it; None before the first."""
        at = bisect_right(self.times_s, time_s)
        return at - 1 if at else None

    def candidates(self, time_s: float) -> list[int]:
        """Pictures that may be called shown at `time_s`, when times are rounded to the container's ticks."""
        found = [self.shown(time_s + off_s) for off_s in (-TIME_TOLERANCE_S, 0.0, TIME_TOLERANCE_S)]
        return sorted({0 if at is None else at for at in found}) if self.times_s else []

    def sound(self, start_s: float, seconds: float) -> Float:
        """`[seconds * RATE_HZ]`, silence where ffmpeg has no more."""
        first, count = round(start_s * RATE_HZ), round(seconds * RATE_HZ)
        part = self.wave[first : first + count]
        return np.pad(part, (0, count - part.size))

    def heard_share(self, start_s: float, seconds: float) -> float:
        """Which part of a stretch of time is not silent."""
        blocks = self.sound(start_s, seconds).reshape(-1, round(BLOCK_S * RATE_HZ))
        return float((np.sqrt((blocks**2).mean(axis=1)) > QUIET_RMS).mean())


def ask(case: Case, file: Path, scratch: Path) -> Answer:
    """Decode the whole file with the ffmpeg command; what fails to decode is missing in the answer, as for its users."""
    pictures, sound = scratch / "ffmpeg.rgb", scratch / "ffmpeg.f32"
    for old in (pictures, sound):
        old.unlink(missing_ok=True)
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-nostats", "-y", "-threads", "1", "-i", str(file)]
    if case.has_video:
        command += ["-an", "-sn", "-dn", "-vf", f"showinfo=checksum=0,scale={WIDTH}:{HEIGHT}:flags=area"]
        command += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", str(pictures)]
    if case.has_audio:
        line = f"aresample={RATE_HZ}:async=1:first_pts=0:rematrix_maxval=1"
        command += ["-vn", "-sn", "-dn", "-af", line, "-ac", "1", "-f", "f32le", str(sound)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    said = done.stderr.decode(errors="replace")
    seen = [match.groups() for match in _SHOWN.finditer(said)]
    images = (
        np.fromfile(pictures, dtype=np.uint8) if pictures.exists() else np.zeros(0, dtype=np.uint8)
    )
    images = images[: images.size // (WIDTH * HEIGHT * 3) * WIDTH * HEIGHT * 3].reshape(-1, HEIGHT, WIDTH, 3)
    count = min(len(images), len(seen))
    shapes = [
        int(w) / int(h) * (int(num) / int(den) if int(num) and int(den) else 1.0)
        for _, num, den, w, h in seen[:count]
    ]
    wave = np.fromfile(sound, dtype=np.float32) if sound.exists() else np.zeros(0, dtype=np.float32)
    return Answer([float(at) for at, *_ in seen[:count]], images[:count], shapes, wave, said)
