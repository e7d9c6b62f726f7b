"""The table of known differences between a decoder and the `ffmpeg` command, each with its reason.

A difference that is not here fails the test, and so does a line whose difference is gone. A line holds for clips (file
name and start) through some decoders, and for one kind of difference (`compare.KINDS`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from differential import Row


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
        """Whether this line says anything about the clip; of one that is empty in ffmpeg none does."""
        clip = f"{row.case.file}@{row.start_s:g}"
        listed = row.decoder in self.decoders.split() and row.real > 0
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
    return [
        f"{row.decoder}: {known.kind} of {row.case.file} from {row.start_s:g} s"
        for row in rows
        for known in KNOWN
        if known.covers(row) and known.kind not in row.found
    ]
