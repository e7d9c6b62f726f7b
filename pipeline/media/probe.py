"""What a container says about itself: streams, codecs, times, sizes. Nothing is decoded and nothing is believed.

Times are media times: seconds from the start of the container (its `start_time`), whatever its own clock says. Of
several streams of a kind FFmpeg's "best" one is taken, as players do, never cover art.

This is also the only place where a media file is opened (`open_media`): a regular local file, through demuxers that
read nothing else. FFmpeg by itself follows playlists, concatenation scripts and URLs inside a file called `.mp4`.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from caeav.pipeline.media.clip import DecodeError, Limits
from caeav.pipeline.media.mixing import channels_of

DEMUXERS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,nut,mxf,gxf,ivf,dv,rm,m4v,h264,hevc,gif,"
    "wav,w64,flac,mp3,aac,ac3,eac3,aiff,caf,au,amr,wv,tta,ape,voc"
)
"""Demuxers that read one file and nothing beside it."""
WITHOUT_LENGTH = ("mp3", "aac", "ac3", "eac3", "amr", "h264", "hevc", "m4v", "mpegvideo")
"""Containers that are a bare stream: their length is guessed from size and bit rate, often wrongly."""
ONE_LENGTH = ("asf",)
"""Containers that give every stream the length of the longest."""
OWN_PALETTE = ("png", "apng", "gif", "bmp", "tiff", "targa", "pcx", "webp")
"""Codecs whose frames all bring their palette; elsewhere only the first packet does."""
NO_DECODER = "this FFmpeg knows no decoder for its codec"
ENCRYPTED = "it is encrypted, and there is no key"
TS_BYTES = 2**21  # read from the beginning of a transport stream
TS_SYNC = 0x47
TS_SIZES = (
    188,
    192,
    204,
)  # bytes of a transport packet: plain, with a clock before it, with a checksum after it


def library_message(error: BaseException) -> str:
    """A library's error in one line without its number and argument: `Invalid data found when processing input`."""
    text = str(getattr(error, "strerror", None) or error).strip().splitlines() or [type(error).__name__]
    return text[0][:300]


def regular_file(path: str, limits: Limits) -> int:
    """Size in bytes of a regular file within limits; raises `DecodeError` for anything else."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise DecodeError(f"cannot read {Path(path).name}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise DecodeError(f"{Path(path).name} is not a regular file")
    if found.st_size == 0:
        raise DecodeError(f"{Path(path).name} is empty (0 bytes)")
    limits.check("file size", found.st_size, limits.file_bytes, " bytes")
    return found.st_size


@contextmanager
def open_media(path: str, limits: Limits) -> Iterator[Any]:
    """A local file as an open PyAV input container; raises `DecodeError` when it is not readable media."""
    size = regular_file(path, limits)
    try:
        container = av.open(
            f"file:{Path(path).absolute()}",
            metadata_errors="replace",
            options={"protocol_whitelist": "file", "format_whitelist": DEMUXERS},
        )
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DecodeError(
            f"{Path(path).name} ({size} bytes) is not readable media: {library_message(error)}"
        ) from error
    try:
        limits.check("number of streams", len(container.streams), limits.streams)
        yield container
    finally:
        container.close()


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The chosen video stream; `width` x `height` as stored, before rotation. None: the container does not say.

    fps: average rate. base_fps: a rate at which every time stamp is a whole frame, higher when the rate varies.
    why: the reason when it is not decodable. pixel_aspect: width and height of a pixel. carries_state: its frames need
    the stream's first packet (palettes), so no seek may skip it.
    """

    index: int
    codec: str
    decodable: bool
    width: int
    height: int
    fps: float | None
    base_fps: float | None
    start_s: float
    duration_s: float | None
    why: str = ""
    pixel_aspect: tuple[int, int] = (1, 1)
    carries_state: bool = False


