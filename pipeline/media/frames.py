"""The frames shown at given times, upright: put in display order, turned and mirrored as the container asks.

The frame shown at a time is the last one whose time stamp is not after it. Shapes: `H`x`W` pixels.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.media.clip import Limits
from caeav.pipeline.media.probe import MediaFacts, open_media

Image = NDArray[np.uint8]

WITH_MATRIX = ("mov", "matroska")  # containers that may give a display matrix
FIRST_PACKETS = 200  # any file that can be decoded gives a frame within these
LOOKAHEAD = 2  # frames held back to order their stamps: packed B-frames of old AVI files come one off


@dataclass(frozen=True)
class Orientation:
    """How a frame is brought upright, as FFmpeg does: transposed, then mirrored left to right, then top to bottom.

    A display matrix may turn, mirror and transpose: taken for a mere rotation it puts a mirrored film on its head.
    """

    transposed: bool = False
    left_right: bool = False
    top_bottom: bool = False
    askew_deg: int = 0

    @classmethod
    def of(cls, matrix: Sequence[int]) -> Orientation:
        """From a container's display matrix of nine numbers: point (x, y) is shown at (m0 x + m3 y, m1 x + m4 y).

        A matrix that asks for anything but a right angle leaves the frame as it is; `askew_deg` is what it asks for.
        """
        right, down, below, under = matrix[0], matrix[1], matrix[3], matrix[4]
        if not (down or below) and right and under:
            return cls(False, right < 0, under < 0)
        if not (right or under) and down and below:
            return cls(True, below < 0, down < 0)
        return cls(askew_deg=round(math.degrees(math.atan2(down, right))) if right or down else 0)

    @property
    def mirrored(self) -> bool:
        """Whether left and right are swapped, which no rotation does."""
        return self.transposed ^ self.left_right ^ self.top_bottom

    @property
    def turned_deg(self) -> int:
        """How far the frame is turned counter-clockwise, if it is not mirrored."""
        if self.transposed:
            return -90 if self.left_right else 90
        return -180 if self.left_right else 0

    def apply(self, image: Image) -> Image:
        """`[H, W, 3]` upright."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        if self.left_right:
            image = image[:, ::-1]
        if self.top_bottom:
            image = image[::-1]
        return np.ascontiguousarray(image)

    def after_turning(self, image: Image) -> Image:
        """The same for a frame that a library has turned but not mirrored."""
        if not self.mirrored:
            return image
        return np.ascontiguousarray(image[:, ::-1] if self.transposed else image[::-1])


def orientation_of(frame: Any) -> Orientation:
    """What the container asks for a PyAV frame."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    return Orientation.of(np.frombuffer(matrix, dtype=np.int32)[:9].tolist())


def stored_orientation(facts: MediaFacts, limits: Limits) -> Orientation:
    """What the container asks for, by the first frame that PyAV decodes; upright where none does.

    For decoders that turn frames themselves and do not say how they read the matrix.
    """
    if facts.video is None or not any(name in facts.container.split(",") for name in WITH_MATRIX):
        return Orientation()
    with open_media(facts.path, limits) as container:
        stream = container.streams[facts.video.index]
        stream.codec_context.thread_count = 1
        for count, packet in enumerate(container.demux(stream)):
            try:
                for frame in packet.decode():
                    return orientation_of(frame)
            except (av.FFmpegError, ValueError):
                pass
            if count >= FIRST_PACKETS:
                break
    return Orientation()


@dataclass
class Frames:
    """What a decoder found for the `T` wanted times, in media time.

    images: upright RGB `[H, W, 3]`, None where nothing decoded. shown_s: time stamp of each. until_s: when the next
    decoded frame replaces it; None where none did. decoded: frames decoded to get there. concealed: frames that the
    decoder itself marks as damaged. rotated_deg: how far frames were turned counter-clockwise to stand upright;
    mirrored: whether they were mirrored too; askew_deg: an angle that was asked for but is no right angle.
    resized: frames scaled to the first one's size. tolerance_gaps: how far a stamp may be from its packet's, in usual
    gaps between frames.
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
    tolerance_gaps: float = 1.5

    @classmethod
    def none(cls, segments: int) -> Frames:
        """Nothing found."""
        return cls([None] * segments, [None] * segments, [None] * segments)

    def fill(
        self,
        read: Callable[[list[int]], None],
        failures: tuple[type[Exception], ...],
        message: Callable[[Exception], str],
    ) -> None:
        """Let `read` fill all segments at once, and each by itself if that fails; what stays missing is noted later."""
        segments = list(range(len(self.images)))
        try:
            read(segments)
        except failures as error:
            self.errors.append(message(error))
            for t in segments:
                with suppress(*failures):
                    read([t])

    def record_orientation(self, orientation: Orientation) -> None:
        """Keep how frames were brought upright."""
        self.rotated_deg, self.mirrored = orientation.turned_deg, orientation.mirrored
        self.askew_deg = orientation.askew_deg


def fill_holes(images: list[Image | None]) -> list[Image]:
    """Every hole filled by the frame before it (at the start: after it); empty when there is no frame at all."""
    real = [image for image in images if image is not None]
    if not real:
        return []
    filled, last = [], real[0]
    for image in images:
        last = last if image is None else image
        filled.append(last)
    return filled


class DisplayOrder:
    """Gives frames their times in display order: stamps are sorted, missing ones invented."""

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
