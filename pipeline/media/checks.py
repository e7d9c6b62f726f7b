"""The check of every decoder's output: it is compared with what the container promises, and every lack is noted.

Nothing is repaired silently: a segment without real media is filled (last frame, silence), marked not ok, and noted
with numbers. The codes of notes are stable; docs/DECODING.md lists them. The texts are part of stored records.
Shapes: `T` segments, `H`x`W` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caeav.pipeline.media.audio import SILENT_PEAK, Audio
from caeav.pipeline.media.clip import DecodedClip, DecodeError, Note
from caeav.pipeline.media.frames import Frames, fill_holes
from caeav.pipeline.media.probe import MediaFacts, VideoFacts
from caeav.pipeline.media.scan import Plan

LONGER_S = 0.5  # media that goes on this far past the clip is worth a note
SQUARE = 0.01  # pixels this little off square are only a rounded frame size
NOTED_LOST_S = 0.25  # a container whose packets end this much early has lost some
SHORT_S = 0.05  # less missing audio than this is a codec's edge, not short audio
LOST_S = 0.1  # a decoder that gives this much less audio than promised has lost some
EDGE_S = 0.001  # containers round times to a millisecond
BESIDE = ("longer_media", "variable_frame_rate")  # notes that are no reason to refuse a clip


def checked_clip(decoder: str, plan: Plan, frames: Frames | None, audio: Audio | None) -> DecodedClip:
    """A `DecodedClip` from what a decoder read; raises `DecodeError` when neither frames nor audio are real."""
    notes = stream_notes(plan.facts) + time_notes(plan)
    images, frames_ok, video_notes = _check_frames(plan, frames)
    wave, audio_ok, audio_notes = _check_audio(plan, audio)
    notes += [*video_notes, *audio_notes]
    if not any(frames_ok) and not (audio and audio.within(plan.start_s, plan.end_s)):
        raise DecodeError(_refusal(plan, notes, images is not None))
    facts = _measured(decoder, plan, frames, images, audio)
    return DecodedClip(images, wave, frames_ok, audio_ok, notes, facts)


# What the container and its packets alone tell.


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
        detail = f"a pixel is {wide}:{high}: stored size {video.width}x{video.height} is kept, {shown}"
        notes.append(Note("non_square_pixels", detail))
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
        detail = f"the file's clock starts anew: {scan.parts} joined files up to here follow each other"
        notes.append(Note("joined", detail))
    if scan.left_out:
        detail = (
            f"the file's clock goes back in the middle: {scan.left_out} packets from there on are left out"
        )
        notes.append(Note("damaged", detail))
    ends = [end for end in (plan.video_end_s, scan.audio_end_s) if end is not None]
    trusted = not facts.guessed and not facts.other_streams
    if scan.at_end and facts.end_s is not None and trusted and ends:
        lost_s = min(facts.end_s, plan.end_s) - max(ends)
        if lost_s > NOTED_LOST_S:
            detail = f"the header promises {facts.end_s:.3f} s, the file's packets end at {max(ends):.3f} s"
            notes.append(Note("damaged", detail))
    rate = _variable_rate(plan)
    return [*notes, *([Note("variable_frame_rate", rate)] if rate else [])]


def _variable_rate(plan: Plan) -> str:
    """How unevenly frames come, in the clip or by the header; empty when they come evenly."""
    gaps, video = plan.scan.gaps_s, plan.facts.video
    if video is None or len(gaps) < 8:
        return ""
    usual = float(np.median(gaps))
    uneven = (np.abs(gaps - usual) > 0.2 * usual + 0.0015).mean() >= 0.02  # containers round to a millisecond
    detail = (
        f"pictures are {gaps.min():.3f} to {gaps.max():.3f} s apart around the clip (usually {usual:.3f} s)"
    )
    ratio = video.base_fps / video.fps if video.fps and video.base_fps else 1.0
    if ratio > 1.02 and abs(ratio - 2.0) > 0.02:  # 2: the fields of interlaced video are counted
        return (
            f"{detail}; the file has {video.fps:.3f} a second on average at a base rate of {video.base_fps:g}"
        )
    return detail if uneven else ""


def describe_errors(errors: Sequence[str]) -> str:
    """`3 decoding errors, first: Invalid data found`, or nothing."""
    if not errors:
        return ""
    return f"{len(errors)} decoding error{'s' * (len(errors) > 1)}, first: {errors[0]}"


# What the decoded frames show.


def _check_frames(
    plan: Plan, frames: Frames | None
) -> tuple[NDArray[np.uint8] | None, tuple[bool, ...], list[Note]]:
    """The frames as `[T, H, W, 3]`, which of them are real, and notes."""
    segments = plan.sampling.segments
    nothing = (False,) * segments
    video = plan.facts.video
    if video is None:
        return None, nothing, []
    if not video.decodable:
        return None, nothing, [Note("damaged", f"video: {video.why}")]
    frames = frames or Frames.none(segments)
    images = fill_holes(frames.images)
    if not images:
        return None, nothing, [_no_frame(plan, video, frames)]
    before, past = _before(plan), _past(plan, frames)
    lost = [
        not past[t] and not before[t] and _is_lost(plan, time_s, frames, t)
        for t, time_s in enumerate(plan.wanted_s)
    ]
    notes: list[Note] = []
    if any(past):
        end_s = plan.video_end_s or max(plan.shown_until_s(s) for s in frames.shown_s if s is not None)
        held = f"{sum(past)} of {segments} segments hold the last picture instead"
        notes.append(Note("short_video", f"video ends at {end_s:.3f} s of the media: {held}"))
    if any(before):
        held = f"{sum(before)} of {segments} segments hold the first picture instead"
        notes.append(
            Note("short_video", f"video starts at {plan.scan.video_s[0]:.3f} s of the media: {held}")
        )
    damage = [describe_errors(frames.errors)]
    if frames.concealed:
        damage.append(f"{frames.concealed} picture{'s' * (frames.concealed > 1)} concealed by the decoder")
    if any(lost):
        damage.append(f"{sum(lost)} of {segments} wanted pictures did not decode")
    if any(damage):
        notes.append(Note("damaged", "video: " + "; ".join(part for part in damage if part)))
    height, width = images[0].shape[:2]
    rotated = _rotation(video, frames, width, height)
    if rotated:
        notes.append(Note("rotated", rotated))
    if frames.resized:
        scaled = f"{frames.resized} pictures scaled to the first's {width}x{height}"
        notes.append(Note("size_changes", scaled))
    ok = tuple(not (p or b or x) for p, b, x in zip(past, before, lost, strict=True))
    return np.stack(images), ok, notes


def _no_frame(plan: Plan, video: VideoFacts, frames: Frames) -> Note:
    """Why there is no frame at all."""
    if not plan.scan.video_s and not frames.errors and plan.scan.video_over:
        window = f"{plan.start_s:.3f} and {plan.end_s:.3f} s"
        return Note("short_video", f"the video stream holds no picture between {window}")
    detail = describe_errors(frames.errors) or "the decoder gave no picture and no error"
    shape = f"{video.codec} {video.width}x{video.height}"
    return Note("damaged", f"video ({shape}): no picture decodes; {detail}")


def _before(plan: Plan) -> list[bool]:
    """For each segment, whether its centre lies before the video starts."""
    first_s = plan.scan.video_s[0] if plan.scan.video_s else -float("inf")
    return [time_s < first_s - plan.frame_gap_s for time_s in plan.wanted_s]


def _past(plan: Plan, frames: Frames) -> list[bool]:
    """For each segment, whether it begins after the video's end."""
    starts_s = [plan.start_s + t * plan.sampling.segment_s for t in range(plan.sampling.segments)]
    return [
        (plan.video_end_s is not None and at >= plan.video_end_s - EDGE_S)
        or (shown_s is not None and plan.is_stale(at + EDGE_S, shown_s, until_s))
        for at, shown_s, until_s in zip(starts_s, frames.shown_s, frames.until_s, strict=True)
    ]