@dataclass(frozen=True, slots=True)
class AudioFacts:
    """The chosen audio stream; `channels` are FFmpeg's channel names (`FL`, `FR`, `LFE`, ...)."""

    index: int
    codec: str
    decodable: bool
    rate_hz: int
    channels: tuple[str, ...]
    start_s: float
    duration_s: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """A media file as its container describes it; `origin_s` is the container's clock at media time 0.

    guessed: its length is only estimated from its size. joined: its clock starts anew in the middle (`clock.py`).
    """

    path: str
    size_bytes: int
    container: str
    origin_s: float
    duration_s: float | None
    video: VideoFacts | None
    audio: AudioFacts | None
    video_streams: int
    audio_streams: int
    covers: int
    other_streams: int
    guessed: bool = False
    joined: bool = False

    def is_over(self, time_s: float) -> bool:
        """Whether there is certainly nothing from `time_s` on."""
        return (
            self.end_s is not None and time_s >= self.end_s and self.container not in (*WITHOUT_LENGTH, "avi")
        )

    def without(self, encrypted: Collection[int]) -> MediaFacts:
        """The same facts, with the streams of these indices marked as encrypted."""
        video, audio = self.video, self.audio
        if video and video.index in encrypted:
            video = replace(video, decodable=False, why=ENCRYPTED)
        if audio and audio.index in encrypted:
            audio = replace(audio, decodable=False, why=ENCRYPTED)
        return replace(self, video=video, audio=audio)

    @property
    def end_s(self) -> float | None:
        """The latest end that a stream or the container promises."""
        ends = [s.start_s + s.duration_s for s in (self.video, self.audio) if s and s.duration_s]
        return max([*ends, *([self.duration_s] if self.duration_s else [])], default=None)


def _seconds(ticks: int | None, time_base: Any) -> float | None:
    return None if ticks is None else float(ticks * time_base)


def _start(stream: Any, origin_s: float) -> float:
    start_s = _seconds(stream.start_time, stream.time_base)
    return 0.0 if start_s is None else start_s - origin_s


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _chosen(container: Any, kind: str) -> tuple[Any, int]:
    """FFmpeg's best stream of a kind that is not cover art, and how many such streams there are."""
    streams = [s for s in getattr(container.streams, kind) if not _is_cover(s)]
    best = container.streams.best(kind)
    if best is not None and any(s.index == best.index for s in streams):
        return best, len(streams)
    return (streams[0] if streams else None), len(streams)


def _video(stream: Any, origin_s: float, limits: Limits) -> VideoFacts:
    context = stream.codec_context
    width, height = (context.width, context.height) if context else (0, 0)
    limits.check("picture size", width * height, limits.frame_pixels, " pixels")
    rate = stream.average_rate or stream.guessed_rate
    return VideoFacts(
        index=stream.index,
        codec=context.name if context else "unknown",
        decodable=context is not None,
        width=width,
        height=height,
        fps=float(rate) if rate else None,
        base_fps=float(stream.base_rate) if stream.base_rate else None,
        start_s=_start(stream, origin_s),
        duration_s=_seconds(stream.duration, stream.time_base),
        why="" if context else NO_DECODER,
        pixel_aspect=_pixel_aspect(stream) if context else (1, 1),
        carries_state=bool(context) and context.pix_fmt == "pal8" and context.name not in OWN_PALETTE,
    )


def _pixel_aspect(stream: Any) -> tuple[int, int]:
    """Width and height of a pixel, (1, 1) where the container does not say."""
    aspect = stream.sample_aspect_ratio
    return (aspect.numerator, aspect.denominator) if aspect and aspect > 0 else (1, 1)


