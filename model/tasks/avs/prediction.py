"""AVS prediction: masks of what sounds, over the frames (AVSBench). Shapes: `T` frames, `H x W` pixels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from caeav.manifests.masks import pack_mask
from caeav.model.tasks.prediction import (
    TALLEST,
    Frames,
    Panel,
    SegmentTimes,
    TaskPrediction,
    draw_image,
    strip_panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EDGE = np.array([255, 255, 255], np.float32)
"""White stands out from dimmed grey and from any hue."""
DIMMED = 0.35
"""Brightness of the rest of a frame, in grey."""


@dataclass(frozen=True)
class Masks(TaskPrediction):
    """`probability` `[T, H, W]` that a pixel sounds; a mask is where it exceeds one half."""

    probability: NDArray[np.float32]

    @property
    def on(self) -> NDArray[np.bool_]:
        """The masks, bool `[T, H, W]`."""
        return self.probability > 0.5

    def headline(self, times: SegmentTimes) -> str:
        """How much of the picture sounds."""
        return f"{100 * float(self.on[: times.shown].mean()):.3g} % of the picture sounds"

    def rows(self, times: SegmentTimes) -> list[dict[str, Any]]:
        """A row per frame: how much of it sounds, and the highest probability."""
        return [
            {
                **times.segment_cells(t),
                "sounding %": 100 * float(self.on[t].mean()),
                "highest probability": float(self.probability[t].max()),
            }
            for t in range(times.shown)
        ]

    def as_json(self, times: SegmentTimes) -> dict[str, Any]:
        """Masks as 1-bit PNG in base64, as in a manifest."""
        return {
            "size": list(self.probability.shape[1:]),
            "frames": [
                {"start_s": times.bounds(t)[0], "sounding": float(mask.mean()), "mask": pack_mask(mask)}
                for t, mask in enumerate(self.on[: times.shown])
            ],
        }

    def panels(self, times: SegmentTimes, frames: Frames) -> list[Panel]:
        """Frames with the mask laid over them, above the probabilities."""
        shown = [self._overlay(t, frame) for t, frame in enumerate(frames)] if len(frames) else []
        tall, wide = self.on.shape[1:]
        height = min(0.93 * times.width_in / times.shown * tall / wide, TALLEST)
        return [*strip_panel(times, shown), Panel(height, lambda axis: self._draw(axis, times))]

    def files(self, times: SegmentTimes) -> dict[str, bytes]:
        """`mask-<segment>.png`, black and white, of the official size."""
        from PIL import Image

        files = {}
        for t, mask in enumerate(self.on[: times.shown]):
            data = io.BytesIO()
            Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(data, "PNG")
            files[f"mask-{t + 1}.png"] = data.getvalue()
        return files

    def _overlay(self, t: int, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A frame `[h, w, 3]`, in colour where it sounds, with a white edge, and dimmed elsewhere."""
        rows, columns = (
            np.arange(n) * size // n for n, size in zip(frame.shape[:2], self.on.shape[1:], strict=True)
        )
        mask = self.on[t][np.ix_(rows, columns)]
        width = max(1, min(mask.shape) // 80)
        inner = mask.copy()
        for axis in (0, 1):
            for step in (-width, width):
                inner &= np.roll(mask, step, axis)
        grey = DIMMED * frame.mean(axis=-1, keepdims=True)
        shown = np.where(inner[..., None], frame, np.where(mask[..., None], EDGE, grey))
        mixed: NDArray[np.uint8] = shown.astype(np.uint8)
        return mixed

    def _draw(self, axis: Axes, times: SegmentTimes) -> None:
        axis.set_ylim(0, 1)
        axis.set_yticks([])
        axis.set_ylabel("P(sounds), 0 is black")
        for t, probability in enumerate(self.probability[: times.shown]):
            draw_image(axis, times, t, probability, vmin=0, vmax=1, cmap="magma")
