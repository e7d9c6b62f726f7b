"""Decoding with PyAV: one pass over the packets, pictures and sound together, on one thread.

Everything that the wanted pictures depend on is decoded, only those are converted to RGB; a clip deep inside a long
file is reached by one seek, checked to have landed before it, and read from the start when it has not.
A packet that does not decode is counted and left out.
"""

from __future__ import annotations

from typing import Any

import av
from av.video.reformatter import VideoReformatter

from caeav.pipeline.decode.base import BaseDecoder
from caeav.pipeline.decode.media import DecodeError
from caeav.pipeline.decode.opening import library_message, opened
from caeav.pipeline.decode.pictures import DisplayOrder, Pictures, upright
from caeav.pipeline.decode.plan import Plan
from caeav.pipeline.decode.scan import INTERLEAVE_S, PREROLL_S, SEEK_FROM_S, seek_before
from caeav.pipeline.decode.sound import FILTER_S, Sound, SoundLine, mixed_to_mono

SKIPPING = ("h264", "hevc")
"""Codecs of which pictures that no other needs are left out far from the wanted ones: a third of the work."""
NEAR_GAPS = 4.0  # so many pictures before a wanted one are decoded in any case, should that one be damaged


class _VideoTrack:
    """Picks the wanted pictures out of the frames of one stream."""

    def __init__(self, plan: Plan, stream: Any, skip: bool) -> None:
        fps = plan.facts.video.fps if plan.facts.video else None
        self.wanted_s = plan.wanted_s
        self.found = Pictures.none(len(self.wanted_s))
        self.first_s: float | None = None
        self._order = DisplayOrder(1.0 / fps if fps else 0.04)
        self._start_s = plan.start_s
        self._origin_s = plan.facts.origin_s
        self._limits = plan.limits
        self._next = 0
        self._shown: tuple[float, Any] | None = None
        self._converted: tuple[Any, Any] = (None, None)
        self._size: tuple[int, int] | None = None
        self._converter = VideoReformatter()  # one for all: a frame's own would be set up anew for each
        self.stream = stream
        self.tick_s = float(stream.time_base)
        self._near_s = _near(plan) if skip else []
        self._skips = self.skipped = False

    def aim(self, packet: Any) -> None:
        """Let the codec leave out the packet's picture if no other needs it and none near it is wanted."""
        if not self._near_s or packet.pts is None:
            return
        time_s = packet.pts * self.tick_s - self._origin_s
        near = any(low <= time_s <= high for low, high in self._near_s)
        if self._skips == near:
            self._skips = not near
            self.skipped |= self._skips
            self.stream.codec_context.skip_frame = "NONREF" if self._skips else "DEFAULT"

    @property
    def done(self) -> bool:
        return self._next == len(self.wanted_s)

    @property
    def late(self) -> bool:
        """Whether reading began behind the first wanted picture."""
        return self.first_s is None or self.first_s > self.wanted_s[0]

    def take(self, frame: Any) -> None:
        self.found.decoded += 1
        self._limits.check("pictures decoded for one clip", self.found.decoded, self._limits.frames)
        self._limits.check("picture size", frame.width * frame.height, self._limits.frame_pixels, " pixels")
        time_s = None if frame.pts is None else frame.time - self._origin_s
        self._settle(self._order.push(frame, time_s))

    def finish(self) -> None:
        self._settle(self._order.flush())
        while not self.done and self._shown:
            self._keep(self._shown)

    def _settle(self, ready: list[tuple[float, Any]]) -> None:
        for time_s, frame in ready:
            self.first_s = time_s if self.first_s is None else self.first_s
            while not self.done and self.wanted_s[self._next] + 1e-6 < time_s:
                self._keep(self._shown or (time_s, frame))
            self._shown = (time_s, frame)
            self.found.concealed += bool(frame.is_corrupt) and time_s >= self._start_s

    def _keep(self, shown: tuple[float, Any]) -> None:
        time_s, frame = shown
        if self._converted[0] is not frame:
            self._converted = (frame, self._to_rgb(frame))
        self.found.images[self._next] = self._converted[1]
        self.found.shown_s[self._next] = time_s
        self._next += 1

    def _to_rgb(self, frame: Any) -> Any:
        self._size = self._size or (frame.width, frame.height)
        self.found.rotated_deg = int(frame.rotation)
        self.found.resized += (frame.width, frame.height) != self._size
        width, height = self._size
        image: Any = self._converter.reformat(frame, width, height, "rgb24").to_ndarray()
        return upright(image, self.found.rotated_deg)


def _near(plan: Plan) -> list[tuple[float, float]]:
    """From when to when pictures are decoded whether needed by others or not, for each wanted one; empty: always."""
    video, scan = plan.facts.video, plan.scan
    if video is None or video.codec not in SKIPPING or scan.error or len(scan.video_s) < 2:
        return []
    gap_s = plan.frame_gap_s
    shown_s = [scan.expected_s(wanted_s) for wanted_s in plan.wanted_s]
    return [
        ((wanted_s if at is None else at) - NEAR_GAPS * gap_s, wanted_s + gap_s)
        for wanted_s, at in zip(plan.wanted_s, shown_s, strict=True)
    ]


