"""The table of known differences between a decoder and the `ffmpeg` command, each with its reason.

A difference that is not here fails the test, and so does a line whose difference is gone. A line holds for clips (file
name and start) through some decoders, and for one kind of difference (`compare.KINDS`). Some differences are ffmpeg's
own and gone with another version: a line is held to be true only beside the version that the table was drawn up with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import compare
from differential import Row, ffmpeg_version

DRAWN_UP_WITH = 5
"""ffmpeg's major version when the table was drawn up."""


@dataclass(frozen=True)
class Known:
    """decoders: names, space between. clips: patterns (`*` is anything) of `FILE@START`, space between."""

    decoders: str
    kind: str
    clips: str
    why: str

    def fits(self, row: Row, kind: str) -> bool:
        """Whether this line explains that `row` differs in `kind`."""
        return kind == self.kind and self.covers(row)

    def covers(self, row: Row) -> bool:
        """Whether this line is about the clip; a refusal of one that is empty in ffmpeg is no difference."""
        clip = f"{row.case.file}@{row.start_s:g}"
        listed = row.decoder in self.decoders.split() and (row.real > 0 or self.kind != compare.REFUSED)
        return listed and any(fnmatchcase(clip, pattern) for pattern in self.clips.split())


KNOWN: tuple[Known, ...] = ()


def explained(row: Row, kind: str) -> str:
    """Why the row differs in `kind`; empty when nobody knows."""
    return next((known.why for known in KNOWN if known.fits(row, kind)), "")


def unexplained(row: Row) -> list[str]:
    """Kinds of difference that no line explains."""
    return [kind for kind in row.found if not explained(row, kind)]


def no_longer(rows: Iterable[Row]) -> list[str]:
    """Lines of the table that promise a difference where there is none: decoder, kind, clip."""
    version = ffmpeg_version()
    if version is None or version[0] != DRAWN_UP_WITH:
        return []
    return [
        f"{row.decoder}: {known.kind} of {row.case.file} from {row.start_s:g} s"
        for row in rows
        for known in KNOWN
        if known.covers(row) and known.kind not in row.found
    ]
