"""One clip to read, with everything known about it before a decoder touches it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caeav.pipeline.decode.limits import Limits
from caeav.pipeline.decode.media import Sampling
from caeav.pipeline.decode.probe import MediaFacts
from caeav.pipeline.decode.scan import Scan


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
        if not self.scan.at_end or not self.scan.video_s:
            return None
        return max(self.scan.video_s[-1] + self.frame_gap_s, self.scan.video_end_s or 0.0)
