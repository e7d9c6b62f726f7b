"""Time stamps that can be trusted: packets get corrected ones right after demuxing, before anything reads them.

Two kinds of file need it. Recordings joined by `cat` (MPEG-TS, MPEG-PS, FLAC) or chained (Ogg) have a clock that
jumps: as in the `ffmpeg` command, a stream whose clock goes back, or ahead by more than ten seconds together with all
others, goes on where it was. AVI keeps no times at all: its demuxer counts the packets it meets, so that all frames
and samples after a damaged stretch come too early. Its index says which packet begins at which byte.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av

from caeav.pipeline.media.clip import Limits
from caeav.pipeline.media.probe import MediaFacts, library_message, open_media

RESTARTING = ("mpegts", "mpeg", "ogg", "flac", "aac")
"""Containers that stay readable when joined and keep the stamps of the parts; AAC counts on at the first rate."""
ADTS_HZ = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
ADTS_BYTES = 7
ADTS_SAMPLES = 1024  # of each raw block of a packet
FLAC_HEADER = b"fLaC\0\0\0\x22"  # the first block of a file always has this length
LATE = ("h264", "hevc")  # codecs that AVI demuxers time one frame late
BACK_S = 0.1  # a clock that goes back by less is only rounded
AHEAD_S = 10.0  # a clock that jumps ahead by less has a gap in the recording
OVERLAP_S = 1.0  # how far apart the streams of one part may end
WALK_BYTES = 2**30  # larger files are not read to their end for the sake of one clip
HEAD_BYTES = 8  # of an AVI chunk: the index points to the chunk, a packet's position to its data
MAX_BLOCK_BYTES = 2**16 - 1  # AVI's header has two bytes for it


class AviIndex:
    """Gives the packets of one reading of an AVI the times that the file's index has for them."""

    def __init__(self) -> None:
        self.moved = 0  # packets whose time differs from the demuxer's
        self.torn: set[int] = set()  # streams that have missed packets since the last key frame
        self._units: dict[int, int] = {}  # by stream
        self._shifts: dict[int, int] = {}
        self._missed: list[tuple[Any, int, int]] = []  # stream, first entry, entry after the last

    def missed(self) -> Iterator[tuple[int, int, int]]:
        """Stream, stamp and length, in ticks, of each packet that the index lists but the file lacks."""
        for stream, first, last in self._missed:
            entries, unit = stream.index_entries, self._units[stream.index]
            for at in range(first, last):
                tick = entries[at].timestamp // unit
                yield stream.index, tick, entries[at + 1].timestamp // unit - tick

    def shift(self, packet: Any) -> None:
        """Give the packet the stamps of its index entry; a packet without one keeps the shift of the one before it."""
        index, entries = packet.stream_index, getattr(packet.stream, "index_entries", None)
        if not entries or packet.dts is None or packet.pos is None:
            return  # an older PyAV does not give the index
        if index not in self._units:
            self._units[index] = _unit(packet, entries)
        unit = self._units[index]
        if unit:
            before = self._shifts.get(index, 0)
            at = _entry(packet, entries, unit)
            ticks = before if at is None else entries[at].timestamp // unit - packet.dts
            if ticks > before:
                stamp = (packet.dts + before) * unit
                first = entries.search_timestamp(stamp, backward=False, any_frame=True)
                if at is not None and 0 <= first < at:
                    self._missed.append((packet.stream, first, at))
                    self.torn.add(index)
            if at is not None and entries[at].is_keyframe:
                self.torn.discard(index)
            self._shifts[index] = ticks
            if ticks:
                self.moved += 1
                packet.dts += ticks
                packet.pts = None if packet.pts is None else packet.pts + ticks


def _entry(packet: Any, entries: Any, unit: int) -> int | None:
    """The packet's place in the index; None when the index has no packet that begins at this byte."""
    place = packet.pos - HEAD_BYTES
    counted = entries.search_timestamp(packet.dts * unit, any_frame=True)
    if counted >= 0 and entries[counted].pos == place and entries[counted].timestamp == packet.dts * unit:
        return int(counted)
    at = bisect_left(entries, place, key=lambda entry: entry.pos)
    return at if at < len(entries) and entries[at].pos == place else None


def _unit(packet: Any, entries: Any) -> int:
    """How many units of the index make one tick of the stream's clock: 1 where it counts packets, 0 where unknown.

    For audio whose blocks all have the same size the index counts bytes.
    """
    by_bytes = len(entries) > 1 and entries[1].timestamp - entries[0].timestamp == entries[0].size > 1
    if packet.stream.type != "audio" or not by_bytes:
        return 1
    unit, rest = divmod(packet.size, packet.duration) if packet.duration else (0, 0)
    return unit if rest == 0 and unit <= MAX_BLOCK_BYTES else 0


