"""Stamps that start anew: files joined end to end are one film whose parts follow each other.

Recordings are joined by `cat` (MPEG-TS, MPEG-PS, FLAC) or chained (Ogg); then the container's clock jumps.
As in the `ffmpeg` command a stream whose clock goes back, or ahead by more than ten seconds together with all
others, goes on where it was. Packets are given straight stamps right after demuxing, before anything reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av

from caeav.pipeline.media.avi import AviIndex
from caeav.pipeline.media.clip import Limits
from caeav.pipeline.media.probe import MediaFacts, library_message, opened

RESTARTING = ("mpegts", "mpeg", "ogg", "flac", "aac")
"""Containers that stay readable when joined, and keep the stamps of the parts; AAC counts on at the first rate."""
ADTS_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
ADTS_BYTES = 7
ADTS_SAMPLES = 1024  # of each raw block of a packet
FLAC_HEADER = b"fLaC\0\0\0\x22"  # its first block, which is always this long
LATE = ("h264", "hevc")
BACK_S = 0.1  # a clock that goes back by less is rounding
AHEAD_S = 10.0  # a clock that jumps ahead by less is a gap in the recording
OVERLAP_S = 1.0  # how far the streams of one part may end apart
WALK_BYTES = 2**30  # larger files are not read to their end for the sake of one clip


class Clock:
    """Gives the packets of one reading of a file straight stamps; streams share the parts they lie in.

    Of a file that is known to be one piece nothing is changed: after a seek stamps may be rough. Other containers
    cannot be joined: there what goes back is left out, as the `ffmpeg` command does. AVI knows no time of showing, only
    the order of decoding, and what a demuxer makes of it for H.264 is one picture late.
    """

    def __init__(self, facts: MediaFacts, restarts: bool) -> None:
        self._restarts = restarts
        self._by_order = facts.container == "avi" and facts.video is not None and facts.video.codec in LATE
        self._index = AviIndex() if facts.container == "avi" else None
        self._once = facts.container not in RESTARTING
        self.left_out: set[tuple[int, int | None]] = set()  # stream and stamp of what goes back
        self._shifts_s = [0.0]  # of each part
        self._counts = facts.container == "aac"
        self._rate_hz = 0  # of the last packet, where packets tell
        self._lengths_s = (
            {0: facts.audio.duration_s or 0.0} if facts.container == "flac" and facts.audio else {}
        )
        self._part: dict[int, int] = {}  # of each stream
        self._next_s: dict[int, float] = {}  # where each stream should go on

    @property
    def parts(self) -> int:
        """How many parts were met so far."""
        return len(self._shifts_s)

    @property
    def moved(self) -> int:
        """How many packets of an AVI lay elsewhere than counted."""
        return self._index.moved if self._index else 0

    def is_torn(self, index: int) -> bool:
        """Whether a stream's pictures lack those they are made from, since an AVI's index has more than its bytes."""
        return self._index is not None and index in self._index.torn

    def missed(self) -> Iterator[tuple[int, int, int]]:
        """Stream, stamp and length in ticks of packets that an AVI's index has and its bytes have not."""
        return self._index.missed() if self._index else iter(())

    def straighten(self, packet: Any, tick_s: float) -> bool:
        """Shift the packet's stamps into the part it belongs to; `tick_s` is its stream's time base.

        False for a packet of which nothing is to be shown or heard; others may need it to be decoded.
        """
        index = packet.stream_index
        if self._index:
            self._index.shift(packet)
        if self._by_order and packet.dts is not None:
            packet.pts = packet.dts
        if not self._restarts:
            if self._once and packet.dts is not None and self._goes_back(index, packet.dts * tick_s):
                self.left_out.add((index, packet.pts))
                return False
            return True
        if self._counts:
            self._count(packet, tick_s)
            return True
        part = self._part.get(index, self.parts - 1)
        stamp = packet.dts
        if stamp is None and packet.stream.type == "audio":
            stamp = packet.pts  # pictures need not be in order
        if stamp is None and self._lengths_s:
            self._lengths_s[self.parts] = _flac_length_s(bytes(packet))
        if stamp is not None:
            length_s = (packet.duration or 0) * tick_s
            part = self._part[index] = self._part_of(index, part, stamp * tick_s, length_s)
            self._next_s[index] = stamp * tick_s + self._shifts_s[part] + length_s
        ticks = round(self._shifts_s[part] / tick_s)
        if ticks:
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        return True

    def _count(self, packet: Any, tick_s: float) -> None:
        """Stamp a packet of AAC by the samples before it: after a change of rate its demuxer counts wrongly."""
        head = bytes(memoryview(packet)[:ADTS_BYTES])
        rate_hz = _adts_hz(head) or self._rate_hz
        if not rate_hz or packet.pts is None or len(head) < ADTS_BYTES:
            return
        if self._rate_hz and rate_hz != self._rate_hz:
            self._shifts_s.append(0.0)
        self._rate_hz = rate_hz
        at_s = self._next_s.get(packet.stream_index, packet.pts * tick_s)
        length_s = ADTS_SAMPLES * ((head[6] & 3) + 1) / rate_hz
        packet.pts = packet.dts = round(at_s / tick_s)
        packet.duration = round(length_s / tick_s)
        self._next_s[packet.stream_index] = at_s + length_s

    def _goes_back(self, index: int, time_s: float) -> bool:
        newest_s = self._next_s.get(index, time_s)
        back = time_s < newest_s - (BACK_S if index in self._part else OVERLAP_S)
        self._next_s[index] = max(newest_s, time_s)
        if back:
            self._part[index] = 0
        return back

    def _part_of(self, index: int, part: int, at_s: float, length_s: float) -> int:
        next_s = self._next_s.get(index)
        if next_s is None or self._goes_on(at_s + self._shifts_s[part], next_s, BACK_S + length_s):
            return part
        newest = self.parts - 1
        time_s = at_s + self._shifts_s[newest]
        if part == newest or not self._goes_on(time_s, next_s, OVERLAP_S):
            end_s = self._shifts_s[newest] + self._lengths_s.get(newest, 0.0)
            if next_s < end_s < next_s + OVERLAP_S:
                next_s = end_s
            self._shifts_s.append(next_s - at_s)
            return newest + 1
        if (
            time_s < next_s - BACK_S
        ):  # this stream of the old part ended later: the new part begins later for all
            self._shifts_s[newest] += next_s - time_s
        return newest

    def _goes_on(self, time_s: float, next_s: float, back_s: float) -> bool:
        """Whether a stream that should go on at `next_s` may do so at `time_s`: also where others are already."""
        return next_s - back_s <= time_s <= max(next_s, *self._next_s.values()) + AHEAD_S


