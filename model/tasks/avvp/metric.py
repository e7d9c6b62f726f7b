"""The official LLP metric: F-scores of audio, visual and audio-visual events (REFERENCE section 7).

Two levels: segments (every second counts) and events (maximal runs, found again if IoU reaches one half). A clip's
F-score is the mean over the classes that occur in prediction or truth, 1 if none does, and the data set's is the mean
over clips. "Event" pools the counts of both modalities per class, "type" averages the three F-scores. All counting is
in exact integers. Shapes: `N` clips, `K` classes, `T` seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from caeav.model.tasks.avvp.config import THRESHOLD
from caeav.model.tasks.avvp.head import AvvpOutput

AUDIO, VISUAL, POOLED, BOTH = range(4)


def run_bounds(active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bool tracks `[..., T]` -> where runs begin (bool), and there the first and last second of the run."""
    length = active.shape[-1]
    time = torch.arange(length, device=active.device).expand(active.shape)
    before = F.pad(active, (1, 0))[..., :-1]
    pauses = torch.where(active, length, time)  # the next inactive second, or the end of the track
    ends = pauses.flip(-1).cummin(dim=-1).values.flip(-1) - 1
    return active & ~before, time, ends


def run_hits(predicted: Tensor, truth: Tensor) -> Tensor:
    """Bool tracks `[..., T]` twice -> counts `[..., 3]` of hits, false alarms and misses over runs.

    A predicted run is a hit if its intersection over union with some true run is at least one half, else a false alarm;
    a true run without such a predicted run is a miss. Runs of one track do not touch, so at one half no run can match
    two others, and that the official code does not match one to one makes no difference.
    """
    begins, first, last = (x.unsqueeze(-1) for x in run_bounds(predicted))  # [..., T, 1]
    true_begins, true_first, true_last = (x.unsqueeze(-2) for x in run_bounds(truth))  # [..., 1, T]
    shared = (torch.minimum(last, true_last) - torch.maximum(first, true_first) + 1).clamp(min=0)
    union = (last - first + 1) + (true_last - true_first + 1) - shared
    reached = begins & true_begins & (2 * shared >= union)  # in whole seconds: a tie is a tie
    hits = reached.any(dim=-1).sum(dim=-1)
    false_alarms = begins.squeeze(-1).sum(dim=-1) - hits
    misses = true_begins.squeeze(-2).sum(dim=-1) - reached.any(dim=-2).sum(dim=-1)
    return torch.stack([hits, false_alarms, misses], dim=-1)


def predict_tracks(output: AvvpOutput, threshold: float = THRESHOLD) -> tuple[Tensor, Tensor]:
    """Bool audio and visual tracks `[B, K, T]`: both frame and clip probability reach the threshold.

    As in the official code, `clip_prob` gates both modalities.
    """
    clip = output.clip_prob.unsqueeze(-1) >= threshold  # [B, K, 1]

    def tracks(frames: Tensor) -> Tensor:
        return (frames.transpose(1, 2) >= threshold) & clip

    return tracks(output.audio_frame_prob), tracks(output.visual_frame_prob)


def segment_counts(predicted: Tensor, truth: Tensor) -> Tensor:
    """Bool tracks `[..., T]` twice -> counts `[..., 3]` of hits, false alarms and misses over seconds."""
    pairs = (predicted & truth, predicted & ~truth, truth & ~predicted)
    return torch.stack([pair.sum(dim=-1) for pair in pairs], dim=-1)


def f_scores(counts: Tensor) -> Tensor:
    """Counts `[..., 3]` -> `2 TP / (2 TP + FP + FN)` in float64, NaN where all three are zero."""
    hits, false_alarms, misses = counts.double().unbind(dim=-1)
    return 2 * hits / (2 * hits + false_alarms + misses)


def clip_f(counts: Tensor) -> Tensor:
    """Counts per class `[..., K, 3]` -> the clip's F-score `[...]`, 1 if no class occurs."""
    scores = f_scores(counts).nanmean(dim=-1)
    return torch.where(scores.isnan(), 1.0, scores)


