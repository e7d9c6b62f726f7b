"""The differential test: make a case, decode it with ffmpeg and each decoder, compare. For tests and the benchmark."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from child import Child
from compare import differences, real_segments
from making import Case, NotMade, make
from oracle import ask

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media.registry import decoders

DECODERS = ("pyav", "decord", "torchcodec")
OLDEST = (5, 1)  # the first ffmpeg with the options used here


@dataclass(frozen=True)
class Row:
    """One clip decoded by one decoder, and its differences (kind -> sentence)."""

    case: Case
    start_s: float
    decoder: str
    found: dict[str, str]
    real: int = 1  # segments in which ffmpeg shows or plays something


@cache
def ffmpeg_version() -> tuple[int, int] | None:
    """Major and minor version of the ffmpeg command; None without it, (0, 0) when it is unknown."""
    if shutil.which("ffmpeg") is None:
        return None
    said = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, timeout=60).stdout
    version = re.match(r"ffmpeg version n?(\d+)\.(\d+)", said)
    return (int(version[1]), int(version[2])) if version else (0, 0)


def no_ffmpeg() -> str:
    """Why this machine cannot run the test; empty if it can."""
    version = ffmpeg_version()
    if version is None:
        return "no ffmpeg command here"
    if (0, 0) < version < OLDEST:
        return f"ffmpeg {version[0]}.{version[1]} is older than {OLDEST[0]}.{OLDEST[1]}"
    return ""


def loads(decoder: str) -> bool:
    """Whether a decoder's library is installed and loads."""
    try:
        decoders[decoder]().version()
    except CaeavError:
        return False
    return True


def compared(
    cases: Iterable[Case], names: Sequence[str], folder: Path, *, keep: bool = False
) -> Iterator[Row | str]:
    """A row per case, decoder and start; a text for a case that this ffmpeg cannot write."""
    with ExitStack() as stack:
        children = [stack.enter_context(Child(name)) for name in names]
        for case in cases:
            try:
                file = make(case, folder)
            except NotMade as error:
                yield f"{case.file} is not made: {error}"
                continue
            answer = ask(case, file, folder)
            for child in children:
                for start_s in case.starts_s:
                    ours = child.decode(file, start_s)
                    found = differences(case, start_s, answer, ours)
                    yield Row(case, start_s, child.decoder, found, real_segments(case, start_s, answer))
            if not keep:
                file.unlink()