def _is_lost(plan: Plan, time_s: float, frames: Frames, t: int) -> bool:
    """Whether the frame of segment `t` is missing, made of others than it should be, or not the one to be shown."""
    shown_s = frames.shown_s[t]
    if frames.images[t] is None or shown_s is None:
        return True
    expected_s = plan.scan.expected_s(time_s)
    off_s = frames.tolerance_gaps * plan.frame_gap_s
    torn = any(abs(at - shown_s) < plan.frame_gap_s / 2 for at in plan.scan.torn_s)
    return torn or (expected_s is not None and abs(expected_s - shown_s) > off_s)


def _rotation(video: VideoFacts, frames: Frames, width: int, height: int) -> str:
    """How frames were turned or mirrored to `width` x `height`; empty when they are as stored."""
    stored = f"stored {video.width}x{video.height}"
    if frames.mirrored:
        return f"{stored}, mirrored to {width}x{height} as the container asks"
    if frames.askew_deg:
        return f"the container asks for a turn by {frames.askew_deg} degrees, which is no right angle: not turned"
    if frames.rotated_deg % 360 or (width != height and (width, height) == (video.height, video.width)):
        by = f" (by {frames.rotated_deg} degrees)" if frames.rotated_deg else ""
        return f"{stored}, turned upright to {width}x{height}{by}"
    return ""


