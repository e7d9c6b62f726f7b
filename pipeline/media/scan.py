"""What the packets of a clip promise, read without decoding: the yardstick for every decoder's output.

A decoder may drop frames or audio silently; the demuxed packets say what should have come. They are not complete
either: a truncated file has fewer packets than its header claims, which `checks.py` notes.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import av
import numpy as np

from caeav.pipeline.media.clip import DecodeError, Limits, Sampling
from caeav.pipeline.media.clock import Clock
from caeav.pipeline.media.probe import MediaFacts, library_message, open_media

SEEK_FROM_S = 5.0  # for an earlier clip, reading from the start is cheaper than a seek and always exact
PREROLL_S = 1.0  # codecs need some packets before the first good sample (AAC 1 packet, Opus 80 ms)
UNINDEXED = ("h264", "hevc", "m4v", "mpegvideo")  # bare video streams, in which FFmpeg cannot seek
REORDER_S = 1.0  # packets are read this far past the clip's end, since they come in decoding order
INTERLEAVE_S = 10.0  # a stream this far behind the others has ended
ROUNDING_S = 0.1  # header and first packet may differ by this about a stream's start


@dataclass
class Scan:
    """Packets of the chosen streams around a clip, in media time.

    video_s: sorted times of frames. audio_s: seconds of audio inside the clip. video_end_s, audio_end_s: where the last
    packet read ends. at_end: the file's end was reached. video_over: no frame comes after these.
    seek_s: where reading has to begin, None for the file's start. key_s: the last key frame before the first wanted
    frame, if reading begins far from it. parts: how many joined files were met. left_out: packets that go back in time
    in a container that cannot be joined. moved: packets that an AVI's index puts elsewhere than its demuxer counts.
    torn_s: times of frames that lack others they depend on. encrypted: streams with encrypted packets. rate_changes:
    some packets hold no whole number of samples at the header's rate. holes: audio is missing between packets.
    cut: the container's edit list leaves frames out.
    """

    video_s: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    audio_start_s: float | None = None
    video_end_s: float | None = None
    audio_end_s: float | None = None
    at_end: bool = False
    video_over: bool = False
    error: str = ""
    seek_s: float | None = None
    key_s: float | None = None
    parts: int = 1
    encrypted: frozenset[int] = frozenset()
    rate_changes: bool = False
    left_out: int = 0
    moved: int = 0
    torn_s: list[float] = field(default_factory=list)
    holes: bool = False
    cut: bool = False

    @property
    def gaps_s(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Times between consecutive frames."""
        return np.diff(np.asarray(self.video_s, dtype=np.float64))

    def expected_s(self, time_s: float) -> float | None:
        """Time of the frame shown at `time_s`; None before the first."""
        at = bisect_right(self.video_s, time_s + 1e-6)
        return self.video_s[at - 1] if at else None

    def next_s(self, shown_s: float) -> float | None:
        """Time of the first frame after `shown_s`; None when no packet promises one."""
        at = bisect_right(self.video_s, shown_s + 1e-6)
        return self.video_s[at] if at < len(self.video_s) else None


def seek_to(container: Any, facts: MediaFacts, time_s: float) -> bool:
    """Seek to a key frame at or before `time_s`; False when the file has no seeking and is left at its start.

    Raises `DecodeError` when neither place can be reached.
    """
    try:
        container.seek(int((time_s + facts.origin_s) * av.time_base), backward=True)
    except av.FFmpegError:
        if facts.container in UNINDEXED:
            return False  # it is still at its start
        try:
            container.seek(int(facts.origin_s * av.time_base), backward=True)
        except av.FFmpegError as error:
            raise DecodeError(f"no place in the file can be gone to: {library_message(error)}") from error
        return False
    return True


