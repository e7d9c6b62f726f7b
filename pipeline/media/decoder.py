"""The steps all decoders share: read the container, read what is wanted, check the result.

A decoding library adds only `read`. Probing, limits, checks and notes are shared, so decoders differ only in speed and
in the files they get wrong.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from caeav.pipeline.media.audio import Audio
from caeav.pipeline.media.checks import checked_clip
from caeav.pipeline.media.clip import DecodedClip, DecodeError, Limits, Sampling
from caeav.pipeline.media.clock import walk_packets
from caeav.pipeline.media.frames import Frames
from caeav.pipeline.media.probe import MediaFacts, probe
from caeav.pipeline.media.scan import Plan, Scan, scan
from caeav.pipeline.media.stills import stills_folder, with_stills


class BaseDecoder(ABC):
    """A `Decoder` but for `name`, `version` and `read`."""

    name: str
    first_audio_only = False  # the library cannot be told which audio stream to read
    counts_from_start = (
        False  # the library counts frames and samples from the file's start: all before matters
    )
    follows_changes = False  # the library follows clocks, rates and palettes that change in mid-stream

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()

    @abstractmethod
    def read(self, plan: Plan) -> tuple[Frames | None, Audio | None]:
        """Frames and audio of the plan's streams; None for a stream the file does not have.

        Errors of the library do not leave this method: they are kept in the results' `errors`.
        """

    def lossy_audio(self, facts: MediaFacts) -> str:
        """The file's kind of audio if this library loses packets of it, else empty."""
        return ""

    def decode(self, path: str, start_s: float, sampling: Sampling) -> DecodedClip:
        """Decode one clip; raises `DecodeError`."""
        return self.decode_each(path, start_s, [sampling])[0]

    def decode_each(self, path: str, start_s: float, samplings: Sequence[Sampling]) -> list[DecodedClip]:
        """Decode one clip once, with audio at the rate of each sampling; the samplings differ in nothing else.

        A wav with images beside it (`stills.py`) is a clip too.
        """
        if start_s < 0:
            raise DecodeError(f"the clip starts at {start_s} s; the earliest possible start is 0 s")
        folder = stills_folder(path)
        if folder is not None:
            return with_stills(
                lambda: self._decode_file(path, start_s, samplings), folder, start_s, samplings, self.limits
            )
        return self._decode_file(path, start_s, samplings)

    def _decode_file(self, path: str, start_s: float, samplings: Sequence[Sampling]) -> list[DecodedClip]:
        sampling = samplings[0]
        facts = self._join_aware(probe(path, self.limits, first_audio=self.first_audio_only))
        if facts.is_over(start_s):
            raise DecodeError(f"the clip starts at {start_s:.3f} s but the media ends at {facts.end_s:.3f} s")
        first_s, whole = sampling.centres_s(start_s)[0], self.counts_from_start
        whole = whole or (facts.container == "avi" and not self.follows_changes)  # AVI: packets are counted
        promised = scan(facts, start_s, first_s, sampling.seconds, self.limits, from_start=whole)
        facts = self._supported(facts.without(promised.encrypted), promised, start_s + sampling.seconds)
        plan = Plan(facts, promised, start_s, sampling, self.limits)
        frames, audio = self.read(plan)
        plans = [replace(plan, sampling=each) for each in samplings]
        return [checked_clip(self.name, each, frames, audio) for each in plans]

    def _supported(self, facts: MediaFacts, promised: Scan, end_s: float) -> MediaFacts:
        """The facts, with streams marked that this library is known to get wrong; `end_s`: where the clip ends."""
        video, audio = facts.video, facts.audio
        if self.follows_changes:
            return facts
        walk = walk_packets(facts, self.limits)
        if promised.left_out or promised.moved or (walk is not None and walk.error and end_s > walk.end_s):
            what = (
                f"{Path(facts.path).name} is several files joined, or broken: {self.name} cannot tell where"
            )
            raise DecodeError(what, hint="use --decoder pyav")
        if video and video.carries_state:
            why = f"{self.name} loses its palette (--decoder pyav does not)"
            video = replace(video, decodable=False, why=why)
        if audio and (promised.rate_changes or promised.holes):
            what = "its sample rate changes" if promised.rate_changes else "there are holes in it"
            why = f"{what}, which {self.name} does not follow (--decoder pyav does)"
            audio = replace(audio, decodable=False, why=why)
        elif audio and self.lossy_audio(facts):
            why = f"{self.name} loses packets of {self.lossy_audio(facts)} (--decoder pyav does not)"
            audio = replace(audio, decodable=False, why=why)
        return replace(facts, video=video, audio=audio)

    def _join_aware(self, facts: MediaFacts) -> MediaFacts:
        """The facts; of a file whose clock starts anew, with the length that its packets give."""
        walk = walk_packets(facts, self.limits)
        if walk is None or walk.parts == 1:
            return facts
        if not self.follows_changes:
            what = (
                f"{Path(facts.path).name} is {walk.parts} files joined, its clock starts anew in the middle"
            )
            raise DecodeError(f"{what}: {self.name} cannot tell where", hint="use --decoder pyav")
        return replace(facts, duration_s=max(walk.end_s, facts.duration_s or 0.0), joined=True)
