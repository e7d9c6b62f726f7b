"""What is worth saying about a clip, in words with numbers: the notes that follow from the container and the scan.

`verify.py` adds what only the decoded result shows. A note's code is stable; docs/DECODING.md lists them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caeav.pipeline.media.clip import Note
from caeav.pipeline.media.plan import Plan
from caeav.pipeline.media.probe import MediaFacts

LONGER_S = 0.5  # media going on this far past the clip is worth a note
SQUARE = 0.01  # pixels this much off square only round a picture's size
LOST_S = 0.25  # a container whose packets end this much early has lost some


def errors_said(errors: Sequence[str]) -> str:
    """`3 errors, first: Invalid data found`, or nothing."""
    if not errors:
        return ""
    return f"{len(errors)} decoding error{'s' * (len(errors) > 1)}, first: {errors[0]}"


def stream_notes(facts: MediaFacts) -> list[Note]:
    """Missing, several and unusual streams."""
    notes: list[Note] = []
    video, audio = facts.video, facts.audio
    if video is None:
        cover = " but cover art" if facts.covers else ""
        notes.append(Note("no_video", f"the file has no video stream{cover}"))
    if audio is None:
        notes.append(Note("no_audio", "the file has no audio stream"))
    if video and facts.video_streams > 1:
        what = f"stream {video.index} ({video.codec} {video.width}x{video.height})"
        notes.append(Note("several_streams", f"{facts.video_streams} video streams: {what} is used"))
    if audio and facts.audio_streams > 1:
        what = f"stream {audio.index} ({audio.codec} {audio.rate_hz} Hz)"
        notes.append(Note("several_streams", f"{facts.audio_streams} audio streams: {what} is used"))
    if audio and len(audio.channels) > 2:
        lfe = ", LFE left out" if "LFE" in audio.channels else ""
        names = " ".join(audio.channels)
        notes.append(Note("downmixed", f"{len(audio.channels)} channels ({names}) mixed to mono{lfe}"))
    wide, high = video.pixel_aspect if video else (1, 1)
    if video and abs(wide / high - 1) > SQUARE:
        shown = f"players show {round(video.width * wide / high)}x{video.height}"
        said = f"a pixel is {wide}:{high}: stored size {video.width}x{video.height} is kept, {shown}"
        notes.append(Note("non_square_pixels", said))
    return notes


def time_notes(plan: Plan) -> list[Note]:
    """How the clip lies in its media: longer media, packets that end before the header says, variable rate."""
    notes: list[Note] = []
    facts, scan = plan.facts, plan.scan
    if facts.end_s is not None and facts.end_s - plan.end_s > LONGER_S:
        window = f"{plan.start_s:.3f}-{plan.end_s:.3f} s"
        notes.append(Note("longer_media", f"the clip is {window} of {facts.end_s:.3f} s of media"))
    if scan.error:
        notes.append(Note("damaged", f"reading the file stopped: {scan.error}"))
    if scan.parts > 1:
        said = f"the file's clock starts anew: {scan.parts} joined files up to here follow each other"
        notes.append(Note("joined", said))
    if scan.left_out:
        said = f"the file's clock goes back in the middle: {scan.left_out} packets from there on are left out"
        notes.append(Note("damaged", said))
    ends = [end for end in (plan.video_end_s, scan.audio_end_s) if end is not None]
    trusted = not facts.guessed and not facts.other_streams
    if scan.at_end and facts.end_s is not None and trusted and ends:
        lost_s = min(facts.end_s, plan.end_s) - max(ends)
        if lost_s > LOST_S:
            said = f"the header promises {facts.end_s:.3f} s, the file's packets end at {max(ends):.3f} s"
            notes.append(Note("damaged", said))
    rate = _variable_rate(plan)
    return [*notes, *([Note("variable_frame_rate", rate)] if rate else [])]


def _variable_rate(plan: Plan) -> str:
    """In words when pictures come at uneven times, in the clip or by the header; empty when they do not."""
    gaps, video = plan.scan.gaps_s, plan.facts.video
    if video is None or len(gaps) < 8:
        return ""
    usual = float(np.median(gaps))
    uneven = (np.abs(gaps - usual) > 0.2 * usual + 0.0015).mean() >= 0.02  # containers round to a millisecond
    said = (
        f"pictures are {gaps.min():.3f} to {gaps.max():.3f} s apart around the clip (usually {usual:.3f} s)"
    )
    ratio = video.base_fps / video.fps if video.fps and video.base_fps else 1.0
    if ratio > 1.02 and abs(ratio - 2.0) > 0.02:  # 2: the fields of interlaced video are counted
        return (
            f"{said}; the file has {video.fps:.3f} a second on average at a base rate of {video.base_fps:g}"
        )
    return said if uneven else ""