def level_counts(audio: tuple[Tensor, Tensor], visual: tuple[Tensor, Tensor], *, events: bool) -> Tensor:
    """Tracks (predicted, truth) of both modalities `[N, K, T]` -> counts `[N, 4, K, 3]`: A, V, pooled, AV."""
    count = run_hits if events else segment_counts
    both = (audio[0] & visual[0], audio[1] & visual[1])
    a, v, av = count(*audio), count(*visual), count(*both)
    return torch.stack([a, v, a + v, av], dim=1)


def track_counts(predicted_audio: Tensor, predicted_visual: Tensor, audio: Tensor, visual: Tensor) -> Tensor:
    """Bool tracks, all `[B, K, T]` -> counts of both levels `[2, B, 4, K, 3]`, on the CPU."""
    pairs = (predicted_audio.cpu(), audio.cpu()), (predicted_visual.cpu(), visual.cpu())
    return torch.stack([level_counts(*pairs, events=events) for events in (False, True)])


@dataclass(frozen=True, slots=True)
class LevelScore:
    """Percent. `type_av`: mean of `audio`, `visual` and `audio_visual`; `event_av`: from pooled counts."""

    audio: float
    visual: float
    audio_visual: float
    type_av: float
    event_av: float


@dataclass(frozen=True)
class AvvpScore:
    """Both levels over `clips` clips.

    `per_clip` `[2, N, 4]`: segment and event level, F of A, V, pooled and AV in 0..1, for intervals. `per_class`
    `[2, 4, K]`: F of counts pooled over clips (ours, not official), NaN for a class that never occurs.
    """

    segment: LevelScore
    event: LevelScore
    per_clip: Tensor
    per_class: Tensor
    clips: int


class AvvpMetric:
    """Collects clips; the result does not depend on how they are split into batches."""

    def __init__(self, classes: int, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold
        self._clips: list[Tensor] = []
        self._counts = torch.zeros(2, 4, classes, 3, dtype=torch.int64)

    def update(self, output: AvvpOutput, audio: Tensor, visual: Tensor) -> None:
        """One batch: the head's output, truth `[B, T, K]` of both modalities in 0/1."""
        self.take(self.measure(output, audio, visual))

    def measure(self, output: AvvpOutput, audio: Tensor, visual: Tensor) -> Tensor:
        """Counts `[2, B, 4, K, 3]` of a batch, see `update`."""
        return track_counts(
            *predict_tracks(output, self.threshold), audio.transpose(1, 2) > 0, visual.transpose(1, 2) > 0
        )

    def update_tracks(
        self, predicted_audio: Tensor, predicted_visual: Tensor, audio: Tensor, visual: Tensor
    ) -> None:
        """One batch of bool tracks, all `[B, K, T]`."""
        self.take(track_counts(predicted_audio, predicted_visual, audio, visual))

    def take(self, counts: Tensor) -> None:
        """One batch, as measured."""
        self._clips.append(clip_f(counts))  # [2, B, 4]
        self._counts += counts.sum(dim=1)

    def compute(self) -> AvvpScore:
        """The score of all batches so far; raises ValueError before the first one."""
        if not self._clips:
            raise ValueError("no clip was scored: call update() first")
        per_clip = torch.cat(self._clips, dim=1)
        segment, event = (_level(level) for level in 100 * per_clip.mean(dim=1))
        return AvvpScore(segment, event, per_clip, f_scores(self._counts), per_clip.shape[1])


def clip_scores(level: Tensor) -> dict[str, Tensor]:
    """F of A, V, pooled and AV of one level `[..., 4]` -> the five scores of a `LevelScore`, each `[...]`."""
    audio, visual, both = (level[..., i] for i in (AUDIO, VISUAL, BOTH))
    return {
        "audio": audio,
        "visual": visual,
        "audio_visual": both,
        "type_av": (audio + visual + both) / 3,
        "event_av": level[..., POOLED],
    }


def _level(means: Tensor) -> LevelScore:
    return LevelScore(**{name: float(x) for name, x in clip_scores(means).items()})