class Clock:
    """Corrects the stamps of the packets of one reading of a file; its streams share the parts of a joined file.

    A file known to be in one piece keeps its stamps, since after a seek they may be rough. In containers that cannot be
    joined, packets that go back in time are left out, as the `ffmpeg` command does. AVI stores no display times, only
    the order of decoding; the times a demuxer derives for H.264 are one frame late.
    """

    def __init__(self, facts: MediaFacts, restarts: bool) -> None:
        self._restarts = restarts
        self._by_order = facts.container == "avi" and facts.video is not None and facts.video.codec in LATE
        self._index = AviIndex() if facts.container == "avi" else None
        self._once = facts.container not in RESTARTING
        self.left_out: set[tuple[int, int | None]] = set()  # stream and stamp of packets that go back in time
        self._shifts_s = [0.0]  # one per part
        self._counts = facts.container == "aac"
        self._rate_hz = 0  # of the last packet, where packets carry it
        self._lengths_s = (
            {0: facts.audio.duration_s or 0.0} if facts.container == "flac" and facts.audio else {}
        )
        self._part: dict[int, int] = {}  # by stream
        self._next_s: dict[int, float] = {}  # when each stream should go on

    @property
    def parts(self) -> int:
        """How many parts have been met so far."""
        return len(self._shifts_s)

    @property
    def moved(self) -> int:
        """How many packets of an AVI the index puts elsewhere than the demuxer counts."""
        return self._index.moved if self._index else 0

    def is_torn(self, index: int) -> bool:
        """Whether a stream's frames lack others that they depend on, because the AVI has lost bytes."""
        return self._index is not None and index in self._index.torn

    def missed(self) -> Iterator[tuple[int, int, int]]:
        """Stream, stamp and length, in ticks, of packets that an AVI's index lists but the file lacks."""
        return self._index.missed() if self._index else iter(())

    def straighten(self, packet: Any, tick_s: float) -> bool:
        """Correct the packet's stamps; `tick_s` is its stream's time base.

        False for a packet that is not to be shown or heard itself; decoding others may need it.
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
            stamp = packet.pts  # only audio: frames need not be in order
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
        """Stamp a packet of bare AAC by the samples before it; after a change of rate its demuxer counts wrongly."""
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
        if time_s < next_s - BACK_S:
            # this stream's old part ended later, so the new part begins later for all streams
            self._shifts_s[newest] += next_s - time_s
        return newest

    def _goes_on(self, time_s: float, next_s: float, back_s: float) -> bool:
        """Whether a stream that should go on at `next_s` may do so at `time_s`, where other streams may already be."""
        return next_s - back_s <= time_s <= max(next_s, *self._next_s.values()) + AHEAD_S


def _adts_hz(head: bytes) -> int:
    """The sample rate that the first bytes of a packet of bare AAC give; 0 where they do not."""
    number = head[2] >> 2 & 15 if len(head) >= ADTS_BYTES else len(ADTS_HZ)
    return ADTS_HZ[number] if number < len(ADTS_HZ) else 0


def _flac_length_s(packet: bytes) -> float:
    """The length of the part whose header lies in a packet of FLAC; 0 where there is none.

    The last frames of a part come as one packet without a stamp, which also holds the next part's header.
    """
    at = packet.find(FLAC_HEADER) + len(FLAC_HEADER)
    if at < len(FLAC_HEADER) or len(packet) < at + 18:
        return 0.0
    bits = int.from_bytes(packet[at + 10 : at + 18], "big")
    rate_hz, samples = bits >> 44, bits & (1 << 36) - 1
    return samples / rate_hz if rate_hz else 0.0


@dataclass(frozen=True)
class Walk:
    """What a file's packets say: how many parts it has, its end in media time, and the error that ended reading."""

    parts: int
    end_s: float
    error: str = ""


def walk_packets(facts: MediaFacts, limits: Limits) -> Walk | None:
    """Read all stamps of a file that may be joined; None for other files, and for those too large to read for this.

    The result is cached for the next clip of the same file.
    """
    if facts.container not in RESTARTING or facts.size_bytes > WALK_BYTES:
        return None
    return _walk_cached(facts, limits, Path(facts.path).stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _walk_cached(facts: MediaFacts, limits: Limits, _changed_ns: int) -> Walk:
    clock, end_s, stopped = Clock(facts, restarts=True), 0.0, ""
    chosen = sorted(s.index for s in (facts.video, facts.audio) if s)
    with open_media(facts.path, limits) as container:
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
    return Walk(clock.parts, end_s, stopped)
