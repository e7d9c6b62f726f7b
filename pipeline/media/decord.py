"""Decoding with decord, around its traps: only `get_batch`, never `seek`; audio only as a whole mono track of the first
stream.

Asked for several channels decord returns memory that nobody wrote, so it has to mix them itself, but too loud: the sum
of the weights is divided out again. It loses audio silently, leaks with every `AudioReader` (so workers are renewed
after some clips) and reads no AV1. It turns frames upright itself.
"""

from __future__ import annotations

import importlib
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media.audio import Audio
from caeav.pipeline.media.clip import DecodeError
from caeav.pipeline.media.decoder import BaseDecoder
from caeav.pipeline.media.frames import Frames, stored_orientation
from caeav.pipeline.media.mixing import mix_gain
from caeav.pipeline.media.probe import library_message, open_media
from caeav.pipeline.media.scan import Plan

EXACT_CONTAINERS = ("mov", "matroska", "avi")
"""Elsewhere (MPEG-TS) decord silently begins at the second key frame and counts from there."""
LATE_CODECS = ("mpeg1video", "mpeg2video")  # the same in any container
UNCOUNTED = ("vorbis", "opus")
"""Codecs whose first sample decord places wrongly: Vorbis gives none of its first packet, Opus some to be left out."""
OPUS_HZ = 48000


