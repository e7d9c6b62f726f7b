"""What every decoder does alike: look at the file first, read what is wanted, check what came.

A decoding library adds only `read`; probing, promises, limits, checks and notes are shared, so decoders
differ in nothing a user would notice but speed and the traps they fall into.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from caeav.pipeline.media.audio import Sound
from caeav.pipeline.media.checks import verified
from caeav.pipeline.media.clip import DecodedClip, DecodeError, Limits, Sampling
from caeav.pipeline.media.clock import walked
from caeav.pipeline.media.frames import Pictures
from caeav.pipeline.media.plan import Plan
from caeav.pipeline.media.probe import MediaFacts, probe
from caeav.pipeline.media.scan import Scan, scan
from caeav.pipeline.media.stills import stills_of, with_stills


class BaseDecoder(ABC):
    """A `Decoder` but for `name`, `version` and `read`."""

    name: str
    first_audio_only = False  # the library cannot be told which audio stream to read
    counts_from_start = (
        False  # the library counts pictures and samples from the start, so what lies before counts, too
    )
    follows_changes = False  # the library follows clocks, rates and palettes that change in mid-stream

    def mishears(self, facts: MediaFacts) -> str:
        """Of which kind of sound, if the file's is of one, this library loses packets; empty for others."""
        return ""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()

    @abstractmethod
    def read(self, plan: Plan) -> tuple[Pictures | None, Sound | None]:
        """Pictures and sound of the plan's streams; None for a stream the file does not have.

        Library errors do not leave this method: they are kept in the results' `errors`.
        """

    def decode(self, path: str, start_s: float, sampling: Sampling) -> DecodedClip:
        """Decode one clip; raises `DecodeError`."""
        return self.decode_each(path, start_s, [sampling])[0]

    def decode_each(self, path: str, start_s: float, samplings: Sequence[Sampling]) -> list[DecodedClip]:
        """Decode one clip once, its sound at the rate of each sampling; they differ in nothing else.

        A wav with pictures beside it (`stills.py`) is a clip too.
        """
        if start_s < 0:
            raise DecodeError(f"the clip starts at {start_s} s; the earliest possible start is 0 s")
        folder = stills_of(path)
        if folder is not None:
            return with_stills(
                lambda: self._file(path, start_s, samplings), folder, start_s, samplings, self.limits
            )
        return self._file(path, start_s, samplings)

    def _file(self, path: str, start_s: float, samplings: Sequence[Sampling]) -> list[DecodedClip]:
        sampling = samplings[0]
        facts = self._straight(probe(path, self.limits, first_audio=self.first_audio_only))
        if facts.is_over(start_s):
            raise DecodeError(f"the clip starts at {start_s:.3f} s but the media ends at {facts.end_s:.3f} s")
        first_s, whole = sampling.centres_s(start_s)[0], self.counts_from_start
        whole = whole or (facts.container == "avi" and not self.follows_changes)  # what lies before counts
        promised = scan(facts, start_s, first_s, sampling.seconds, self.limits, from_start=whole)
        facts = self._able(facts.without(promised.encrypted), promised, start_s + sampling.seconds)
        plan = Plan(facts, promised, start_s, sampling, self.limits)
        pictures, sound = self.read(plan)
        plans = [replace(plan, sampling=each) for each in samplings]
        return [verified(self.name, each, pictures, sound) for each in plans]

    def _able(self, facts: MediaFacts, promised: Scan, end_s: float) -> MediaFacts:
        """The facts, streams marked that this library is known to get wrong; `end_s`: where the clip ends."""
        video, audio = facts.video, facts.audio
        if self.follows_changes:
            return facts
        walk = walked(facts, self.limits)
        if promised.left_out or promised.moved or (walk is not None and walk.error and end_s > walk.end_s):
            what = (
                f"{Path(facts.path).name} is several files joined, or broken: {self.name} cannot tell where"
            )
            raise DecodeError(what, hint="use --decoder pyav")
        if video and video.carries_state:
            video = replace(
                video, decodable=False, why=f"{self.name} loses its palette (--decoder pyav does not)"
            )
        if audio and (promised.rate_changes or promised.holes):
            what = "its sample rate changes" if promised.rate_changes else "there are holes in it"
            why = f"{what}, which {self.name} does not follow (--decoder pyav does)"
            audio = replace(audio, decodable=False, why=why)
        elif audio and self.mishears(facts):
            why = f"{self.name} loses packets of {self.mishears(facts)} (--decoder pyav does not)"
            audio = replace(audio, decodable=False, why=why)
        return replace(facts, video=video, audio=audio)

    def _straight(self, facts: MediaFacts) -> MediaFacts:
        """The facts of a file whose clock starts anew, as its packets give them."""
        walk = walked(facts, self.limits)
        if walk is None or walk.parts == 1:
            return facts
        if not self.follows_changes:
            what = (
                f"{Path(facts.path).name} is {walk.parts} files joined, its clock starts anew in the middle"
            )
            raise DecodeError(f"{what}: {self.name} cannot tell where", hint="use --decoder pyav")
        return replace(facts, duration_s=max(walk.end_s, facts.duration_s or 0.0), joined=True)
