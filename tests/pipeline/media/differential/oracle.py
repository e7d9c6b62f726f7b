"""What the `ffmpeg` command shows and plays of a file at any time: the reference of the differential test.

The file is read from its beginning, without a seek. Pictures have the times that ffmpeg gives them, upright and scaled
to the source's size. Sound lies on one line from time 0, which is the container's start (`aresample=async=1` fills gaps
as players do), mixed to mono with weights that sum to one.

Two corrections: where a joined file continues at another sample rate, or joined FLAC frames restart their count, times
are wrong and `async` would tear the sound apart; the samples are then taken in sequence, as `ffmpeg -ar RATE` writes
them. And ffmpeg 5 starts Opus in Matroska with the 7 ms that a decoder drops and moves pictures and sound by them; they
are moved back, since by the file's own clock sound begins at its first block.
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

TIME_TOLERANCE_S = 0.002  # for containers with a clock of milliseconds
BLOCK_S = 0.05
STRAIGHT = "no clock"  # the trait of cases whose samples are taken in sequence
LEFT_OUT_S = 0.01  # more than an Opus decoder drops at the start
QUIET_RMS = 1e-3  # the source's noise is a hundred times louder

_SHOWN = re.compile(r"_showinfo.*? n: *\d+ .*?pts_time:(\S+) .*? sar:(\d+)/(\d+) s:(\d+)x(\d+)")
_PLAYED = re.compile(r"_ashowinfo.*? n:\d+ pts:(-?\d+) .*? rate:(\d+) nb_samples:(\d+)")


@dataclass
class Answer:
    """ffmpeg's answer.

    times_s, images `[N, 48, 64, 3]`: all pictures. shapes, stored: width over height as displayed, and in pixels.
    wave `[n]`: sound from 0 s.
    """

    times_s: list[float]
    images: Image
    shapes: list[float]
    stored: list[float]
    wave: Float
    said: str

    @property
    def gap_s(self) -> float:
        """The median time between two pictures."""
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
        """The share of a span that is not silent."""
        blocks = self.sound(start_s, seconds).reshape(-1, round(BLOCK_S * RATE_HZ))
        return float((np.sqrt((blocks**2).mean(axis=1)) > QUIET_RMS).mean())


def ask(case: Case, file: Path, scratch: Path) -> Answer:
    """Decode the whole file with the ffmpeg command; what it cannot decode is missing from the answer."""
    pictures, sound = scratch / "ffmpeg.rgb", scratch / "ffmpeg.f32"
    for old in (pictures, sound):
        old.unlink(missing_ok=True)
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-nostats", "-y", "-threads", "1", "-i", str(file)]
    if case.has_video:
        command += ["-an", "-sn", "-dn", "-vf", f"showinfo=checksum=0,scale={WIDTH}:{HEIGHT}:flags=area"]
        command += ["-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", str(pictures)]
    straight = STRAIGHT in case.traits
    if case.has_audio:
        line = f"aresample={RATE_HZ}:async={int(not straight)}:rematrix_maxval=1"
        command += ["-vn", "-sn", "-dn", "-af", f"{line},aformat=flt:channel_layouts=mono,ashowinfo"]
        command += ["-f", "f32le", str(sound)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    said = done.stderr.decode(errors="replace")
    seen = [match.groups() for match in _SHOWN.finditer(said)]
    images = np.fromfile(pictures, dtype=np.uint8) if pictures.exists() else np.zeros(0, dtype=np.uint8)
    images = images[: images.size // (WIDTH * HEIGHT * 3) * WIDTH * HEIGHT * 3].reshape(-1, HEIGHT, WIDTH, 3)
    times_s, kept, shapes, stored = [], [], [], []
    for n, (at, num, den, width, height) in enumerate(seen[: len(images)]):
        if times_s and float(at) < times_s[-1]:
            continue  # times that go back (joined files): the command drops such pictures too
        times_s.append(float(at))
        kept.append(n)
        pixel = int(num) / int(den) if int(num) and int(den) else 1.0
        stored.append(int(width) / int(height))
        shapes.append(stored[-1] * pixel)
    wave = np.fromfile(sound, dtype=np.float32) if sound.exists() else np.zeros(0, dtype=np.float32)
    line = _on_one_line(wave, said, straight=straight)
    early = _left_out(case, said)
    times_s = [time_s - early / RATE_HZ for time_s in times_s]
    return Answer(times_s, images[kept], shapes, stored, line[early:], said)


def _left_out(case: Case, said: str) -> int:
    """The number of samples by which ffmpeg starts a Matroska file with Opus before its first block."""
    if case.suffix not in ("mkv", "webm") or not any("libopus" in (part.audio or "") for part in case.parts):
        return 0
    begins = re.search(r"Duration: .*? start: -0\.(\d{3})", said) or re.search(r"start: 99\.(\d{3})", said)
    first = _PLAYED.search(said)
    early = int(first[1]) if begins and first else 0
    return early if early < LEFT_OUT_S * RATE_HZ else 0


def _on_one_line(wave: Float, said: str, *, straight: bool) -> Float:
    """The samples at ffmpeg's times, from 0 s on; of overlapping samples the earlier ones stay.

    straight: only the first time counts; the samples follow in sequence.
    """
    pieces = [tuple(map(int, match.groups())) for match in _PLAYED.finditer(said)]
    if straight:
        first = pieces[0][0] if pieces else 0
        return np.pad(wave, (first, 0)) if first > 0 else wave[-first:]
    line = np.zeros(max((pts + count for pts, _, count in pieces), default=0), dtype=np.float32)
    at = filled = 0
    for pts, _, count in pieces:
        piece = wave[at : at + count]
        at += count
        skip = max(filled - pts, 0)
        if skip < piece.size:
            line[pts + skip : pts + piece.size] = piece[skip:]
            filled = pts + piece.size
    return line