def _audio(stream: Any, origin_s: float, limits: Limits, container: str) -> AudioFacts:
    context = stream.codec_context
    names = channels_of(stream.layout) if context else ()
    rate = int(stream.rate or 0) if context else 0
    limits.check("audio channels", len(names), limits.audio_channels)
    limits.check("audio rate", rate, limits.audio_rate_hz, " Hz")
    return AudioFacts(
        index=stream.index,
        codec=context.name if context else "unknown",
        decodable=context is not None,
        rate_hz=rate,
        channels=names,
        start_s=_start(stream, origin_s),
        duration_s=None if container in ONE_LENGTH else _seconds(stream.duration, stream.time_base),
        why="" if context else NO_DECODER,
    )


def _is_guessed(container: Any, size_bytes: int) -> bool:
    """Whether the length is only estimated from size and bit rate; of bare streams only an mp3 may know it."""
    name, seconds = container.format.name, (container.duration or 0) / av.time_base
    if name != "mp3" or not container.bit_rate:
        return name in WITHOUT_LENGTH
    return bool(abs(seconds - 8 * size_bytes / container.bit_rate) < 0.01 * seconds + 0.1)


def probe(path: str, limits: Limits | None = None, *, first_audio: bool = False) -> MediaFacts:
    """Read a container's header; `first_audio` takes the first audio stream instead of the best.

    Raises `DecodeError` when the file is not media, has no stream or is beyond a limit.
    """
    limits = limits or Limits()
    with open_media(path, limits) as container:
        origin_s = (container.start_time or 0) / av.time_base
        video, videos = _chosen(container, "video")
        audio, audios = _chosen(container, "audio")
        if first_audio and audios:
            audio = container.streams.audio[0]
        if video is None and audio is None:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
            raise DecodeError(f"{Path(path).name} has no video and no audio stream (streams: {kinds})")
        size_bytes = Path(path).stat().st_size
        facts = MediaFacts(
            path=path,
            size_bytes=size_bytes,
            container=container.format.name,
            origin_s=origin_s,
            duration_s=container.duration / av.time_base if container.duration else None,
            video=_video(video, origin_s, limits) if video is not None else None,
            audio=_audio(audio, origin_s, limits, container.format.name) if audio is not None else None,
            video_streams=videos,
            audio_streams=audios,
            covers=sum(_is_cover(s) for s in container.streams.video),
            other_streams=sum(s.type not in ("video", "audio") for s in container.streams),
            guessed=_is_guessed(container, size_bytes),
        ).without(encrypted_streams(container, path))
    limits.check("duration", facts.end_s or 0.0, limits.duration_s, " s")
    return facts


def encrypted_streams(container: Any, path: str) -> frozenset[int]:
    """Indices of the streams that only the container, not each packet, marks as encrypted.

    Matroska names the key in its header. In MPEG-TS each packet says whether it is scrambled; the first ones are read.
    (MP4 marks each packet: `scan.py`.)
    """
    if container.format.name == "mpegts":
        pids = _scrambled_pids(Path(path))
        return frozenset(stream.index for stream in container.streams if stream.id in pids)
    return frozenset(s.index for s in container.streams if "enc_key_id" in s.metadata)


def _scrambled_pids(path: Path) -> frozenset[int]:
    """PIDs of the transport streams most of whose packets are scrambled."""
    with path.open("rb") as file:
        data = np.frombuffer(file.read(TS_BYTES), dtype=np.uint8)
    for size in TS_SIZES:
        for first in range(min(size, data.size)):
            count = (data.size - first) // size
            if count and data[first] == TS_SYNC and (data[first::size][:count] == TS_SYNC).mean() > 0.9:
                rows = data[first : first + count * size].reshape(count, size)
                pids = (rows[:, 1].astype(np.int64) & 0x1F) << 8 | rows[:, 2]
                return _mostly(pids, rows[:, 3] >> 6 > 1)
    return frozenset()


def _mostly(pids: np.ndarray[Any, Any], scrambled: np.ndarray[Any, Any]) -> frozenset[int]:
    return frozenset(int(pid) for pid in np.unique(pids) if scrambled[pids == pid].mean() > 0.5)