# What the decoded audio shows.


def _check_audio(
    plan: Plan, audio: Audio | None
) -> tuple[NDArray[np.float32] | None, tuple[bool, ...], list[Note]]:
    """The wave `[samples]`, for each segment whether at least half of it is real, and notes."""
    sampling, stream = plan.sampling, plan.facts.audio
    nothing = (False,) * sampling.segments
    if stream is None:
        return None, nothing, []
    promised_s = _promised_s(plan)
    if audio is None or not audio.spans_s:
        errors = stream.why or describe_errors(audio.errors if audio else [])
        if promised_s > SHORT_S:
            why = errors or "the decoder gave no sample and no error"
            what = f"audio ({stream.codec} {stream.rate_hz} Hz): no sample decodes of {promised_s:.3f} s promised"
            note = Note("damaged", f"{what}; {why}")
        else:
            detail = f"the audio stream holds no sound between {plan.start_s:.3f} and {plan.end_s:.3f} s"
            note = Note("short_audio", f"{detail}; {errors}" if errors else detail)
        return np.zeros(sampling.samples, dtype=np.float32), nothing, [note]
    wave = audio.window(plan.start_s, sampling.samples, sampling.rate_hz)
    notes: list[Note] = []
    if not np.isfinite(wave).all():
        bad = int((~np.isfinite(wave)).sum())
        notes.append(Note("damaged", f"audio: {bad} of {wave.size} samples are not numbers and set to 0"))
        wave = np.nan_to_num(wave, nan=0.0, posinf=0.0, neginf=0.0)
    wave = np.clip(wave, -1.0, 1.0)
    covered_s = audio.within(plan.start_s, plan.end_s)
    damage = [describe_errors(audio.errors)]
    if promised_s - covered_s > LOST_S:
        damage.append(f"{covered_s:.3f} s of sound decoded of {promised_s:.3f} s promised in the clip")
    if any(damage):
        notes.append(Note("damaged", "audio: " + "; ".join(part for part in damage if part)))
    if sampling.seconds - covered_s > SHORT_S:
        count = round(covered_s * sampling.rate_hz)
        detail = (
            f"sound for {covered_s:.3f} of {sampling.seconds:.3f} s ({count} of {sampling.samples} samples)"
        )
        notes.append(Note("short_audio", f"{detail}{_where_real(plan, audio)}; the rest is silence"))
    rates = [stretch.rate_hz for stretch in audio.stretches]
    if len(rates) > 1:
        changes = ", ".join(f"{s.rate_hz} Hz from {s.start_s:.3f} s" for s in audio.stretches[1:4])
        notes.append(Note("rate_changes", f"sound begins with {rates[0]} Hz, then has {changes}"))
    peak = float(np.abs(wave).max())
    if covered_s > 0 and peak < SILENT_PEAK:
        notes.append(Note("silent_audio", _silence_detail(peak, audio.loudest)))
    return wave.astype(np.float32, copy=False), _audio_ok(plan, audio, promised_s - covered_s), notes


