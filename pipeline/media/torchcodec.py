"""Decoding with torchcodec: fast, but it needs torch in every worker and the system's FFmpeg libraries.

It refuses times before a stream begins, so wanted times are moved inside it. It turns pictures upright
itself, but does not mirror them. After a failure every picture is tried through a fresh decoder.
"""

from __future__ import annotations

import importlib
import re
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media.audio import FILTER_S, Sound
from caeav.pipeline.media.clip import DecodeError
from caeav.pipeline.media.decoder import BaseDecoder
from caeav.pipeline.media.frames import Pictures
from caeav.pipeline.media.mixing import mixed
from caeav.pipeline.media.orientation import stored_orientation
from caeav.pipeline.media.plan import Plan
from caeav.pipeline.media.probe import MediaFacts, library_message

INEXACT_CONTAINERS = ("mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc")
"""Here it begins at a later key frame, or counts from elsewhere, and shows pictures of another time."""
LOSING = {"wav": ("adpcm_",), "caf": ("alac",), "matroska,webm": ("wavpack",)}
"""Containers, and the beginnings of codecs, whose sound it gives without its first packets, or in pieces."""
EXACT_GAPS = (
    0.6  # its pictures have their packets' stamps, so that one that is off by a picture is another one
)
_ERRORS = (RuntimeError, ValueError, IndexError)


def _library(name: str) -> Any:
    """A module of torchcodec, imported on first use; raises `CaeavError` when its libraries do not load."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        raise CaeavError(
            f"torchcodec does not load: {_why(error)}",
            hint="install caeav[torchcodec] and the system's FFmpeg libraries (apt-get install ffmpeg), or use "
            "--decoder pyav",
        ) from error


def _why(error: BaseException) -> str:
    """The reason in one line. torchcodec tells pages: it tries a build for every version of FFmpeg; each that is not
    installed fails for want of its `libavutil`; only another failure says more than that."""
    told = [line.removeprefix("OSError: ").strip() for line in str(error).splitlines() if "OSError: " in line]
    tried = [line for line in told if not line.startswith("Could not load this library")]
    other = [line for line in tried if not re.match(r"libav\w+\.\S+ cannot open shared object file", line)]
    if tried and not other:
        return "the system has no FFmpeg libraries (libavutil)"
    return other[0][:300] if other else library_message(error)


def _message(error: BaseException) -> str:
    """The reason at the end of a torchcodec error, without the function and source file it came from."""
    return library_message(error).rsplit(", ", 1)[-1].strip()


class TorchCodecDecoder(BaseDecoder):
    """torchcodec >= 0.11.1."""

    name = "torchcodec"

    def version(self) -> str:
        """torchcodec's version and FFmpeg's major version."""
        major = _library(
            "torchcodec"
        ).ffmpeg_major_version  # first: it says what is wrong where nothing is installed
        return f"torchcodec {version('torchcodec')} (ffmpeg {major})"

    def mishears(self, facts: MediaFacts) -> str:
        """Which codec in which container."""
        audio = facts.audio
        losing = audio is not None and audio.codec.startswith(LOSING.get(facts.container, ("nothing",)))
        return f"{audio.codec} in {facts.container}" if audio is not None and losing else ""

    def read(self, plan: Plan) -> tuple[Pictures | None, Sound | None]:
        """Pictures by time, then sound by range."""
        if plan.facts.video and plan.facts.container in INEXACT_CONTAINERS:
            what = f"torchcodec gives wrong pictures of {plan.facts.container} files"
            raise DecodeError(what, hint="use --decoder pyav")
        video = self._pictures(plan) if plan.facts.video and plan.facts.video.decodable else None
        audio = self._sound(plan) if plan.facts.audio and plan.facts.audio.decodable else None
        return video, audio

    def _pictures(self, plan: Plan) -> Pictures:
        found = Pictures.none(plan.sampling.segments)
        if plan.facts.container != "avi":  # which has no stamps
            found.off_gaps = EXACT_GAPS
        self._upright = stored_orientation(plan.facts, plan.limits)
        try:
            self._take(self._video(plan), plan, found, list(range(plan.sampling.segments)))
        except _ERRORS as error:
            found.errors.append(_message(error))
            for t in range(plan.sampling.segments):
                with suppress(*_ERRORS):  # those that stay missing are counted by the check
                    self._take(self._video(plan), plan, found, [t])
        return found

    def _video(self, plan: Plan) -> Any:
        assert plan.facts.video is not None
        return _library("torchcodec.decoders").VideoDecoder(
            plan.facts.path, stream_index=plan.facts.video.index, dimension_order="NHWC", num_ffmpeg_threads=1
        )

    def _take(self, decoder: Any, plan: Plan, found: Pictures, segments: list[int]) -> None:
        """Fill the given segments; torchcodec's clock is the container's."""
        about, origin_s = decoder.metadata, plan.facts.origin_s
        first_s, end_s = about.begin_stream_seconds, about.end_stream_seconds
        wanted = [plan.wanted_s[t] + origin_s + 1e-6 for t in segments]
        frames = decoder.get_frames_played_at([min(max(s, first_s), end_s - 1e-4) for s in wanted])
        for n, t in enumerate(segments):
            found.images[t] = self._upright.after_turning(frames.data[n].numpy())
            found.shown_s[t] = float(frames.pts_seconds[n]) - origin_s
        found.decoded += len(segments)
        found.said(self._upright)

    def _sound(self, plan: Plan) -> Sound:
        audio, origin_s = plan.facts.audio, plan.facts.origin_s
        assert audio is not None
        nothing = Sound()
        try:
            decoder = _library("torchcodec.decoders").AudioDecoder(plan.facts.path, stream_index=audio.index)
            first_s = max(plan.start_s - 2 * FILTER_S, audio.start_s) + origin_s
            samples = decoder.get_samples_played_in_range(first_s, plan.end_s + 2 * FILTER_S + origin_s)
        except _ERRORS as error:
            nothing.errors.append(_message(error))
            return nothing
        data = samples.data.numpy()
        if not data.size:
            return nothing
        mono, loudest = mixed(data, audio.channels, int(samples.sample_rate))
        sound = Sound.of(mono, int(samples.sample_rate), float(samples.pts_seconds) - origin_s)
        sound.loudest = loudest
        return sound
