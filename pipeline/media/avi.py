"""Times of AVI packets by the file's index: behind bytes that were lost, counting packets counts too few.

AVI keeps no times. A demuxer counts the packets it meets, so that behind a damaged stretch every picture and every
sample comes too early, by as much as the stretch held, without any sign. The index at the file's end says which packet
begins at which byte; a packet that begins where the index has another one gets that one's time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

HEAD_BYTES = 8  # of a chunk, which the index points to; a packet's position is that of its data
MAX_BLOCK_BYTES = 2**16 - 1  # the header has two bytes for it


class AviIndex:
    """How far the packets of one reading lie from where their index puts them."""

    def __init__(self) -> None:
        self.moved = 0  # packets that got another time than the demuxer's
        self.torn: set[int] = set()  # streams of which packets were missed since the last key picture
        self._units: dict[int, int] = {}  # of each stream
        self._shifts: dict[int, int] = {}
        self._missed: list[tuple[Any, int, int]] = []  # stream, from which entry to which

    def missed(self) -> Iterator[tuple[int, int, int]]:
        """Stream, stamp and length, in ticks, of each packet that the index has where none was found."""
        for stream, first, last in self._missed:
            entries, unit = stream.index_entries, self._units[stream.index]
            for at in range(first, last):
                tick = entries[at].timestamp // unit
                yield stream.index, tick, entries[at + 1].timestamp // unit - tick

    def shift(self, packet: Any) -> None:
        """Give the packet the stamps that the index says; one that it does not know follows the packet before."""
        index, entries = packet.stream_index, getattr(packet.stream, "index_entries", None)
        if not entries or packet.dts is None or packet.pos is None:
            return  # an older PyAV shows no index
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
    """Where in the index the packet stands; None when the index has none that begins at this byte."""
    place = packet.pos - HEAD_BYTES
    counted = entries.search_timestamp(packet.dts * unit, any_frame=True)
    if counted >= 0 and entries[counted].pos == place and entries[counted].timestamp == packet.dts * unit:
        return int(counted)
    at = bisect_left(entries, place, key=lambda entry: entry.pos)
    return at if at < len(entries) and entries[at].pos == place else None


def _unit(packet: Any, entries: Any) -> int:
    """What the index counts for one tick of the stream's clock: 1 where it counts packets; 0 where that is not known.

    Of sound whose blocks all have the same size it counts bytes.
    """
    by_bytes = len(entries) > 1 and entries[1].timestamp - entries[0].timestamp == entries[0].size > 1
    if packet.stream.type != "audio" or not by_bytes:
        return 1
    unit, rest = divmod(packet.size, packet.duration) if packet.duration else (0, 0)
    return unit if rest == 0 and unit <= MAX_BLOCK_BYTES else 0