def _promised_s(plan: Plan) -> float:
    """Seconds of audio inside the clip by its packets, and by the header where that goes on after the last packet.

    A header knows nothing of holes in the audio, and is rarely right to a quarter of a second.
    """
    audio, scan = plan.facts.audio, plan.scan
    assert audio is not None
    lost_s = 0.0
    if audio.duration_s is not None and not plan.facts.guessed and scan.at_end:
        begins_s = max(audio.start_s, plan.start_s, scan.audio_end_s or 0.0)
        lost_s = min(audio.start_s + audio.duration_s, plan.end_s) - begins_s
    return scan.audio_s + (lost_s if lost_s > NOTED_LOST_S else 0.0)


def _audio_ok(plan: Plan, audio: Audio, missing_s: float) -> tuple[bool, ...]:
    """For each segment, whether half of it is real, or it holds most of a stream shorter than half a segment."""
    segment_s = plan.sampling.segment_s
    starts_s = [plan.start_s + t * segment_s for t in range(plan.sampling.segments)]
    real_s = [audio.within(at, at + segment_s) for at in starts_s]
    ok = tuple(real >= segment_s / 2 for real in real_s)
    stream = plan.facts.audio
    begins = stream is not None and stream.start_s >= plan.start_s - EDGE_S
    ends = plan.scan.at_end and (plan.scan.audio_end_s or 0.0) <= plan.end_s + EDGE_S
    if not any(ok) and begins and ends and missing_s <= LOST_S:
        return tuple(real > 0 and real == max(real_s) for real in real_s)
    return ok


def _where_real(plan: Plan, audio: Audio) -> str:
    """`, at 0.000-0.998 s of the clip`: where the real audio is."""
    inside = [(max(a, plan.start_s), min(b, plan.end_s)) for a, b in audio.spans_s]
    parts = [f"{a - plan.start_s:.3f}-{b - plan.start_s:.3f} s" for a, b in inside if b > a]
    if not parts:
        return ""
    more = f" and {len(parts) - 4} more parts" if len(parts) > 4 else ""
    return f", at {', '.join(parts[:4])}{more}"


def _silence_detail(peak: float, loudest: float | None) -> str:
    """Why the wave is silent."""
    if loudest is not None and loudest >= SILENT_PEAK:
        level = f"{20 * np.log10(loudest):.0f} dBFS"
        return f"the channels cancel each other: they reach {level}, their mix to mono is silent"
    level = "every sample is zero" if peak == 0 else f"the loudest sample is {20 * np.log10(peak):.0f} dBFS"
    if loudest is None:
        return (
            f"the mix of the channels is silent ({level}); "
            "this decoder does not tell whether they cancel each other"
        )
    return f"digital silence: {level}"


# The clip as a whole.


def _refusal(plan: Plan, notes: list[Note], has_frames: bool) -> str:
    """Why a clip is refused: nothing of it decodes, or what does lies outside of it."""
    why = "; ".join(dict.fromkeys(note.detail for note in notes if note.code not in BESIDE))
    clip = f"{plan.start_s:.3f}-{plan.end_s:.3f} s"
    what = f"the clip ({clip}) holds no real picture and no real sound" if has_frames else "nothing decodes"
    return f"{what}: {why}; the file has {plan.facts.size_bytes} bytes"


def _measured(
    decoder: str, plan: Plan, frames: Frames | None, images: NDArray[np.uint8] | None, audio: Audio | None
) -> dict[str, Any]:
    """Measured properties, JSON values only; part of stored records."""
    facts: dict[str, Any] = {"decoder": decoder, "container": plan.facts.container}
    if plan.facts.end_s is not None:
        facts["media_s"] = round(plan.facts.end_s, 6)
    video, stream = plan.facts.video, plan.facts.audio
    if video and frames and images is not None:
        facts["video"] = {
            "stream": video.index,
            "codec": video.codec,
            "fps": None if video.fps is None else round(video.fps, 6),
            "height": images.shape[1],
            "width": images.shape[2],
            "shown_s": [None if s is None else round(s, 6) for s in frames.shown_s],
        }
    if stream and audio and audio.spans_s:
        covered_s = audio.within(plan.start_s, plan.end_s)
        facts["audio"] = {
            "stream": stream.index,
            "codec": stream.codec,
            "rate_hz": audio.stretches[0].rate_hz,
            "channels": len(stream.channels),
            "samples": round(covered_s * plan.sampling.rate_hz),
            **({"mix": "libswresample"} if len(stream.channels) > 2 else {}),
        }
    return facts
