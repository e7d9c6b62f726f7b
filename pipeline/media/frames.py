"""The pictures shown at given times: chosen in display order, turned and mirrored upright, whatever stamps they carry.

The picture shown at a time is the last one with a stamp not after it.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from caeav.pipeline.media.orientation import Image, Orientation

LOOKAHEAD = 2  # frames whose stamps are put in order: packed B-frames of old AVI files come one off


@dataclass
class Pictures:
    """What a decoder found for the `T` wanted times, in media time.

    images: upright RGB `[H, W, 3]` or None where nothing decoded. shown_s: stamp of each. until_s: when the next
    picture that decoded takes its place; None where none did. decoded: pictures decoded to get there.
    off_gaps: how far a stamp may be from the one its packet has, in usual gaps between pictures.
    concealed: pictures the decoder itself marks as damaged. rotated_deg: how far pictures were turned,
    counter-clockwise, to stand upright; mirrored: whether they were mirrored, too. askew_deg: what was asked for,
    but is no right angle.
    """

    images: list[Image | None]
    shown_s: list[float | None]
    until_s: list[float | None]
    decoded: int = 0
    concealed: int = 0
    errors: list[str] = field(default_factory=list)
    rotated_deg: int = 0
    mirrored: bool = False
    askew_deg: int = 0
    resized: int = 0
    off_gaps: float = 1.5

    @classmethod
    def none(cls, segments: int) -> Pictures:
        """Nothing found yet."""
        return cls([None] * segments, [None] * segments, [None] * segments)

    def said(self, orientation: Orientation) -> None:
        """Remember what was done to a picture."""
        self.rotated_deg, self.mirrored = orientation.turned_deg, orientation.mirrored
        self.askew_deg = orientation.askew_deg


class DisplayOrder:
    """Gives frames their times in display order: sorted stamps, invented ones where stamps are missing."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._frames: deque[Any] = deque()
        self._stamps: list[float] = []
        self._newest_s: float | None = None
        self._last_s = -float("inf")

    def push(self, frame: Any, time_s: float | None) -> list[tuple[float, Any]]:
        """Add the next frame; returns the frames whose times are now certain."""
        if time_s is None:
            time_s = 0.0 if self._newest_s is None else self._newest_s + self._step_s
        self._newest_s = time_s
        self._frames.append(frame)
        heapq.heappush(self._stamps, time_s)
        return self._pop(LOOKAHEAD)

    def flush(self) -> list[tuple[float, Any]]:
        """The frames still held."""
        return self._pop(0)

    def _pop(self, keep: int) -> list[tuple[float, Any]]:
        ready = []
        while len(self._frames) > keep:
            self._last_s = max(self._last_s, heapq.heappop(self._stamps))
            ready.append((self._last_s, self._frames.popleft()))
        return ready
