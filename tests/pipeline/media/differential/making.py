"""Writes the media of the differential test with the `ffmpeg` command: one small file per case.

A `Case` says what is encoded from the known source (`truth.py`), how it is put into its container, and what is done
to the file afterwards: cut off, joined, patched. The same case and ffmpeg give the same file.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from truth import HEIGHT, RATE_HZ, WIDTH, write_sources

QUIET = ("ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-threads", "1")
SECONDS = 9.0
FPS = "7"  # a segment's centre is never the time of a picture


class NotMade(Exception):
    """This ffmpeg cannot write the case, for example without an encoder; the text says why."""


@dataclass(frozen=True)
class Part:
    """One encoding of the source from `from_s` on.

    video, audio: ffmpeg's encoder options, None for no such stream. vf, af: filters before encoding. before_video,
    before_audio: input options such as `-itsoffset`. out: further output options.
    """

    video: str | None
    audio: str | None
    fps: str = FPS
    seconds: float = SECONDS
    video_s: float | None = None
    audio_s: float | None = None
    from_s: float = 0.0
    vf: str = ""
    af: str = ""
    size: str = ""
    before_video: str = ""
    before_audio: str = ""
    out: str = ""
    suffix: str = ""  # of the part's own file, if another muxer is needed


@dataclass(frozen=True)
class Case:
    """One file: its parts, what is done with their bytes, and where the decoded clips start.

    traits: what is special about it; the pairwise sample covers them. damaged: whether content is lost, so that a note
    must say so. starts_s: where the decoded clips begin. real: whether anything can be decoded (False: encrypted).
    """

    name: str
    suffix: str
    parts: tuple[Part, ...]
    traits: tuple[str, ...] = ()
    starts_s: tuple[float, ...] = (0.0, 6.25)
    damaged: bool = False
    change: Callable[[list[bytes]], bytes] | None = field(default=None, compare=False)
    remux: str = ""
    turn: int = 0
    real: bool = True

    @property
    def has_video(self) -> bool:
        return self.parts[0].video is not None

    @property
    def has_audio(self) -> bool:
        return self.parts[0].audio is not None

    def number_at(self, time_s: float) -> int:
        """The number that an undamaged single-part file shows at a time."""
        above, _, below = self.parts[0].fps.partition("/")
        return int(time_s * float(above) / float(below or 1))

    @property
    def file(self) -> str:
        return f"{self.name}.{self.suffix}"

    @property
    def values(self) -> tuple[str, ...]:
        """What the pairwise sample combines: container, codecs, traits."""
        codecs = [
            f"{kind}:{said.split()[0]}"
            for kind, said in (("v", self.parts[0].video), ("a", self.parts[0].audio))
            if said
        ]
        return (self.suffix, *codecs, *self.traits)


def _run(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise NotMade(" | ".join(done.stderr.strip().splitlines()[:2]) or f"exit status {done.returncode}")


def _encode(part: Part, sources: Path, to: Path) -> None:
    arguments: list[str] = [*QUIET]
    video_s = part.seconds if part.video_s is None else part.video_s
    audio_s = part.seconds if part.audio_s is None else part.audio_s
    if part.video is not None:
        arguments += [
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{WIDTH}x{HEIGHT}",
            "-framerate",
            part.fps,
        ]
        arguments += ["-ss", str(part.from_s), "-t", str(video_s), *part.before_video.split()]
        arguments += ["-i", str(sources / "pictures.rgb")]
    if part.audio is not None:
        arguments += ["-f", "f32le", "-ar", str(RATE_HZ), "-ac", "1", "-ss", str(part.from_s)]
        arguments += ["-t", str(audio_s), *part.before_audio.split(), "-i", str(sources / "noise.f32")]
    if part.video is not None:
        filters = ",".join(f for f in (part.vf, part.size and f"scale={part.size}:flags=neighbor") if f)
        if filters:
            arguments += ["-vf", filters]
        arguments += ["-c:v", *part.video.split()]
    if part.audio is not None:
        if part.af:
            arguments += ["-af", part.af]
        arguments += ["-c:a", *part.audio.split()]
    _run([*arguments, "-threads", "1", *part.out.split(), str(to)])


def make(case: Case, folder: Path) -> Path:
    """Write the case's file into `folder`, beside its sources; raises `NotMade`."""
    if not (folder / "noise.f32").exists():
        write_sources(folder)
    target = folder / case.file
    pieces = []
    for n, part in enumerate(case.parts):
        # a file that is changed or remuxed afterwards is first written under another name
        plain = len(case.parts) == 1 and not case.remux and case.change is None
        piece = target if plain else folder / f"part{n}-{case.name}.{part.suffix or case.suffix}"
        _encode(part, folder, piece)
        pieces.append(piece)
    if case.remux:
        again = folder / f"again-{case.file}"
        inputs = [word for piece in pieces for word in ("-i", str(piece))]
        before, _, after = case.remux.rpartition("|")
        _run([*QUIET, *before.split(), *inputs, *after.split(), str(again)])
        for piece in pieces:
            piece.unlink()
        pieces = [again]
    if pieces != [target]:
        contents = [piece.read_bytes() for piece in pieces]
        target.write_bytes(case.change(contents) if case.change else b"".join(contents))
        for piece in pieces:
            piece.unlink()
    return target
