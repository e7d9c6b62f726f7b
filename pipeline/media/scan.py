"""What the packets of a clip promise, read without decoding: the yardstick every decoder is measured with.

A decoder may drop pictures or sound without a word; the demuxed packets say what should have come. Not
trusted to be complete either: a truncated file has fewer packets than its header claims (`verify.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import av
import numpy as np

from caeav.pipeline.media.clip import DecodeError, Limits
from caeav.pipeline.media.clock import Clock
from caeav.pipeline.media.probe import MediaFacts, library_message, opened

SEEK_FROM_S = 5.0  # before this, reading from the start is cheaper than a seek and always exact
PREROLL_S = 1.0  # codecs need some packets before the first good sample (AAC 1, Opus 80 ms)
UNINDEXED = ("h264", "hevc", "m4v", "mpegvideo")  # bare streams of pictures, which no seek goes into
REORDER_S = 1.0  # packets are read this far past the clip's end, since they come in decoding order
INTERLEAVE_S = 10.0  # a stream this far behind the others has ended
ROUNDING_S = 0.1  # a stream's start by its header and by its first packet


@dataclass
class Scan:
    """Packets of the chosen streams around a clip, in media time.

    video_s: sorted times of pictures. audio_s: seconds of sound inside the clip. `*_end_s`: where the last
    packet seen ends. at_end: the file's end was reached. video_over: no picture comes after these.
    seek_s: where reading has to begin, None for the file's start. key_s: the last key picture before the first wanted
    one, where reading begins far from it. parts: how many joined files were met. left_out: packets whose clock goes
    back in a container that cannot be joined. moved: packets that the index of an AVI puts elsewhere than they
    are counted. torn_s: times of pictures that lack others they are made from. encrypted: streams whose packets are.
    rate_changes: packets of sound hold no whole number of samples at the header's rate. holes: sound is missing between
    packets. cut: the container's edit list leaves pictures out.
    """

    video_s: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    audio_packets: int = 0
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
        """Times between consecutive pictures."""
        return np.diff(np.asarray(self.video_s, dtype=np.float64))

    def expected_s(self, time_s: float) -> float | None:
        """Time of the picture shown at `time_s`, or None before the first."""
        at = bisect_right(self.video_s, time_s + 1e-6)
        return self.video_s[at - 1] if at else None

    def next_s(self, shown_s: float) -> float | None:
        """Time of the first picture after `shown_s`, or None when no packet promises one."""
        at = bisect_right(self.video_s, shown_s + 1e-6)
        return self.video_s[at] if at < len(self.video_s) else None


def go_to(container: Any, facts: MediaFacts, time_s: float) -> bool:
    """Go to a key frame at or before `time_s`; False when left at the start, since the file cannot be gone into.

    Raises `DecodeError` for a file in which neither place can be gone to.
    """
    try:
        container.seek(int((time_s + facts.origin_s) * av.time_base), backward=True)
    except av.FFmpegError:
        if facts.container in UNINDEXED:
            return False  # it was opened at its start
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

    A seek that lands behind the clip's start in one of the streams is tried again from further before, then the file is
    read from its start, as it is in any case with `from_start`. `first_wanted_s`: time of the first wanted picture.
    """
    whole = from_start or start_s < SEEK_FROM_S or facts.joined
    whole = whole or (facts.video is not None and facts.video.carries_state)
    places = [] if whole else [start_s - PREROLL_S, start_s - PREROLL_S - INTERLEAVE_S]
    for place_s in [*places, None]:
        if place_s is not None and place_s <= 0:
            continue
        found = _read(facts, start_s, first_wanted_s, seconds, place_s, limits)
        if found.seek_s is None or not _late(found, facts, start_s, first_wanted_s):
            break
    if whole or found.seek_s is not None:
        found.key_s = None  # reading begins near the clip, or every packet counts
    return found