def _library() -> Any:
    """decord, quiet; raises `CaeavError` when it is not installed."""
    try:
        decord = importlib.import_module("decord")
    except (ImportError, OSError) as error:
        raise CaeavError(
            f"decord does not load: {library_message(error)}",
            hint="install caeav[decord], or use --decoder pyav",
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _message(error: BaseException, plan: Plan) -> str:
    """The reason in a DECORDError: the end of its first line, without its clock, its source file and our path."""
    text = library_message(error).rsplit(": ", 1)[-1].strip()
    return text.replace(plan.facts.path, Path(plan.facts.path).name)


def _inexact_files(plan: Plan) -> str:
    """The kind of file, if decord shows frames of another time or stream in it; else empty."""
    container, video = plan.facts.container, plan.facts.video
    if video is None:
        return ""
    if not any(name in container.split(",") for name in EXACT_CONTAINERS):
        return f"{container} files"
    if video.codec in LATE_CODECS:
        return f"{video.codec} video"
    return "files whose edit list begins inside the film" if plan.scan.cut else ""


def _misplaces_first_sample(plan: Plan) -> bool:
    """Whether decord places the first audio sample wrongly; MP4 has an edit list that corrects it."""
    audio = plan.facts.audio
    return audio is not None and audio.codec in UNCOUNTED and "mov" not in plan.facts.container


def _first_sample_s(plan: Plan) -> float | None:
    """Media time of the first audio sample that decord gives; None where none decodes."""
    audio = plan.facts.audio
    assert audio is not None
    with open_media(plan.facts.path, plan.limits) as container, suppress(av.FFmpegError):
        stream = container.streams[audio.index]
        head = stream.codec_context.extradata or b""
        left_out = int.from_bytes(head[10:12], "little") if head[:8] == b"OpusHead" else 0
        for frame in container.decode(stream):
            return None if frame.pts is None else float(frame.time - plan.facts.origin_s - left_out / OPUS_HZ)
    return None


def _read_in_order(reader: Any, wanted: list[int]) -> NDArray[np.uint8]:
    """Frames of these numbers, read one after the other: without sane stamps decord's seeks land anywhere."""
    images: dict[int, NDArray[np.uint8]] = {}
    for number in range(max(wanted) + 1):
        frame = reader.next()
        if number in wanted:
            images[number] = frame.asnumpy()
    return np.stack([images[number] for number in wanted])


class DecordDecoder(BaseDecoder):
    """decord 0.6; brings its own (old) FFmpeg."""

    name = "decord"
    first_audio_only = True
    counts_from_start = True

    def version(self) -> str:
        """decord's version."""
        return f"decord {_library().__version__}"

    def read(self, plan: Plan) -> tuple[Frames | None, Audio | None]:
        """Frames by index, then the whole audio track."""
        wrong = _inexact_files(plan)
        if wrong:
            raise DecodeError(f"decord gives wrong pictures of {wrong}", hint="use --decoder pyav")
        video = self._read_frames(plan) if plan.facts.video and plan.facts.video.decodable else None
        audio = self._read_audio(plan) if plan.facts.audio and plan.facts.audio.decodable else None
        return video, audio

    def _read_frames(self, plan: Plan) -> Frames:
        decord = _library()
        found = Frames.none(plan.sampling.segments)
        found.fill(  # always by a fresh reader, since one that failed gives wrong frames
            lambda segments: self._take(self._reader(plan), plan, found, segments),
            (decord.DECORDError, RuntimeError),
            lambda error: _message(error, plan),
        )
        return found

    def _take(self, reader: Any, plan: Plan, found: Frames, segments: list[int]) -> None:
        """Fill the given segments in one batch."""
        starts, sane = self._frame_times(reader, plan)
        wanted = [max(0, bisect_right(starts, plan.wanted_s[t] + 1e-4) - 1) for t in segments]
        images = reader.get_batch(wanted).asnumpy() if sane else _read_in_order(reader, wanted)
        video = plan.facts.video
        assert video is not None
        if plan.facts.video_streams > 1 and sorted(images.shape[1:3]) != sorted((video.height, video.width)):
            size = f"{images.shape[2]}x{images.shape[1]}"
            raise DecodeError(
                f"decord shows a stream of {size} of a file with several", hint="use --decoder pyav"
            )
        upright = stored_orientation(plan.facts, plan.limits)
        for n, t in enumerate(segments):
            found.images[t], found.shown_s[t] = upright.after_turning(images[n]), starts[wanted[n]]
        found.decoded += len(set(wanted))
        found.mirrored = upright.mirrored

    def _reader(self, plan: Plan) -> Any:
        return _library().VideoReader(plan.facts.path, num_threads=1)

    def _frame_times(self, reader: Any, plan: Plan) -> tuple[list[float], bool]:
        """Media times of all frames, and whether they are decord's own; where those are not sane, evenly spread ones.

        Files whose packets carry no stamps (old AVI) get nonsense times from decord.
        """
        count = len(reader)
        video = plan.facts.video
        assert video is not None
        starts = np.asarray(reader.get_frame_timestamp(range(count)))[:, 0].astype(np.float64)
        starts += video.start_s - starts[0]  # decord counts from the first frame
        limit_s = plan.limits.duration_s
        if np.isfinite(starts).all() and (np.abs(starts) < limit_s).all() and (np.diff(starts) >= 0).all():
            return [float(s) for s in starts], True
        first_s = min(plan.scan.video_s, default=video.start_s)
        fps = video.fps or float(reader.get_avg_fps())
        return [first_s + i / fps for i in range(count)], False

    def _read_audio(self, plan: Plan) -> Audio:
        decord = _library()
        stream = plan.facts.audio
        assert stream is not None
        length_s = stream.duration_s or plan.facts.duration_s or 0.0
        plan.limits.check("sound track (decord reads it whole)", length_s, plan.limits.whole_track_s, " s")
        try:
            reader = decord.AudioReader(plan.facts.path, sample_rate=stream.rate_hz, mono=True)
            samples = reader[:].asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            return Audio(errors=[_message(error, plan)])
        if not samples.size:
            return Audio()
        mono = np.ascontiguousarray(samples[0], dtype=np.float32) / np.float32(mix_gain(stream.channels))
        first_s = _first_sample_s(plan) if _misplaces_first_sample(plan) else None
        audio = Audio.of(mono, stream.rate_hz, stream.start_s if first_s is None else first_s)
        audio.loudest = None if len(stream.channels) > 1 else 0.0
        return audio
