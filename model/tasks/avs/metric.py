"""The official AVSBench metrics: mean IoU (M_J) and F-measure (M_F) of masks (REFERENCE section 7).

M_F takes the best of 255 thresholds *after* averaging the curves of the frames in one call of the official function, so
the number of clips in a call is part of the protocol: one in the official test scripts, the default here. In M_J a
frame whose true mask is empty scores the fraction of pixels rightly left empty; M_F leaves such frames out, and is 0
for a call that has no others. Counts are exact, ratios float64; thresholding is in float32 as in the official code.
Shapes: `B` clips, `T` frames, `S` mask size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLDS = 255
BETA2 = 0.3
IOU_EPS = 1e-7
RATIO_EPS = 1e-20


def frame_iou(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Logits and masks (0/1) `[N, S, S]` -> IoU of `sigmoid > 0.5` `[N]`; of empty masks the fraction left empty."""
    predicted = (mask_logits.float().sigmoid() > 0.5).flatten(1)
    truth = masks.flatten(1) > 0
    intersection = (predicted & truth).sum(dim=1)
    union = (predicted | truth).sum(dim=1)
    both_empty = (~predicted & ~truth).sum(dim=1)
    empty = ~truth.any(dim=1)
    intersection = torch.where(empty, both_empty, intersection).double()
    return intersection / (torch.where(empty, truth.shape[1], union) + IOU_EPS)


def f_curves(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Logits and masks (0/1) `[N, S, S]` -> F-measure at every threshold `[N, 255]`.

    One histogram of pixels over thresholds instead of 255 passes over the frame; 0 where precision and recall are 0.
    """
    frames = mask_logits.shape[0]
    probability = mask_logits.float().sigmoid().flatten(1)
    thresholds = torch.linspace(
        0, 1 - 1e-10, THRESHOLDS, device=probability.device
    )  # float32: the last one is 1
    bins = torch.bucketize(probability, thresholds, right=True)  # how many thresholds a pixel reaches, 0..255
    truth = masks.flatten(1) > 0
    slots = 2 * (THRESHOLDS + 1)
    flat = bins + (THRESHOLDS + 1) * truth + slots * torch.arange(frames, device=bins.device).unsqueeze(1)
    counts = torch.bincount(flat.flatten(), minlength=frames * slots).view(frames, 2, THRESHOLDS + 1)
    reached = counts.flip(-1).cumsum(dim=-1).flip(-1)[..., 1:].double()  # pixels at or above each threshold
    hits = reached[:, 1]
    precision = hits / (reached.sum(dim=1) + RATIO_EPS)
    recall = hits / (truth.sum(dim=1, keepdim=True) + RATIO_EPS)
    return ((1 + BETA2) * precision * recall / (BETA2 * precision + recall)).nan_to_num(nan=0.0)


def measure(mask_logits: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Of a clip's frames `[T, S, S]`, on the CPU: `iou` `[T]`, `curves` `[T, 255]`, `empty` `[T]`, whether the true
    mask is."""
    return {
        "iou": frame_iou(mask_logits, masks).cpu(),
        "curves": f_curves(mask_logits, masks).cpu(),
        "empty": ~(masks.flatten(1) > 0).any(dim=1).cpu(),
    }


def best_f(curves: Tensor, empty: Tensor) -> float:
    """M_F of the frames of one call, from their curves `[N, 255]` and which true masks are empty `[N]`."""
    seen = curves[~empty]
    return float(seen.mean(dim=0).max()) if len(seen) else 0.0


@dataclass(frozen=True)
class AvsScore:
    """`mean_iou`, `f_measure` in 0..1, means over calls; `calls` `[calls, 2]`: both per call, for intervals.

    A smaller last call weighs as much as any other, as in the official code. `empty_frames`: frames whose true mask is
    empty.
    """

    mean_iou: float
    f_measure: float
    calls: Tensor
    clips_per_call: int
    frames: int
    empty_frames: int


class AvsMetric:
    """Collects clips; calls are formed of clips in order, whatever their batches."""

    def __init__(self, clips_per_call: int = 1) -> None:
        self.clips_per_call = clips_per_call
        self._iou: list[Tensor] = []
        self._curves: list[Tensor] = []
        self._empty: list[Tensor] = []

    def update(self, mask_logits: Tensor, masks: Tensor) -> None:
        """One batch: logits and masks (0/1) `[B, T, S, S]`."""
        for logits, truth in zip(mask_logits, masks, strict=True):
            self.take(**measure(logits, truth))

    def take(self, iou: Tensor, curves: Tensor, empty: Tensor) -> None:
        """One clip, as measured."""
        self._iou.append(iou)
        self._curves.append(curves)
        self._empty.append(empty)

    def compute(self) -> AvsScore:
        """The score of all batches so far; raises ValueError before the first one."""
        if not self._iou:
            raise ValueError("no clip was scored: call update() first")
        starts = range(0, len(self._iou), self.clips_per_call)
        calls = torch.tensor([self._call(start) for start in starts], dtype=torch.float64)
        empty = torch.cat(self._empty)
        mean_iou, f_measure = calls.mean(dim=0).tolist()
        return AvsScore(mean_iou, f_measure, calls, self.clips_per_call, empty.numel(), int(empty.sum()))

    def _call(self, start: int) -> tuple[float, float]:
        clips = slice(start, start + self.clips_per_call)
        iou = torch.cat(self._iou[clips]).mean()
        return float(iou), best_f(torch.cat(self._curves[clips]), torch.cat(self._empty[clips]))
