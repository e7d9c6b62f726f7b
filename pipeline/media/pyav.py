"""Decoding with PyAV: one pass over the packets, video and audio together, on one thread.

Everything that the wanted frames depend on is decoded, but only the wanted ones are converted to RGB. A clip deep
inside a long file is reached by one seek to the place where, by the scan of its packets, reading has to begin. A
packet that does not decode is counted and left out.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from caeav.pipeline.media.audio import FILTER_S, SILENT_PEAK, Audio, AudioLine
from caeav.pipeline.media.clip import DecodeError
from caeav.pipeline.media.clock import Clock
from caeav.pipeline.media.decoder import BaseDecoder
from caeav.pipeline.media.frames import DisplayOrder, Frames, orientation_of
from caeav.pipeline.media.mixing import Mixer, keep_alive
from caeav.pipeline.media.probe import library_message, open_media
from caeav.pipeline.media.scan import INTERLEAVE_S, PREROLL_S, SEEK_FROM_S, Plan, seek_to

SKIPPING = ("h264", "hevc")
"""Codecs whose unreferenced frames are skipped away from the wanted ones, which saves a third of the work."""
NEAR_GAPS = 4.0  # this many frames before a wanted one are always decoded, in case that one is damaged
WARM_S = 30.0  # audio further before the clip is not decoded: no codec remembers that long


class _VideoTrack:
    """Picks the wanted frames out of the frames of one stream."""

    def __init__(self, plan: Plan, stream: Any, skip: bool) -> None:
        fps = plan.facts.video.fps if plan.facts.video else None
        self.wanted_s = plan.wanted_s
        self.found = Frames.none(len(self.wanted_s))
        self.first_s: float | None = None
        self._order = DisplayOrder(1.0 / fps if fps else 0.04)
        self._start_s = plan.start_s
        self._origin_s = plan.facts.origin_s
        self._limits = plan.limits
        self._next = 0
        self._shown: tuple[float, Any] | None = None
        self._converted: tuple[Any, Any] = (None, None)
        self._size: tuple[int, int] | None = None
        self._converter = VideoReformatter()  # one for all: frames would each set up their own
        self.stream = stream
        self.tick_s = float(stream.time_base)
        self._near_s = _near_wanted(plan) if skip else []
        self._key_s = plan.scan.key_s
        self._skips = self.skipped = False

    def wants(self, packet: Any) -> bool:
        """Whether a packet is needed: not before the last key frame ahead of a clip far from where reading began."""
        if self._key_s is None or packet.pts is None:
            return True
        if packet.is_keyframe and packet.pts * self.tick_s - self._origin_s >= self._key_s - 1e-6:
            self._key_s = None
        return self._key_s is None

    def aim(self, packet: Any) -> None:
        """Let the codec skip the packet's frame if no other frame needs it and none near it is wanted."""
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
        """Whether reading began after the first wanted frame."""
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
            self._keep(self._shown, None)

    def _settle(self, ready: list[tuple[float, Any]]) -> None:
        for time_s, frame in ready:
            self.first_s = time_s if self.first_s is None else self.first_s
            while not self.done and self.wanted_s[self._next] + 1e-6 < time_s:
                self._keep(*((self._shown, time_s) if self._shown else ((time_s, frame), None)))
            self._shown = (time_s, frame)
            self.found.concealed += bool(frame.is_corrupt) and time_s >= self._start_s

    def _keep(self, shown: tuple[float, Any], until_s: float | None) -> None:
        time_s, frame = shown
        if self._converted[0] is not frame:
            self._converted = (frame, self._to_rgb(frame))
        self.found.images[self._next] = self._converted[1]
        self.found.shown_s[self._next], self.found.until_s[self._next] = time_s, until_s
        self._next += 1

    def _to_rgb(self, frame: Any) -> Any:
        self._size = self._size or (frame.width, frame.height)
        orientation = orientation_of(frame)
        self.found.record_orientation(orientation)
        self.found.resized += (frame.width, frame.height) != self._size
        width, height = self._size
        image: Any = self._converter.reformat(frame, width, height, "rgb24").to_ndarray()
        return orientation.apply(image)


