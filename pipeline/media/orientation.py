"""How pictures are brought upright: the display matrix a container gives, as the `ffmpeg` command and players read it.

A matrix may turn, mirror and transpose; taken for a rotation, a mirrored film stands on its head.
Shapes: `H`x`W` pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.media.clip import Limits
from caeav.pipeline.media.probe import MediaFacts, opened

Image = NDArray[np.uint8]

WITH_MATRIX = ("mov", "matroska")  # containers that may give a matrix
FIRST_PACKETS = 200  # among these is a picture, in a file that can be decoded


@dataclass(frozen=True)
class Orientation:
    """How a picture is brought upright: transposed, then mirrored left to right, then top to bottom; as FFmpeg does."""

    transposed: bool = False
    left_right: bool = False
    top_bottom: bool = False
    askew_deg: int = 0

    @classmethod
    def of(cls, matrix: Sequence[int]) -> Orientation:
        """From a container's display matrix, nine numbers: point (x, y) is shown at (m0 x + m3 y, m1 x + m4 y).

        A matrix that asks for no right angle leaves the picture as it is; `askew_deg` says what it asks for.
        """
        right, down, below, under = matrix[0], matrix[1], matrix[3], matrix[4]
        if not (down or below) and right and under:
            return cls(False, right < 0, under < 0)
        if not (right or under) and down and below:
            return cls(True, below < 0, down < 0)
        return cls(askew_deg=round(math.degrees(math.atan2(down, right))) if right or down else 0)

    @property
    def mirrored(self) -> bool:
        """Whether left and right are exchanged, which no turning does."""
        return self.transposed ^ self.left_right ^ self.top_bottom

    @property
    def turned_deg(self) -> int:
        """How far the picture is turned counter-clockwise, if it is not mirrored."""
        if self.transposed:
            return -90 if self.left_right else 90
        return -180 if self.left_right else 0

    def applied(self, image: Image) -> Image:
        """`[H, W, 3]`, upright."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        if self.left_right:
            image = image[:, ::-1]
        if self.top_bottom:
            image = image[::-1]
        return np.ascontiguousarray(image)

    def after_turning(self, image: Image) -> Image:
        """The same for a picture that a library has turned, but not mirrored."""
        if not self.mirrored:
            return image
        return np.ascontiguousarray(image[:, ::-1] if self.transposed else image[::-1])


def orientation_of(frame: Any) -> Orientation:
    """What the container asks for a PyAV frame."""
    found = frame.side_data.get("DISPLAYMATRIX")
    return (
        Orientation() if found is None else Orientation.of(np.frombuffer(found, dtype=np.int32)[:9].tolist())
    )


def stored_orientation(facts: MediaFacts, limits: Limits) -> Orientation:
    """What the container asks for its pictures, from the first one that PyAV decodes; upright where none does.

    For decoders that turn pictures by themselves and do not say how they understood the matrix.
    """
    if facts.video is None or not any(name in facts.container.split(",") for name in WITH_MATRIX):
        return Orientation()
    with opened(facts.path, limits) as container:
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
