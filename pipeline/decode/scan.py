"""What the packets of a clip promise, read without decoding: the yardstick every decoder is measured with.

A decoder may drop pictures or sound without a word; the demuxed packets say what should have come. Not
trusted to be complete either: a truncated file has fewer packets than its header claims (`verify.py`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np

from caeav.pipeline.decode.limits import Limits
from caeav.pipeline.decode.media import DecodeError
from caeav.pipeline.decode.opening import library_message, opened
from caeav.pipeline.decode.probe import MediaFacts

SEEK_FROM_S = 5.0  # before this, reading from the start is cheaper than a seek and always exact
PREROLL_S = 1.0  # codecs need some packets before the first good sample (AAC 1, Opus 80 ms)
REORDER_S = 1.0  # packets are read this far past the clip's end, since they come in decoding order
INTERLEAVE_S = 10.0  # a stream this far behind the others has ended


@dataclass
class Scan:
    """Packets of the chosen streams around a clip, in media time.

    video_s: sorted times of pictures. audio_s: seconds of sound inside the clip. `*_end_s`: where the last
    packet seen ends. at_end: the file's end was reached, so these ends are the streams' ends.
    """

    video_s: list[float] = field(default_factory=list)
    audio_s: float = 0.0
    audio_packets: int = 0
    video_end_s: float | None = None
    audio_end_s: float | None = None
    at_end: bool = False
    error: str = ""

    @property
    def gaps_s(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Times between consecutive pictures."""
        return np.diff(np.asarray(self.video_s, dtype=np.float64))

    def expected_s(self, time_s: float) -> float | None:
        """Time of the picture shown at `time_s`, or None before the first."""
        at = bisect_right(self.video_s, time_s + 1e-6)
        return self.video_s[at - 1] if at else None


def seek_before(container: Any, facts: MediaFacts, start_s: float) -> bool:
    """Go to a key frame at least `PREROLL_S` before `start_s` when that is worth it; False when left at the start.

    Raises `DecodeError` for a file in which neither place can be gone to.
    """
    if start_s < SEEK_FROM_S:
        return False
    try:
        container.seek(int((start_s - PREROLL_S + facts.origin_s) * av.time_base), backward=True)
    except av.FFmpegError:
        try:
            container.seek(int(facts.origin_s * av.time_base), backward=True)
        except av.FFmpegError as error:
            raise DecodeError(f"no place in the file can be gone to: {library_message(error)}") from error
        return False
    return True


def scan(facts: MediaFacts, start_s: float, seconds: float, limits: Limits) -> Scan:
    """Demux the packets of one clip; an error while reading ends the scan and is kept in `error`."""
    found = Scan()
    end_s = start_s + seconds
    chosen = {s.index for s in (facts.video, facts.audio) if s}
    waiting = set(chosen)
    count = 0
    with opened(facts.path, limits) as container:
        tick_s = {i: float(container.streams[i].time_base) for i in chosen}
        seek_before(container, facts, start_s)
        try:
            for packet in container.demux([container.streams[i] for i in sorted(chosen)]):
                if packet.size == 0:
                    continue  # the flush packet at the end
                count += 1
                limits.check("packets read for one clip", count, limits.packets)
                stamp = packet.pts if packet.pts is not None else packet.dts
                if stamp is None:
                    continue
                tick = tick_s[packet.stream_index]
                time_s = stamp * tick - facts.origin_s
                length_s = (packet.duration or 0) * tick
                if facts.video and packet.stream_index == facts.video.index:
                    found.video_s.append(time_s)
                    found.video_end_s = max(found.video_end_s or 0.0, time_s + length_s)
                else:
                    found.audio_packets += 1
                    found.audio_end_s = max(found.audio_end_s or 0.0, time_s + length_s)
                    found.audio_s += max(0.0, min(time_s + length_s, end_s) - max(time_s, start_s))
                past_s = min(time_s, (packet.dts or stamp) * tick - facts.origin_s) - end_s
                if past_s > REORDER_S:
                    waiting.discard(packet.stream_index)
                if not waiting or past_s > INTERLEAVE_S:
                    break
            else:
                found.at_end = True
        except av.FFmpegError as error:
            found.error = library_message(error)
            found.at_end = True
    found.video_s.sort()
    return found
