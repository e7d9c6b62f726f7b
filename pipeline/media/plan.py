"""One clip to read, with everything known about it before a decoder touches it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caeav.pipeline.media.clip import Limits, Sampling
from caeav.pipeline.media.probe import MediaFacts
from caeav.pipeline.media.scan import Scan


@dataclass(frozen=True)
class Plan:
    """One clip to read: the file's facts, its packets' promises, and the wanted media times."""

    facts: MediaFacts
    scan: Scan
    start_s: float
    sampling: Sampling
    limits: Limits

    @property
    def end_s(self) -> float:
        """Media time at which the clip ends."""
        return self.start_s + self.sampling.seconds

    @property
    def wanted_s(self) -> list[float]:
        """Media times of the wanted pictures, ascending."""
        return self.sampling.centres_s(self.start_s)

    @property
    def frame_gap_s(self) -> float:
        """Usual time between two pictures."""
        if len(self.scan.video_s) > 1:
            return float(np.median(self.scan.gaps_s))
        return 1.0 / self.facts.video.fps if self.facts.video and self.facts.video.fps else 0.04

    @property
    def video_end_s(self) -> float | None:
        """Media time at which the last picture stops being shown; None while the clip ends before it."""
        if not self.scan.video_over or not self.scan.video_s:
            return None
        return max(self.scan.video_s[-1] + self.frame_gap_s, self.scan.video_end_s or 0.0)

    def shown_until_s(self, shown_s: float) -> float:
        """When the last picture of a stream, with stamp `shown_s`, stops being shown.

        As long as its packet says, and at least for the usual gap.
        """
        last = self.scan.video_s and abs(shown_s - self.scan.video_s[-1]) < self.frame_gap_s / 2
        said_s = self.scan.video_end_s if last else None
        return max(shown_s + self.frame_gap_s, said_s or 0.0)

    def is_stale(self, time_s: float, shown_s: float, until_s: float | None) -> bool:
        """Whether a picture is the stream's last and over at `time_s`; `until_s`: when another one took its place."""
        goes_on = until_s is not None or self.scan.next_s(shown_s) is not None
        return not goes_on and time_s >= self.shown_until_s(shown_s)