def _late(found: Scan, facts: MediaFacts, start_s: float, first_wanted_s: float) -> bool:
    """Whether reading began behind something of the clip; a stream without packets is over if the other has some."""
    no_video = facts.video is not None and (not found.video_s or found.video_s[0] > first_wanted_s)
    if facts.audio is None or no_video:
        return no_video
    if found.audio_start_s is None:
        return facts.video is None
    return found.audio_start_s > max(start_s, facts.audio.start_s + ROUNDING_S)


def _read(
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
    heard: list[tuple[float, float]] = []
    missed_s: list[float] = []
    clock = Clock(facts, facts.joined)
    count = 0
    broken: int | None = None  # pictures before the first key picture after a seek: they do not decode
    with opened(facts.path, limits) as container:
        tick_s = {i: float(container.streams[i].time_base) for i in chosen}
        if place_s is not None and go_to(container, facts, place_s):
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
                if packet.is_discard:  # outside the container's edit list: decoded, but never shown
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
                    found.audio_packets += 1
                    found.audio_start_s = time_s if found.audio_start_s is None else found.audio_start_s
                    found.audio_end_s = max(found.audio_end_s or 0.0, time_s + length_s)
                    found.rate_changes |= _is_uneven(length_s, tick, facts)
                    heard.append((time_s, length_s))
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
        for index, stamp, ticks in clock.missed():  # promised by the index alone
            count += 1
            limits.check("packets read for one clip", count, limits.packets)
            time_s, length_s = stamp * tick_s[index] - facts.origin_s, ticks * tick_s[index]
            if facts.video and index == facts.video.index:
                missed_s.append(time_s)
            else:
                heard.append((time_s, length_s))
    found.video_s = sorted(found.video_s[broken or 0 :])
    if missed_s and found.video_s:
        first_s = found.video_s[0] if found.seek_s is not None else -float("inf")
        found.video_s = sorted([*found.video_s, *(time_s for time_s in missed_s if time_s > first_s)])
    found.video_over = found.at_end or (facts.video is not None and facts.video.index in waiting)
    spans = _sounding(sorted(heard) if clock.moved else heard)
    found.holes = any(b - a > ROUNDING_S for (_, a), (b, _) in pairwise(spans))
    sure = spans[:-1] if found.at_end else spans
    inside = [(max(a, start_s), min(b, end_s)) for a, b in sure]
    found.audio_s = sum(b - a for a, b in merged([(a, b) for a, b in inside if b > a]))
    found.parts, found.encrypted = clock.parts, frozenset(encrypted)
    found.left_out, found.moved = len(clock.left_out), clock.moved
    return found


def _sounding(heard: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """From when to when each packet (time, length) of sound is heard.

    A container gives a packet the time until the next one as its length, and the file's last one a usual length: too
    much before a hole and at the end. Or it gives none (WavPack in Matroska): then that time is its length.
    """
    usual_s = float(np.median([length_s for _, length_s in heard])) if heard else 0.0
    if usual_s == 0 and len(heard) > 1:
        steps_s = [b - a for (a, _), (b, _) in pairwise(heard)]
        usual_s = float(np.median(steps_s))
        heard = [(at, step_s) for (at, _), step_s in zip(heard, [*steps_s, usual_s], strict=True)]
    return [(time_s, time_s + min(length_s, 2 * usual_s)) for time_s, length_s in heard]


def _is_uneven(length_s: float, tick_s: float, facts: MediaFacts) -> bool:
    """Whether a packet of sound, by a clock that counts samples, holds a fraction of one."""
    rate_hz = facts.audio.rate_hz if facts.audio else 0
    samples = length_s * rate_hz
    return 0 < tick_s * rate_hz < 0.01 and abs(samples - round(samples)) > 0.02


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans in order, overlapping ones joined."""
    joined: list[tuple[float, float]] = []
    for start_s, end_s in sorted(spans):
        if joined and start_s <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end_s))
        else:
            joined.append((start_s, end_s))
    return joined