def _near_wanted(plan: Plan) -> list[tuple[float, float]]:
    """For each wanted frame, from when to when all frames are decoded; empty: none is ever skipped."""
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
    """Lines up the audio of one stream until it covers the clip."""

    def __init__(self, plan: Plan, stream: Any) -> None:
        keep_s = (plan.start_s - SEEK_FROM_S - PREROLL_S, plan.end_s + 2 * PREROLL_S)
        self.line = AudioLine(float(stream.time_base), keep_s, entered=plan.scan.seek_s is not None)
        self._start_s, self._end_s, self._until_s = plan.start_s, plan.end_s, plan.end_s + 2 * FILTER_S
        self._mixer = Mixer()
        self._rate_hz = 0
        self.early: list[str] = []  # errors before the clip
        self._origin_s = plan.facts.origin_s
        self._limits = plan.limits
        self.stream = stream
        self.tick_s = float(stream.time_base)

    @property
    def done(self) -> bool:
        return self.line.end_s is not None and self.line.end_s >= self._until_s

    def collected(self) -> Audio:
        """What was collected; if nothing was, errors before the clip say why."""
        if self.line.end_s is None:
            self.line.errors.extend(self.early)
        return self.line.audio()

    def wants(self, packet: Any) -> bool:
        """Whether a packet is needed: not so far before the clip that it cannot influence it."""
        return packet.pts is None or packet.pts * self.tick_s - self._origin_s > self._start_s - WARM_S

    def concerns(self, packet: Any) -> bool:
        """Whether a packet that does not decode is audio lost to the clip, not from before it."""
        if packet is None or packet.pts is None:
            return True
        end_s = (packet.pts + (packet.duration or 0)) * self.tick_s - self._origin_s
        return end_s > self._start_s or self._start_s == 0

    def take(self, frame: Any) -> None:
        self._limits.check("audio channels", frame.layout.nb_channels, self._limits.audio_channels)
        self._limits.check("audio rate", frame.sample_rate, self._limits.audio_rate_hz, " Hz")
        mono = self._mixer.mono(frame)
        self._rate_hz = self._rate_hz or frame.sample_rate
        # after a change of rate containers go on counting time by the old rate
        timeless = frame.pts is None or frame.sample_rate != self._rate_hz
        self.line.add(None if timeless else frame.time - self._origin_s, mono, frame.sample_rate)
        if frame.layout.nb_channels > 1 and float(np.abs(mono).max(initial=0.0)) < SILENT_PEAK:
            end_s = self.line.end_s or 0.0
            if end_s > self._start_s and end_s - mono.size / frame.sample_rate < self._end_s:
                self.line.loudest = max(self.line.loudest, self._mixer.loudest(frame))


class PyAVDecoder(BaseDecoder):
    """FFmpeg through PyAV, which brings its own libraries."""

    name = "pyav"
    follows_changes = True

    def version(self) -> str:
        """PyAV's version and that of the FFmpeg codecs it carries."""
        codecs = ".".join(map(str, av.library_versions["libavcodec"]))
        return f"av {av.__version__} (libavcodec {codecs})"

    def read(self, plan: Plan) -> tuple[Frames | None, Audio | None]:
        """Frames and audio in one pass, and in a second one if the first went astray or met damage."""
        place_s = plan.scan.seek_s
        video, audio = self._pass(plan, place_s)
        if (
            place_s is not None
            and video is not None
            and video.late
            and plan.scan.expected_s(plan.wanted_s[0])
        ):
            place_s = None  # what should be a key frame is not
            video, audio = self._pass(plan, None)
        if video and video.skipped and (video.found.errors or video.found.concealed):
            # a codec conceals losses with neighbouring frames, so these must not be skipped
            video, audio = self._pass(plan, place_s, skip=False)
        return video.found if video else None, audio.collected() if audio else None

    def _pass(
        self, plan: Plan, place_s: float | None, *, skip: bool = True
    ) -> tuple[_VideoTrack | None, _AudioTrack | None]:
        """Read once, from a key frame at or before `place_s`, or from the file's start."""
        facts = plan.facts
        with open_media(facts.path, plan.limits) as container:
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
            if place_s is not None:
                seek_to(container, facts, place_s)
            if tracks:  # demuxing no stream would be demuxing all
                self._demux(container, tracks, plan)
            if video:
                video.finish()
            return video, audio

    def _demux(self, container: Any, tracks: dict[int, _VideoTrack | _AudioTrack], plan: Plan) -> None:
        errors = {
            i: (t.found.errors if isinstance(t, _VideoTrack) else t.line.errors) for i, t in tracks.items()
        }
        packets, clock = 0, Clock(plan.facts, plan.facts.joined)
        try:
            for packet in container.demux([track.stream for track in tracks.values()]):
                packets += 1
                plan.limits.check("packets read for one clip", packets, plan.limits.packets)
                index = packet.stream.index  # a flush packet has no stream_index of its own
                track = tracks[index]
                if packet.size:
                    clock.straighten(packet, track.tick_s)
                elif packet.pts is not None:
                    continue  # Theora's way to repeat a frame; PyAV takes it for the end
                if isinstance(track, _VideoTrack):
                    track.aim(packet)
                if not track.done and (packet.size == 0 or track.wants(packet)):
                    self._decode(packet, track, errors[index], clock)
                if all(track.done for track in tracks.values()):
                    return
                if self._far_past(packet, track, plan):
                    break  # streams that are not done have ended: the rest is what their codecs hold
            else:
                return
            for index, track in tracks.items():
                if not track.done:
                    self._decode(None, track, errors[index], clock)
        except av.FFmpegError as error:
            for index, track in tracks.items():
                errors[index].append(library_message(error))
                self._decode(None, track, errors[index], clock)

    def _decode(
        self, packet: Any | None, track: _VideoTrack | _AudioTrack, errors: list[str], clock: Clock
    ) -> None:
        try:
            frames = track.stream.codec_context.decode(packet)
            if isinstance(track, _AudioTrack):
                for frame in frames:
                    keep_alive(frame.layout)  # of dropped frames, too
            for frame in frames:
                if packet is None:  # without a packet PyAV does not know the frame's clock
                    frame.time_base = track.stream.time_base
                if not track.done and (track.stream.index, frame.pts) not in clock.left_out:
                    track.take(frame)
        except DecodeError:
            raise
        except (av.FFmpegError, ValueError) as error:
            if isinstance(track, _AudioTrack) and not track.concerns(packet):
                errors = track.early
            errors.append(library_message(error))

    @staticmethod
    def _far_past(packet: Any, track: _VideoTrack | _AudioTrack, plan: Plan) -> bool:
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None:
            return False
        return bool(stamp * track.tick_s - plan.facts.origin_s > plan.end_s + INTERLEAVE_S)