def scan(
    facts: MediaFacts,
    start_s: float,
    first_wanted_s: float,
    seconds: float,
    limits: Limits,
    *,
    from_start: bool = False,
) -> Scan:
    """Demux the packets of one clip; an error while reading ends the scan and is kept in `error`.

    A seek that lands after the clip's start in one of the streams is repeated from an earlier place; if that fails too,
    or with `from_start`, the file is read from its start. first_wanted_s: time of the first wanted frame.
    """
    whole = from_start or start_s < SEEK_FROM_S or facts.joined
    whole = whole or (facts.video is not None and facts.video.carries_state)
    places = [] if whole else [start_s - PREROLL_S, start_s - PREROLL_S - INTERLEAVE_S]
    for place_s in [*places, None]:
        if place_s is not None and place_s <= 0:
            continue
        found = _read_packets(facts, start_s, first_wanted_s, seconds, place_s, limits)
        if found.seek_s is None or not _began_late(found, facts, start_s, first_wanted_s):
            break
    if whole or found.seek_s is not None:
        found.key_s = None  # reading begins near the clip, or every packet counts
    return found


def _began_late(found: Scan, facts: MediaFacts, start_s: float, first_wanted_s: float) -> bool:
    """Whether reading began after part of the clip; a stream without packets is over if the other one has some."""
    no_video = facts.video is not None and (not found.video_s or found.video_s[0] > first_wanted_s)
    if facts.audio is None or no_video:
        return no_video
    if found.audio_start_s is None:
        return facts.video is None
    return found.audio_start_s > max(start_s, facts.audio.start_s + ROUNDING_S)


def _read_packets(
    facts: MediaFacts,
    start_s: float,
    first_wanted_s: float,
    seconds: float,
    place_s: float | None,
    limits: Limits,
) -> Scan:
    found = Scan()
    end_s = start_s + seconds
    chosen = {s.index for s in (facts.video, facts.audio) if s}
    waiting = set(chosen)
    encrypted: set[int] = set()
    audio_spans: list[tuple[float, float]] = []
    missed_s: list[float] = []
    clock = Clock(facts, facts.joined)
    count = 0
    broken: int | None = None  # number of frames before the first key frame after a seek, which do not decode
    with open_media(facts.path, limits) as container:
        tick_s = {i: float(container.streams[i].time_base) for i in chosen}
        if place_s is not None and seek_to(container, facts, place_s):
            found.seek_s = place_s
        try:
            for packet in container.demux([container.streams[i] for i in sorted(chosen)]):
                if packet.size == 0:
                    continue  # the flush packet at the end
                count += 1
                limits.check("packets read for one clip", count, limits.packets)
                index = packet.stream_index
                tick = tick_s[index]
                if not clock.straighten(packet, tick):
                    continue
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is None:
                    continue
                if packet.has_sidedata("encryption_info"):
                    encrypted.add(index)
                time_s = stamp * tick - facts.origin_s
                length_s = (packet.duration or 0) * tick
                found.cut |= packet.is_discard and facts.video is not None and index == facts.video.index
                if packet.is_discard:  # outside the container's edit list: decoded but never shown
                    pass
                elif facts.video and index == facts.video.index:
                    if packet.is_keyframe and broken is None:
                        broken = len(found.video_s) if found.seek_s is not None else 0
                    found.video_s.append(time_s)
                    if clock.is_torn(index):
                        found.torn_s.append(time_s)
                    found.video_end_s = max(found.video_end_s or 0.0, time_s + length_s)
                    if packet.is_keyframe and time_s <= first_wanted_s:
                        found.key_s = time_s
                else:
                    found.audio_start_s = time_s if found.audio_start_s is None else found.audio_start_s
                    found.audio_end_s = max(found.audio_end_s or 0.0, time_s + length_s)
                    found.rate_changes |= _has_partial_sample(length_s, tick, facts)
                    audio_spans.append((time_s, length_s))
                past_s = min(time_s, (packet.dts or stamp) * tick - facts.origin_s) - end_s
                if past_s > REORDER_S:
                    waiting.discard(index)
                if not waiting or past_s > INTERLEAVE_S:
                    break
            else:
                found.at_end = True
        except av.FFmpegError as error:
            found.error = library_message(error)
            found.at_end = True
        for index, stamp, ticks in clock.missed():  # promised only by the index
            count += 1
            limits.check("packets read for one clip", count, limits.packets)
            time_s, length_s = stamp * tick_s[index] - facts.origin_s, ticks * tick_s[index]
            if facts.video and index == facts.video.index:
                missed_s.append(time_s)
            else:
                audio_spans.append((time_s, length_s))
    found.video_s = sorted(found.video_s[broken or 0 :])
    if missed_s and found.video_s:
        first_s = found.video_s[0] if found.seek_s is not None else -float("inf")
        found.video_s = sorted([*found.video_s, *(time_s for time_s in missed_s if time_s > first_s)])
    found.video_over = found.at_end or (facts.video is not None and facts.video.index in waiting)
    spans = _audible_spans(sorted(audio_spans) if clock.moved else audio_spans)
    found.holes = any(b - a > ROUNDING_S for (_, a), (b, _) in pairwise(spans))
    sure = spans[:-1] if found.at_end else spans
    inside = [(max(a, start_s), min(b, end_s)) for a, b in sure]
    found.audio_s = sum(b - a for a, b in merge_spans([(a, b) for a, b in inside if b > a]))
    found.parts, found.encrypted = clock.parts, frozenset(encrypted)
    found.left_out, found.moved = len(clock.left_out), clock.moved
    return found