def _adts_hz(head: bytes) -> int:
    """The sample rate in the first bytes of a packet of bare AAC; 0 where there is none."""
    number = head[2] >> 2 & 15 if len(head) >= ADTS_BYTES else len(ADTS_HZ)
    return ADTS_HZ[number] if number < len(ADTS_HZ) else 0


def _flac_length_s(packet: bytes) -> float:
    """How long the part is whose header lies in a packet of FLAC; 0 where it does not say.

    A part's last frames come as one packet without a stamp, the next part's header in it.
    """
    at = packet.find(FLAC_HEADER) + len(FLAC_HEADER)
    if at < len(FLAC_HEADER) or len(packet) < at + 18:
        return 0.0
    told = int.from_bytes(packet[at + 10 : at + 18], "big")
    rate_hz, samples = told >> 44, told & (1 << 36) - 1
    return samples / rate_hz if rate_hz else 0.0


@dataclass(frozen=True)
class Walked:
    """What a whole file's packets say: how many parts it has, its end in media time, and why reading ended there."""

    parts: int
    end_s: float
    error: str = ""


def walked(facts: MediaFacts, limits: Limits) -> Walked | None:
    """Read all stamps of a file that may be joined; None for any other, and for one too large to be read for this.

    The answer is kept for the next clip of the same file.
    """
    if facts.container not in RESTARTING or facts.size_bytes > WALK_BYTES:
        return None
    return _walked(facts, limits, Path(facts.path).stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _walked(facts: MediaFacts, limits: Limits, _changed_ns: int) -> Walked:
    clock, end_s, stopped = Clock(facts, restarts=True), 0.0, ""
    chosen = sorted(s.index for s in (facts.video, facts.audio) if s)
    with opened(facts.path, limits) as container:
        tick_s = {i: float(container.streams[i].time_base) for i in chosen}
        try:
            for packet in container.demux([container.streams[i] for i in chosen]):
                if packet.size == 0:
                    continue
                tick = tick_s[packet.stream_index]
                clock.straighten(packet, tick)
                if packet.pts is not None:
                    end_s = max(end_s, (packet.pts + (packet.duration or 0)) * tick - facts.origin_s)
        except av.FFmpegError as error:  # what can be read of it is what there is
            stopped = library_message(error)
    return Walked(clock.parts, end_s, stopped)
