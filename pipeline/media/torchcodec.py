"""Decoding with torchcodec: fast, but it needs torch in every worker and the system's FFmpeg libraries.

It refuses times before a stream begins, so wanted times are clamped to the stream. It turns frames upright itself but
does not mirror them. After a failure each frame is tried with a fresh decoder.
"""

from __future__ import annotations

import importlib
import re
from importlib.metadata import version
from typing import Any

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media.audio import FILTER_S, Audio
from caeav.pipeline.media.clip import DecodeError
from caeav.pipeline.media.decoder import BaseDecoder
from caeav.pipeline.media.frames import Frames, stored_orientation
from caeav.pipeline.media.mixing import mix_to_mono
from caeav.pipeline.media.probe import MediaFacts, library_message
from caeav.pipeline.media.scan import Plan

INEXACT_CONTAINERS = ("mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc")
"""Here it begins at a later key frame, or counts from elsewhere, and shows frames of another time."""
LOSING = {"wav": ("adpcm_",), "caf": ("alac",), "matroska,webm": ("wavpack",)}
"""By container, prefixes of codecs whose audio it gives without the first packets, or in pieces."""
EXACT_GAPS = 0.6  # its frames carry their packets' stamps, so one that is off by a frame is another frame
_ERRORS = (RuntimeError, ValueError, IndexError)


def _library(name: str) -> Any:
    """A module of torchcodec, imported on first use; raises `CaeavError` when its libraries do not load."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        raise CaeavError(
            f"torchcodec does not load: {_load_error(error)}",
            hint="install caeav[torchcodec] and the system's FFmpeg libraries (apt-get install ffmpeg), or use "
            "--decoder pyav",
        ) from error


def _load_error(error: BaseException) -> str:
    """The reason in one line, out of the pages that torchcodec prints.

    It tries one build for each version of FFmpeg. Every version that is not installed fails for want of its
    `libavutil`; only a failure of another kind says more.
    """
    causes = [
        line.removeprefix("OSError: ").strip() for line in str(error).splitlines() if "OSError: " in line
    ]
    tried = [line for line in causes if not line.startswith("Could not load this library")]
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
        library = _library("torchcodec")  # first: its error says what is wrong where nothing is installed
        return f"torchcodec {version('torchcodec')} (ffmpeg {library.ffmpeg_major_version})"

    def lossy_audio(self, facts: MediaFacts) -> str:
        """The codec and container, if it is a losing pair."""
        audio = facts.audio
        losing = audio is not None and audio.codec.startswith(LOSING.get(facts.container, ("nothing",)))
        return f"{audio.codec} in {facts.container}" if audio is not None and losing else ""

    def read(self, plan: Plan) -> tuple[Frames | None, Audio | None]:
        """Frames by time, then audio by range."""
        if plan.facts.video and plan.facts.container in INEXACT_CONTAINERS:
            what = f"torchcodec gives wrong pictures of {plan.facts.container} files"
            raise DecodeError(what, hint="use --decoder pyav")
        video = self._read_frames(plan) if plan.facts.video and plan.facts.video.decodable else None
        audio = self._read_audio(plan) if plan.facts.audio and plan.facts.audio.decodable else None
        return video, audio

    def _read_frames(self, plan: Plan) -> Frames:
        found = Frames.none(plan.sampling.segments)
        if plan.facts.container != "avi":  # which has no stamps
            found.tolerance_gaps = EXACT_GAPS
        self._upright = stored_orientation(plan.facts, plan.limits)
        found.fill(lambda segments: self._take(self._video(plan), plan, found, segments), _ERRORS, _message)
        return found

    def _video(self, plan: Plan) -> Any:
        assert plan.facts.video is not None
        return _library("torchcodec.decoders").VideoDecoder(
            plan.facts.path, stream_index=plan.facts.video.index, dimension_order="NHWC", num_ffmpeg_threads=1
        )

    def _take(self, decoder: Any, plan: Plan, found: Frames, segments: list[int]) -> None:
        """Fill the given segments. torchcodec's clock is the container's."""
        about, origin_s = decoder.metadata, plan.facts.origin_s
        first_s, end_s = about.begin_stream_seconds, about.end_stream_seconds
        wanted = [plan.wanted_s[t] + origin_s + 1e-6 for t in segments]
        frames = decoder.get_frames_played_at([min(max(s, first_s), end_s - 1e-4) for s in wanted])
        for n, t in enumerate(segments):
            found.images[t] = self._upright.after_turning(frames.data[n].numpy())
            found.shown_s[t] = float(frames.pts_seconds[n]) - origin_s
        found.decoded += len(segments)
        found.record_orientation(self._upright)

    def _read_audio(self, plan: Plan) -> Audio:
        stream, origin_s = plan.facts.audio, plan.facts.origin_s
        assert stream is not None
        try:
            decoder = _library("torchcodec.decoders").AudioDecoder(plan.facts.path, stream_index=stream.index)
            first_s = max(plan.start_s - 2 * FILTER_S, stream.start_s) + origin_s
            samples = decoder.get_samples_played_in_range(first_s, plan.end_s + 2 * FILTER_S + origin_s)
        except _ERRORS as error:
            return Audio(errors=[_message(error)])
        data = samples.data.numpy()
        if not data.size:
            return Audio()
        mono, loudest = mix_to_mono(data, stream.channels, int(samples.sample_rate))
        audio = Audio.of(mono, int(samples.sample_rate), float(samples.pts_seconds) - origin_s)
        audio.loudest = loudest
        return audio