def _audible_spans(audio_spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """When each audio packet (time, length) begins and ends.

    Containers take the time until the next packet for its length, and a usual length for the file's last packet: too
    long before a hole and at the end. Where they give no lengths (WavPack in Matroska) that time is used here, too.
    """
    usual_s = float(np.median([length_s for _, length_s in audio_spans])) if audio_spans else 0.0
    if usual_s == 0 and len(audio_spans) > 1:
        steps_s = [b - a for (a, _), (b, _) in pairwise(audio_spans)]
        usual_s = float(np.median(steps_s))
        audio_spans = [(at, step_s) for (at, _), step_s in zip(audio_spans, [*steps_s, usual_s], strict=True)]
    return [(time_s, time_s + min(length_s, 2 * usual_s)) for time_s, length_s in audio_spans]


def _has_partial_sample(length_s: float, tick_s: float, facts: MediaFacts) -> bool:
    """Whether an audio packet holds a fraction of a sample, by a clock that is fine enough to tell."""
    rate_hz = facts.audio.rate_hz if facts.audio else 0
    samples = length_s * rate_hz
    return 0 < tick_s * rate_hz < 0.01 and abs(samples - round(samples)) > 0.02


def merge_spans(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The spans in order, with overlapping ones joined."""
    joined: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if joined and start_s <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end_s))
        else:
            joined.append((start_s, end_s))
    return joined


@dataclass(frozen=True)
class Plan:
    """One clip to read: what its file and its packets promise, and the wanted media times."""

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
        """Media times of the wanted frames, in ascending order."""
        return self.sampling.centres_s(self.start_s)

    @property
    def frame_gap_s(self) -> float:
        """Usual time between two frames."""
        if len(self.scan.video_s) > 1:
            return float(np.median(self.scan.gaps_s))
        return 1.0 / self.facts.video.fps if self.facts.video and self.facts.video.fps else 0.04

    @property
    def video_end_s(self) -> float | None:
        """Media time at which the last frame stops being shown; None while the clip ends before it."""
        if not self.scan.video_over or not self.scan.video_s:
            return None
        return max(self.scan.video_s[-1] + self.frame_gap_s, self.scan.video_end_s or 0.0)

    def shown_until_s(self, shown_s: float) -> float:
        """When a stream's last frame, stamped `shown_s`, stops being shown: by its packet, at least a usual gap."""
        last = self.scan.video_s and abs(shown_s - self.scan.video_s[-1]) < self.frame_gap_s / 2
        packet_end_s = self.scan.video_end_s if last else None
        return max(shown_s + self.frame_gap_s, packet_end_s or 0.0)

    def is_stale(self, time_s: float, shown_s: float, until_s: float | None) -> bool:
        """Whether a frame is the stream's last and over at `time_s`; `until_s`: when another frame replaced it."""
        goes_on = until_s is not None or self.scan.next_s(shown_s) is not None
        return not goes_on and time_s >= self.shown_until_s(shown_s)