class _AudioTrack:
    """Lines up the sound of one stream until it covers the clip."""

    def __init__(self, plan: Plan, stream: Any) -> None:
        keep_s = (plan.start_s - SEEK_FROM_S - PREROLL_S, plan.end_s + 2 * PREROLL_S)
        self.line = SoundLine(tick_s=float(stream.time_base), keep_s=keep_s)
        self._start_s, self._until_s = plan.start_s, plan.end_s + 2 * FILTER_S
        self._over = plan.facts.audio is not None and plan.facts.audio.is_over(plan.start_s)
        self._origin_s = plan.facts.origin_s
        self._limits = plan.limits
        self.stream = stream
        self.tick_s = float(stream.time_base)

    @property
    def done(self) -> bool:
        return self.line.end_s is not None and self.line.end_s >= self._until_s

    @property
    def late(self) -> bool:
        """Whether reading began behind the first sound of the clip; no sound is not late where there can be none."""
        first_s = self.line.start_s
        return not self._over if first_s is None else first_s > self._start_s

    def take(self, frame: Any) -> None:
        names = [channel.name for channel in frame.layout.channels]
        self._limits.check("audio channels", len(names), self._limits.audio_channels)
        self._limits.check("audio rate", frame.sample_rate, self._limits.audio_rate_hz, " Hz")
        samples = frame.to_ndarray()
        if not frame.format.is_planar:
            samples = samples.reshape(-1, len(names)).T
        time_s = None if frame.pts is None else frame.time - self._origin_s
        self.line.add(time_s, mixed_to_mono(samples, names), frame.sample_rate)


class PyAVDecoder(BaseDecoder):
    """FFmpeg through PyAV; brings its own libraries."""

    name = "pyav"

    def version(self) -> str:
        """PyAV's version and that of the FFmpeg codecs it carries."""
        codecs = ".".join(map(str, av.library_versions["libavcodec"]))
        return f"av {av.__version__} (libavcodec {codecs})"

    def read(self, plan: Plan) -> tuple[Pictures | None, Sound | None]:
        """Pictures and sound in one pass; in a second one where the first went astray or met damage."""
        video, audio, reached = self._pass(plan, seek=True)
        if not reached:
            video, audio, _ = self._pass(plan, seek=False)
        if video and video.skipped and (video.found.errors or video.found.concealed):
            # a codec makes up what is lost out of its neighbours, so these must not be left out
            video, audio, _ = self._pass(plan, seek=reached, skip=False)
        return video.found if video else None, audio.line.sound() if audio else None

    def _pass(
        self, plan: Plan, *, seek: bool, skip: bool = True
    ) -> tuple[_VideoTrack | None, _AudioTrack | None, bool]:
        """Read once; the last value is False when a seek landed after the clip's start."""
        facts = plan.facts
        with opened(facts.path, plan.limits) as container:
            tracks: dict[int, _VideoTrack | _AudioTrack] = {}
            video = audio = None
            if facts.video and facts.video.decodable:
                video = _VideoTrack(plan, container.streams[facts.video.index], skip)
                tracks[facts.video.index] = video
            if facts.audio and facts.audio.decodable:
                audio = _AudioTrack(plan, container.streams[facts.audio.index])
                tracks[facts.audio.index] = audio
            for track in tracks.values():
                track.stream.codec_context.thread_count = 1
            sought = seek and seek_before(container, facts, plan.start_s)
            if tracks:  # demuxing no stream would be demuxing all
                self._demux(container, tracks, plan)
            if video:
                video.finish()
            late = (video is not None and video.late) or (audio is not None and audio.late)
            return video, audio, not (sought and late)

    def _demux(self, container: Any, tracks: dict[int, _VideoTrack | _AudioTrack], plan: Plan) -> None:
        errors = {
            i: (t.found.errors if isinstance(t, _VideoTrack) else t.line.errors) for i, t in tracks.items()
        }
        packets = 0
        try:
            for packet in container.demux([track.stream for track in tracks.values()]):
                packets += 1
                plan.limits.check("packets read for one clip", packets, plan.limits.packets)
                index = packet.stream.index  # a flush packet has no stream_index of its own
                track = tracks[index]
                if isinstance(track, _VideoTrack):
                    track.aim(packet)
                if not track.done:
                    self._decode(packet, track, errors[index])
                if all(track.done for track in tracks.values()) or self._far_past(packet, track, plan):
                    return
        except av.FFmpegError as error:
            for index, track in tracks.items():
                errors[index].append(library_message(error))
                self._decode(None, track, errors[index])

    def _decode(self, packet: Any | None, track: _VideoTrack | _AudioTrack, errors: list[str]) -> None:
        try:
            for frame in track.stream.codec_context.decode(packet):
                if not track.done:
                    track.take(frame)
        except DecodeError:
            raise
        except (av.FFmpegError, ValueError) as error:
            errors.append(library_message(error))

    @staticmethod
    def _far_past(packet: Any, track: _VideoTrack | _AudioTrack, plan: Plan) -> bool:
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return False
        return bool(stamp * track.tick_s - plan.facts.origin_s > plan.end_s + INTERLEAVE_S)
