"""The parts of decoding one by one, on made-up packets, audio and frames: bounds, orders, sums and notes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.pipeline.media import scan as scanning
from caeav.pipeline.media import stills
from caeav.pipeline.media.audio import Audio, AudioLine, Stretch, resample
from caeav.pipeline.media.checks import checked_clip, describe_errors, stream_notes, time_notes
from caeav.pipeline.media.clip import DecodeError, Limits, Note, Sampling
from caeav.pipeline.media.clock import Clock
from caeav.pipeline.media.frames import LOOKAHEAD, DisplayOrder, Frames, Orientation
from caeav.pipeline.media.probe import (
    AudioFacts,
    MediaFacts,
    VideoFacts,
    _chosen,
    library_message,
    probe,
    regular_file,
)
from caeav.pipeline.media.pyav import _AudioTrack, _near_wanted, _VideoTrack
from caeav.pipeline.media.scan import (
    Plan,
    Scan,
    _audible_spans,
    _began_late,
    _has_partial_sample,
    merge_spans,
)
from caeav.pipeline.media.stills import media_files, stills_folder
from caeav.pipeline.media.workers import process as working
from caeav.pipeline.media.workers.pool import Attempt, Run, WorkerPool
from caeav.pipeline.media.workers.wire import Inbox, Message, WireError, pack, unpack

RATE = 1000
VIDEO = VideoFacts(0, "h264", True, 8, 4, 10.0, 10.0, 0.0, 10.0)
AUDIO = AudioFacts(1, "aac", True, RATE, ("FC",), 0.0, 10.0)
FACTS = MediaFacts("film.mp4", 1234, "mov", 0.0, 10.0, VIDEO, AUDIO, 1, 1, 0, 0)
TENTHS = [n / 10 for n in range(100)]
IMAGE = np.arange(4 * 8 * 3, dtype=np.uint8).reshape(4, 8, 3)


def plan(
    scan: Scan | None = None, facts: MediaFacts = FACTS, start_s: float = 0.0, segments: int = 4
) -> Plan:
    scan = scan or Scan(video_s=TENTHS, audio_s=4.0, audio_start_s=0.0, audio_end_s=10.0)
    return Plan(facts, scan, start_s, Sampling(segments, 1.0, RATE), Limits())


def shown(*images: Any) -> Frames:
    found = [t + 0.5 for t in range(len(images))]
    return Frames(list(images), list(found), [s + 0.1 for s in found])


def tone(seconds: float, level: float = 0.5) -> Any:
    return np.full(round(seconds * RATE), level, dtype=np.float32)


def details(clip: Any, code: str) -> list[str]:
    return [note.detail for note in clip.notes if note.code == code]


# Audio


def test_touching_spans_are_merged_in_order() -> None:
    assert merge_spans([(3.0, 4.0), (0.0, 2.0), (1.0, 1.5), (2.0, 2.5)]) == [(0.0, 2.5), (3.0, 4.0)]
    assert merge_spans([]) == []


def test_real_seconds_of_audio_are_counted_between_two_times() -> None:
    audio = Audio(spans_s=[(0.0, 1.0), (2.0, 5.0)])
    assert audio.within(0.5, 3.0) == pytest.approx(1.5) and audio.within(1.2, 1.8) == 0
    whole = Audio.of(tone(2.0), RATE, 3.0)
    assert whole.spans_s == [(3.0, 5.0)] and whole.stretches[0].end_s == 5.0


def test_a_window_has_its_samples_at_their_times_and_silence_around_them() -> None:
    ramp = np.arange(1, 11, dtype=np.float32)
    stretch = Stretch(ramp, RATE, 1.0)
    assert stretch.window(0.997, 6, RATE).tolist() == [0, 0, 0, 1, 2, 3]
    assert stretch.window(1.007, 6, RATE).tolist() == [8, 9, 10, 0, 0, 0]
    assert not stretch.window(2.0, 5, RATE).any() and not stretch.window(0.0, 5, RATE).any()
    assert stretch.window(1.002, 3, RATE).dtype == np.float32
    two = Audio([Stretch(tone(1.0, 0.25), RATE, 0.0), Stretch(np.full(2000, 0.5, np.float32), 2000, 1.0)])
    out = two.window(0.0, 2500, RATE)
    assert out.size == 2500 and np.allclose(out[100:900], 0.25, atol=0.01)
    assert np.allclose(out[1100:1900], 0.5, atol=0.01) and not out[2000:].any()


def test_resampling_does_not_move_the_audio() -> None:
    assert resample(tone(1.0), RATE, RATE).size == RATE and resample(tone(0), RATE, 10).size == 0
    slow = np.sin(np.arange(8000) / 8000 * 2 * np.pi * 5).astype(np.float32)
    found = Stretch(slow, 8000, 0.0).window(0.0, 4000, 4000)
    assert np.allclose(found[200:-200], slow[::2][200:-200], atol=0.01)


def line(**more: Any) -> AudioLine:
    return AudioLine(1 / RATE, (0.0, 100.0), **more)


def test_pieces_are_joined_and_a_jump_becomes_a_gap_of_its_length() -> None:
    collected = line()
    assert collected.end_s is None
    collected.add(1.0, tone(0.5), RATE)
    collected.add(None, tone(0.5), RATE)
    collected.add(2.04, tone(0.5), RATE)  # rounding
    collected.add(4.0, tone(0.5), RATE)
    audio = collected.audio()
    assert (audio.stretches[0].start_s, collected.end_s) == (1.0, 4.5)
    assert [(round(a, 3), round(b, 3)) for a, b in audio.spans_s] == [(1.0, 2.5), (4.0, 4.5)]
    (stretch,) = audio.stretches
    assert stretch.mono.size == 3500 and not stretch.mono[1500:3000].any() and stretch.mono[3000:].all()


def test_a_single_wrong_timestamp_moves_nothing() -> None:
    collected = line()
    for at_s in (0.0, 0.5, 1.3, 1.5, 2.0):
        collected.add(at_s, tone(0.5), RATE)
    assert [(round(a, 3), round(b, 3)) for a, b in collected.audio().spans_s] == [(0.0, 2.5)]


def test_pieces_outside_the_kept_span_are_dropped() -> None:
    collected = AudioLine(1 / RATE, (1.0, 2.0))
    for at_s in (0.0, 0.4, 0.5, 1.5, 2.0, 2.1):
        collected.add(at_s, tone(0.5), RATE)
    assert [piece.start_s for piece in collected._pieces] == [0.5, 1.5, 2.0]
    assert collected.end_s == pytest.approx(2.6), "the end of what was read"


def test_rounded_timestamps_give_a_start_between_them() -> None:
    rough = AudioLine(0.01, (0.0, 10.0))
    rough.add(0.001, tone(0.5), RATE)
    rough.add(0.509, tone(0.5), RATE)
    assert rough.audio().spans_s[0][0] == pytest.approx(0.005)
    exact = AudioLine(0.001, (0.0, 10.0))
    exact.add(0.001, tone(0.5), RATE)
    exact.add(0.509, tone(0.5), RATE)
    assert exact.audio().spans_s[0][0] == 0.001, "with a tick per sample the first time is exact"


def test_after_a_seek_most_timestamps_outvote_a_wrong_first_one() -> None:
    for entered, start_s in ((True, 3.0), (False, 3.02)):
        collected = line(entered=entered)
        for at_s in (3.02, 3.5, 4.0, 4.5):
            collected.add(at_s, tone(0.5), RATE)
        assert collected.audio().spans_s[0][0] == pytest.approx(start_s)


def test_a_change_of_rate_begins_a_new_stretch() -> None:
    collected = line()
    collected.add(0.0, tone(1.0), RATE)
    collected.add(None, np.ones(2000, np.float32), 2000)
    audio = collected.audio()
    assert [(s.rate_hz, s.start_s, s.mono.size) for s in audio.stretches] == [
        (RATE, 0.0, 1000),
        (2000, 1.0, 2000),
    ]
    assert audio.spans_s == [(0.0, 2.0)]


# Frames and plans


def test_frames_get_their_times_in_display_order() -> None:
    order = DisplayOrder(0.1)
    ready = [pair for n, at in enumerate((0.0, 0.3, 0.1, 0.2)) for pair in order.push(n, at)]
    assert len(ready) == 4 - LOOKAHEAD
    assert [*ready, *order.flush()] == [(0.0, 0), (0.1, 1), (0.2, 2), (0.3, 3)]
    order = DisplayOrder(0.1)
    ready = [pair for n, at in enumerate((None, None, 0.5, None)) for pair in order.push(n, at)]
    assert [(round(s, 6), n) for s, n in (*ready, *order.flush())] == [(0.0, 0), (0.1, 1), (0.5, 2), (0.6, 3)]
    order = DisplayOrder(0.1)
    ready = [pair for n, at in enumerate((5.0, 6.0, 7.0, 0.0, 8.0)) for pair in order.push(n, at)]
    times = [s for s, _ in (*ready, *order.flush())]
    assert times == sorted(times), "times never go back"


def test_a_plan_knows_when_frames_end_and_which_are_stale() -> None:
    at = plan(start_s=2.0)
    assert (at.end_s, at.wanted_s) == (6.0, [2.5, 3.5, 4.5, 5.5]) and at.frame_gap_s == pytest.approx(0.1)
    assert at.video_end_s is None, "frames continue after the clip"
    over = plan(Scan(video_s=TENTHS[:10], video_over=True, video_end_s=3.0))
    assert over.video_end_s == 3.0 and over.shown_until_s(0.9) == 3.0
    assert over.shown_until_s(0.5) == pytest.approx(0.6)
    short = plan(Scan(video_s=TENTHS[:10], video_over=True, video_end_s=0.9))
    assert short.video_end_s == pytest.approx(1.0) and short.shown_until_s(0.9) == pytest.approx(1.0)
    assert over.is_stale(3.0, 0.9, None) and not over.is_stale(2.9, 0.9, None)
    assert not over.is_stale(3.0, 0.9, 3.5) and not over.is_stale(3.0, 0.5, None)
    assert plan(Scan(video_s=[0.0])).frame_gap_s == pytest.approx(0.1), "by the header"
    bare = replace(FACTS, video=replace(VIDEO, fps=None))
    assert plan(Scan(), bare).frame_gap_s == 0.04 and plan(Scan(), bare).video_end_s is None


def test_a_scan_finds_the_frame_of_a_time_and_the_next() -> None:
    seen = Scan(video_s=[0.0, 0.1, 0.2])
    assert [seen.expected_s(s) for s in (-0.1, 0.0, 0.05, 0.1, 9.0)] == [None, 0.0, 0.0, 0.1, 0.2]
    assert [seen.next_s(s) for s in (-0.1, 0.0, 0.05, 0.1, 0.2)] == [0.0, 0.1, 0.1, 0.2, None]


def test_audio_packets_count_for_at_most_twice_their_usual_length() -> None:
    audio_frame = [(0.0, 0.1), (0.1, 0.1), (0.2, 5.0), (5.2, 0.1)]
    assert _audible_spans(audio_frame) == [
        (0.0, 0.1),
        (0.1, 0.2),
        (0.2, pytest.approx(0.4)),
        (5.2, pytest.approx(5.3)),
    ]
    assert _audible_spans([]) == []


def test_partial_samples_are_detected_only_with_a_fine_clock() -> None:
    facts = replace(FACTS, audio=replace(AUDIO, rate_hz=48000))
    fine = 1 / 14_112_000
    assert not _has_partial_sample(1024 / 48000, fine, facts) and _has_partial_sample(
        1024 / 44100, fine, facts
    )
    assert not _has_partial_sample(1024 / 44100, 0.001, facts), "a clock of milliseconds cannot tell"
    assert not _has_partial_sample(1024 / 44100, fine, replace(FACTS, audio=None))


def test_reading_began_too_late_when_a_continuing_stream_lacks_its_beginning() -> None:
    def late(found: Scan, facts: MediaFacts = FACTS) -> bool:
        return _began_late(found, facts, 10.0, 10.5)

    assert not late(Scan(video_s=[10.5], audio_start_s=10.0)) and late(
        Scan(video_s=[10.6], audio_start_s=10.0)
    )
    assert late(Scan(video_s=[], audio_start_s=10.0)) and late(Scan(video_s=[10.0], audio_start_s=10.01))
    assert not late(Scan(video_s=[10.0])), "its audio has ended"
    alone = replace(FACTS, video=None)
    assert late(Scan(), alone) and not late(Scan(audio_start_s=10.0), alone)
    starts = replace(FACTS, audio=replace(AUDIO, start_s=12.0))
    assert not late(Scan(video_s=[10.0], audio_start_s=12.1), starts)
    assert late(Scan(video_s=[10.0], audio_start_s=12.11), starts)
    assert not late(Scan(video_s=[10.0]), replace(FACTS, audio=None))


def test_media_end_with_the_last_stream_unless_that_is_guessed() -> None:
    assert FACTS.end_s == 10.0 and FACTS.is_over(10.0) and not FACTS.is_over(9.99)
    later = replace(FACTS, audio=replace(AUDIO, start_s=1.0))
    assert later.end_s == 11.0 and not later.is_over(10.5)
    for container in ("mp3", "avi"):
        assert not replace(FACTS, container=container).is_over(20.0)
    unknown = replace(FACTS, duration_s=None, video=None, audio=replace(AUDIO, duration_s=None))
    assert unknown.end_s is None and not unknown.is_over(1e9)
    hidden = FACTS.without({1})
    assert hidden.video == VIDEO and hidden.audio is not None and not hidden.audio.decodable


@pytest.mark.parametrize(
    ("matrix", "upright", "turned", "mirrored"),
    [
        ((1, 0, 0, 0, 1), IMAGE, 0, False),
        ((-1, 0, 0, 0, -1), IMAGE[::-1, ::-1], -180, False),
        ((0, 1, 0, -1, 0), np.rot90(IMAGE, -1), -90, False),
        ((0, -1, 0, 1, 0), np.rot90(IMAGE), 90, False),
        ((-1, 0, 0, 0, 1), IMAGE[:, ::-1], -180, True),
        ((1, 0, 0, 0, -1), IMAGE[::-1], 0, True),
    ],
)
def test_frames_are_made_upright(matrix: Any, upright: Any, turned: int, mirrored: bool) -> None:
    orientation = Orientation.of(matrix)
    assert np.array_equal(orientation.apply(IMAGE), upright)
    assert (orientation.mirrored, orientation.askew_deg) == (mirrored, 0)
    assert mirrored or orientation.turned_deg == turned
    found = Frames.none(3)
    found.record_orientation(orientation)
    assert (found.rotated_deg, found.mirrored) == (orientation.turned_deg, mirrored)
    assert found.images == found.shown_s == found.until_s == [None] * 3


# Checks


def test_missing_frames_are_filled_by_the_previous_or_the_first_frame() -> None:
    a, b = IMAGE, IMAGE[:, ::-1]
    clip = checked_clip("pyav", plan(), shown(None, a, None, b), Audio.of(tone(4), RATE, 0.0))
    assert clip.frames is not None and clip.frames_ok == (False, True, False, True)
    assert [np.array_equal(x, y) for x, y in zip(clip.frames, (a, a, a, b), strict=True)] == [True] * 4
    assert details(clip, "damaged") == ["video: 2 of 4 wanted pictures did not decode"]


def test_non_finite_samples_become_zero_and_loud_ones_are_clipped() -> None:
    wave = tone(4)
    wave[:5] = [np.nan, np.inf, -np.inf, 3.0, -3.0]
    clip = checked_clip("pyav", plan(), shown(*[IMAGE] * 4), Audio.of(wave, RATE, 0.0))
    assert clip.wave is not None and clip.wave[:6].tolist() == [0, 0, 0, 1, -1, 0.5]
    assert clip.wave.dtype == np.float32 and clip.audio_ok == (True,) * 4
    assert details(clip, "damaged") == ["audio: 3 of 4000 samples are not numbers and set to 0"]


def test_short_audio_is_noted_with_its_spans() -> None:
    audio = Audio([Stretch(tone(4), RATE, 0.0)], [(0.0, 1.0), (1.5, 2.0), (3.0, 3.4)])
    lost = Scan(video_s=TENTHS, audio_s=1.95, audio_start_s=0.0, audio_end_s=10.0)
    clip = checked_clip("pyav", plan(lost), shown(*[IMAGE] * 4), audio)
    assert clip.audio_ok == (True, True, False, False), "half a second is enough"
    assert details(clip, "short_audio") == [
        "sound for 1.900 of 4.000 s (1900 of 4000 samples), at 0.000-1.000 s, 1.500-2.000 s, 3.000-3.400 s; "
        "the rest is silence"
    ]
    assert details(clip, "damaged") == [], "a tenth of a second less is no loss"
    lost = replace(lost, audio_s=2.1)
    clip = checked_clip("pyav", plan(lost), shown(*[IMAGE] * 4), audio)
    assert details(clip, "damaged") == ["audio: 1.900 s of sound decoded of 2.100 s promised in the clip"]
    many = Audio([Stretch(tone(4), RATE, 0.0)], [(t / 2, t / 2 + 0.1) for t in range(7)])
    clip = checked_clip("pyav", plan(replace(lost, audio_s=0.7)), shown(*[IMAGE] * 4), many)
    assert " and 3 more parts; the rest" in details(clip, "short_audio")[0]


@pytest.mark.parametrize(
    ("level", "loudest", "said"),
    [
        (0.0, 0.0, "digital silence: every sample is zero"),
        (1e-5, 0.0, "digital silence: the loudest sample is -100 dBFS"),
        (0.0, 0.5, "the channels cancel each other: they reach -6 dBFS, their mix to mono is silent"),
        (0.0, None, "the mix of the channels is silent (every sample is zero); this decoder does not tell"),
    ],
)
def test_silence_is_noted_with_its_reason(level: float, loudest: float | None, said: str) -> None:
    audio = replace(Audio.of(tone(4, level), RATE, 0.0), loudest=loudest)
    (detail,) = details(checked_clip("pyav", plan(), shown(*[IMAGE] * 4), audio), "silent_audio")
    assert detail.startswith(said)
    loud = Audio.of(tone(4, 2e-4), RATE, 0.0)
    assert details(checked_clip("pyav", plan(), shown(*[IMAGE] * 4), loud), "silent_audio") == []


def test_errors_concealed_frames_and_scaling_are_counted_in_notes() -> None:
    frames = shown(*[IMAGE] * 4)
    frames.errors, frames.concealed, frames.resized = ["bad", "worse"], 2, 3
    audio = Audio.of(tone(4), RATE, 0.0)
    audio.errors = ["sad"]
    clip = checked_clip("pyav", plan(), frames, audio)
    assert details(clip, "damaged") == [
        "video: 2 decoding errors, first: bad; 2 pictures concealed by the decoder",
        "audio: 1 decoding error, first: sad",
    ]
    assert details(clip, "size_changes") == ["3 pictures scaled to the first's 8x4"]
    assert clip.frames_ok == (True,) * 4
    assert clip.facts == {
        "decoder": "pyav",
        "container": "mov",
        "media_s": 10.0,
        "video": {
            "stream": 0,
            "codec": "h264",
            "fps": 10.0,
            "height": 4,
            "width": 8,
            "shown_s": [0.5, 1.5, 2.5, 3.5],
        },
        "audio": {"stream": 1, "codec": "aac", "rate_hz": RATE, "channels": 1, "samples": 4000},
    }
    assert describe_errors([]) == ""


def test_rotated_frames_are_noted_with_both_sizes() -> None:
    turned = shown(*[np.rot90(IMAGE)] * 4)
    turned.rotated_deg = 90
    audio = Audio.of(tone(4), RATE, 0.0)
    assert details(checked_clip("pyav", plan(), turned, audio), "rotated") == [
        "stored 8x4, turned upright to 4x8 (by 90 degrees)"
    ]
    turned = shown(*[IMAGE] * 4)
    turned.mirrored = True
    assert details(checked_clip("pyav", plan(), turned, audio), "rotated") == [
        "stored 8x4, mirrored to 8x4 as the container asks"
    ]
    turned = shown(*[IMAGE] * 4)
    turned.askew_deg = 30
    assert "a turn by 30 degrees" in details(checked_clip("pyav", plan(), turned, audio), "rotated")[0]
    plain = shown(*[IMAGE] * 4)
    plain.rotated_deg = 360
    assert details(checked_clip("pyav", plan(), plain, audio), "rotated") == []


def test_segments_before_the_first_frame_are_not_real() -> None:
    audio = Audio.of(tone(4), RATE, 0.0)
    begins = Scan(video_s=TENTHS[12:], audio_s=4.0, audio_start_s=0.0, audio_end_s=10.0)
    frames = Frames([IMAGE] * 4, [1.2, 1.5, 2.5, 3.5], [1.3, 1.6, 2.6, 3.6])
    clip = checked_clip("pyav", plan(begins), frames, audio)
    assert clip.frames_ok == (False, True, True, True)
    assert details(clip, "short_video") == [
        "video starts at 1.200 s of the media: 1 of 4 segments hold the first picture instead"
    ]
    nothing = Scan(video_over=True, audio_s=4.0, audio_start_s=0.0, audio_end_s=10.0)
    clip = checked_clip("pyav", plan(nothing), Frames.none(4), audio)
    assert clip.frames is None and clip.frames_ok == (False,) * 4
    assert details(clip, "short_video") == ["the video stream holds no picture between 0.000 and 4.000 s"]
    clip = checked_clip("pyav", plan(), Frames.none(4), audio)
    assert details(clip, "damaged") == [
        "video (h264 8x4): no picture decodes; the decoder gave no picture and no error"
    ]


def test_streams_and_their_formats_are_noted() -> None:
    several = replace(
        FACTS,
        video_streams=2,
        audio_streams=3,
        video=replace(VIDEO, pixel_aspect=(4, 3)),
        audio=replace(AUDIO, channels=("FL", "FR", "LFE")),
    )
    assert stream_notes(several) == [
        Note("several_streams", "2 video streams: stream 0 (h264 8x4) is used"),
        Note("several_streams", "3 audio streams: stream 1 (aac 1000 Hz) is used"),
        Note("downmixed", "3 channels (FL FR LFE) mixed to mono, LFE left out"),
        Note("non_square_pixels", "a pixel is 4:3: stored size 8x4 is kept, players show 11x4"),
    ]
    assert stream_notes(replace(FACTS, audio=replace(AUDIO, channels=("FL", "FR")))) == []
    assert stream_notes(replace(FACTS, video=replace(VIDEO, pixel_aspect=(100, 101)))) == []
    assert [note.code for note in stream_notes(replace(FACTS, video=None, audio=None, covers=1))] == [
        "no_video",
        "no_audio",
    ]
    assert "but cover art" in stream_notes(replace(FACTS, video=None, covers=1))[0].detail


def test_the_position_of_a_clip_in_its_media_is_noted() -> None:
    def codes(scan: Scan, facts: MediaFacts = FACTS, segments: int = 10) -> list[str]:
        return [note.code for note in time_notes(plan(scan, facts, segments=segments))]

    whole = Scan(video_s=TENTHS, audio_end_s=10.0, at_end=True, video_over=True)
    assert codes(whole) == [] and codes(whole, segments=9) == ["longer_media"]
    assert codes(replace(whole, error="x", parts=2, left_out=3)) == ["damaged", "joined", "damaged"]
    cut = Scan(video_s=TENTHS[:97], audio_end_s=9.7, at_end=True, video_over=True)
    (note,) = time_notes(plan(cut, segments=10))
    assert note.detail == "the header promises 10.000 s, the file's packets end at 9.700 s"
    assert codes(replace(cut, audio_end_s=9.8)) == [], "a quarter of a second is no loss"
    assert codes(cut, replace(FACTS, guessed=True)) == [] == codes(cut, replace(FACTS, other_streams=1))
    assert codes(replace(cut, at_end=False)) == []
    uneven = Scan(video_s=[0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], audio_end_s=10.0)
    assert (
        codes(uneven) == ["variable_frame_rate"] and codes(replace(uneven, video_s=uneven.video_s[:8])) == []
    )
    faster = replace(FACTS, video=replace(VIDEO, base_fps=15.0))
    (note,) = time_notes(plan(whole, faster, segments=10))
    assert "10.000 a second on average at a base rate of 15" in note.detail
    assert codes(whole, replace(FACTS, video=replace(VIDEO, base_fps=20.0))) == [], "interlaced"


# Messages, requests, limits, files


def message(**arrays: Any) -> tuple[int, bytearray]:
    data = b"".join(bytes(part) for part in pack("result", {"a": 1}, arrays))
    return int.from_bytes(data[8:12], "little"), bytearray(data[12:])


def test_messages_with_arrays_of_every_shape_are_unpacked_unchanged() -> None:
    arrays = {
        "x": np.arange(7, dtype=np.int16),
        "none": np.zeros((0, 3), np.float32),
        "y": np.ones((2, 3), bool),
    }
    read = unpack(*message(**arrays))
    assert (read.kind, read.data, list(read.arrays)) == ("result", {"a": 1}, ["x", "none", "y"])
    assert all(
        np.array_equal(read.arrays[n], a)
        and read.arrays[n].dtype == a.dtype
        and read.arrays[n].shape == a.shape
        for n, a in arrays.items()
    )
    header, body = message(**arrays)
    assert header % 64 == 0 and len(body) % 64 == 0
    for wrong in (body[:-64], body + bytes(64)):
        with pytest.raises(WireError):
            unpack(header, wrong)
    with pytest.raises(TypeError, match="cannot be sent"):
        pack("k", {}, {"x": np.array(["a"])})


def test_an_inbox_joins_partial_messages_and_refuses_long_ones() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    data = b"".join(bytes(part) for part in pack("k", {"n": 1}, {"x": np.arange(9)}))
    size = int.from_bytes(data[:8], "little")
    with ours, theirs:
        inbox = Inbox(size)
        assert inbox.read(ours) is None
        for at in (slice(0, 5), slice(5, 20), slice(20, len(data) - 1)):
            theirs.sendall(data[at])
            assert inbox.read(ours) is None
        theirs.sendall(data[-1:] + data)
        for _ in range(2):
            found = inbox.read(ours)
            assert found is not None and found.arrays["x"].tolist() == list(range(9))
        theirs.sendall(data)
        with pytest.raises(WireError, match=f"a message of {size} bytes; at most {size - 1}"):
            Inbox(size - 1).read(ours)
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        theirs.sendall(data[:-1])
        theirs.close()
        with pytest.raises(EOFError):
            Inbox(size).read(ours)


def test_requests_are_taken_in_order_while_there_is_room() -> None:
    taken: list[int] = []

    def requests() -> Iterator[dict[str, Any] | None]:
        for n in range(4):
            taken.append(n)
            yield {"id": n}
            if n == 1:
                yield None

    run = Run(requests())
    assert run.refill(1) and taken == [0] and run.held == 1
    assert run.refill(9) and taken == [0, 1], "no request was ready"
    assert run.refill(9) and taken == [0, 1, 2, 3] and [a.id for a in run.waiting] == ["0", "1", "2", "3"]
    assert not run.finished and Attempt({"id": 7}).number == 1
    run.running["0"] = run.waiting.popleft()
    run.waiting.clear()
    assert not run.refill(9) and not run.finished
    run.running.clear()
    assert run.finished
    twice = Run(iter([{"id": 1}, {"id": 1}]))
    with pytest.raises(ValueError, match="'1' is given twice"):
        twice.refill(9)
    left = Run(requests())
    left.abandoned.set()
    assert not left.refill(9)


def test_values_up_to_a_limit_are_allowed(tmp_path: Path) -> None:
    Limits().check("size", 5, 5, " bytes")
    with pytest.raises(DecodeError, match="size: 6 bytes is more than the allowed 5 bytes"):
        Limits().check("size", 6, 5, " bytes")
    path = tmp_path / "x.mp4"
    path.write_bytes(b"12345")
    assert regular_file(str(path), Limits(file_bytes=5)) == 5
    with pytest.raises(DecodeError, match="file size: 5 bytes is more than the allowed 4 bytes"):
        regular_file(str(path), Limits(file_bytes=4))
    path.write_bytes(b"")
    with pytest.raises(DecodeError, match=r"x\.mp4 is empty"):
        regular_file(str(path), Limits())
    with pytest.raises(DecodeError, match=r"not a regular file"):
        regular_file(str(tmp_path), Limits())
    assert library_message(OSError(2, "gone", "file")) == "gone"
    assert library_message(ValueError("one\ntwo")) == "one" and library_message(ValueError()) == "ValueError"
    assert len(library_message(ValueError("x" * 999))) == 300


def test_a_sampling_cuts_a_clip_into_whole_segments() -> None:
    sampling = Sampling(3, 0.96, 16000)
    assert (sampling.segment_samples, sampling.samples) == (15360, 46080)
    assert sampling.seconds == pytest.approx(2.88)
    assert sampling.centres_s(1.0) == pytest.approx([1.48, 2.44, 3.4])


def test_images_of_a_wav_are_looked_for_in_the_split_folder_first(tmp_path: Path) -> None:
    wav = tmp_path / "audio_wav" / "train" / "a.wav"
    wav.parent.mkdir(parents=True)
    frames = tmp_path / "visual_frames"
    assert stills_folder(str(wav)) is None
    (frames / "a").mkdir(parents=True)
    assert stills_folder(str(wav)) == frames / "a"
    (frames / "train" / "a").mkdir(parents=True)
    assert stills_folder(str(wav)) == frames / "train" / "a"
    assert (
        stills_folder(str(wav.with_suffix(".WAV"))) is not None
        and stills_folder(str(wav.with_suffix(".mp4"))) is None
    )
    for name in ("a_2.png", "a_10.JPG", "a_1.jpeg", "notes.txt", "a.png.bak"):
        (frames / "train" / "a" / name).touch()
    assert media_files(str(wav)) == [
        str(wav),
        *(str(frames / "train" / "a" / name) for name in ("a_1.jpeg", "a_10.JPG", "a_2.png")),
    ]
    assert media_files("b.mp4") == ["b.mp4"]


def test_small_jumps_are_rounding_and_larger_ones_gaps() -> None:
    for jump_s, spans in ((0.04, [(0.0, 2.0)]), (0.2, [(0.0, 1.0), (1.2, 2.2)])):
        collected = line()
        for at_s in (0.0, 0.5, 1.0 + jump_s, 1.5 + jump_s):
            collected.add(at_s, tone(0.5), RATE)
        found = [(round(a, 3), round(b, 3)) for a, b in collected.audio().spans_s]
        assert found == spans
    collected = AudioLine(0.01, (0.0, 10.0))
    for at_s in (0.0, 0.5, 1.3, 1.5, 2.0):  # the third is off by 0.3 s
        collected.add(at_s, tone(0.5), RATE)
    assert collected.audio().spans_s == [(0.0, 2.5)], "the start must not move either"


def test_with_a_fine_clock_the_first_timestamp_is_the_start() -> None:
    collected = AudioLine(1 / 500, (0.0, 10.0))
    for at_s in (0.1, 0.602):
        collected.add(at_s, tone(0.5), 500)
    assert collected.audio().spans_s[0][0] == 0.1


def test_a_few_missing_milliseconds_of_audio_are_not_noted() -> None:
    audio = Audio([Stretch(tone(4), RATE, 0.0)], [(0.0, 3.96)])
    clip = checked_clip("pyav", plan(), shown(*[IMAGE] * 4), audio)
    assert details(clip, "short_audio") == []
    audio = Audio([Stretch(tone(4), RATE, 0.0)], [(0.0, 3.94)])
    assert len(details(checked_clip("pyav", plan(), shown(*[IMAGE] * 4), audio), "short_audio")) == 1
    little = Scan(video_s=TENTHS, audio_s=0.05, audio_end_s=10.0)
    clip = checked_clip("pyav", plan(little), shown(*[IMAGE] * 4), Audio(errors=["sad"]))
    assert details(clip, "short_audio") == [
        "the audio stream holds no sound between 0.000 and 4.000 s; 1 decoding error, first: sad"
    ]
    assert clip.wave is not None and clip.wave.tolist() == [0.0] * 4000 and clip.audio_ok == (False,) * 4
    more = replace(little, audio_s=0.06)
    clip = checked_clip("pyav", plan(more), shown(*[IMAGE] * 4), None)
    assert details(clip, "damaged") == [
        "audio (aac 1000 Hz): no sample decodes of 0.060 s promised; the decoder gave no sample and no error"
    ]


def test_packets_that_end_early_after_the_clip_are_no_damage() -> None:
    cut = Scan(video_s=TENTHS[:45], audio_end_s=4.5, at_end=True, video_over=True)
    assert [note.code for note in time_notes(plan(cut))] == ["longer_media"]
    assert [note.code for note in time_notes(plan(cut, segments=5))] == ["longer_media", "damaged"]


def test_less_than_half_a_segment_of_audio_is_real_only_if_it_is_the_whole_stream() -> None:
    audio = Audio.of(tone(0.3), RATE, 0.0)
    scan = Scan(video_s=TENTHS, audio_s=0.3, audio_start_s=0.0, audio_end_s=0.3, at_end=True)
    facts = replace(FACTS, audio=replace(AUDIO, duration_s=0.3))
    ok = {
        "all of it": checked_clip("pyav", plan(scan, facts), shown(*[IMAGE] * 4), audio).audio_ok,
        "it goes on": checked_clip(
            "pyav", plan(replace(scan, at_end=False), facts), shown(*[IMAGE] * 4), audio
        ).audio_ok,
        "some was lost": checked_clip(
            "pyav", plan(replace(scan, audio_s=0.5), facts), shown(*[IMAGE] * 4), audio
        ).audio_ok,
        "it began before": checked_clip(
            "pyav",
            plan(scan, replace(FACTS, audio=replace(AUDIO, start_s=-1.0, duration_s=1.3))),
            shown(*[IMAGE] * 4),
            audio,
        ).audio_ok,
    }
    assert ok == {
        "all of it": (True, False, False, False),
        "it goes on": (False,) * 4,
        "some was lost": (False,) * 4,
        "it began before": (False,) * 4,
    }


def test_audio_samples_are_counted_at_the_requested_rate() -> None:
    audio = Audio.of(np.full(8000, 0.5, np.float32), 2000, 0.0)
    rates = Audio(
        [Stretch(tone(2), RATE, 0.0), Stretch(np.full(4000, 0.5, np.float32), 2000, 2.0)], [(0.0, 4.0)]
    )
    clip = checked_clip("pyav", plan(), shown(*[IMAGE] * 4), audio)
    assert (clip.facts["audio"]["rate_hz"], clip.facts["audio"]["samples"]) == (2000, 4000)
    clip = checked_clip("pyav", plan(), shown(*[IMAGE] * 4), rates)
    assert details(clip, "rate_changes") == ["sound begins with 1000 Hz, then has 2000 Hz from 2.000 s"]
    many = replace(FACTS, audio=replace(AUDIO, channels=("FL", "FR", "FC")))
    assert (
        checked_clip("pyav", plan(facts=many), shown(*[IMAGE] * 4), audio).facts["audio"]["mix"]
        == "libswresample"
    )
    bare = replace(FACTS, duration_s=None, video=None, audio=replace(AUDIO, duration_s=None))
    clip = checked_clip("pyav", plan(facts=bare), None, audio)
    assert "media_s" not in clip.facts and "video" not in clip.facts and clip.frames is None


# Clocks


def packet(stream: int, at: int, length: int, kind: str = "audio", pts: int | None = None) -> Any:
    return SimpleNamespace(
        stream_index=stream,
        dts=at,
        pts=at if pts is None else pts,
        duration=length,
        stream=SimpleNamespace(type=kind),
    )


def test_the_clock_of_a_second_part_continues_where_the_first_ended() -> None:
    clock = Clock(replace(FACTS, container="mpegts"), restarts=True)
    stamps = []
    for at in (0, 100, 200, 0, 100):
        one = packet(1, at, 100)
        assert clock.straighten(one, 0.01)
        stamps.append((one.pts, one.dts))
    assert stamps == [(n, n) for n in (0, 100, 200, 300, 400)] and clock.parts == 2
    late = packet(0, 50, 4, "video", pts=60)
    clock = Clock(replace(FACTS, container="mpegts"), restarts=True)
    for one in (packet(0, 0, 4), packet(1, 0, 100), packet(0, 296, 4), packet(1, 200, 100)):
        clock.straighten(one, 0.01)
    clock.straighten(late, 0.01)
    assert (late.dts, late.pts) == (300, 310) and clock.parts == 2, "both stamps are shifted alike"
    other = packet(1, 50, 100)
    clock.straighten(other, 0.01)
    assert other.dts == 300 and clock.parts == 2, "the other stream enters the same part"


def test_only_a_far_jump_of_the_clock_begins_a_second_part() -> None:
    for jump_s, parts in ((9.0, 1), (11.5, 2)):
        clock = Clock(replace(FACTS, container="mpegts"), restarts=True)
        for at in (0, 100, round(200 + 100 * jump_s)):
            one = packet(1, at, 100)
            clock.straighten(one, 0.01)
        assert clock.parts == parts
        assert one.dts == (round(200 + 100 * jump_s) if parts == 1 else 200)


def test_packets_whose_time_goes_back_are_dropped_where_files_cannot_be_joined() -> None:
    clock = Clock(FACTS, restarts=False)
    kept = [clock.straighten(packet(1, at, 100), 0.01) for at in (0, 300, 250, 200, 400)]
    assert kept == [True, True, True, True, True], "up to a second counts as overlap"
    assert not clock.straighten(packet(1, 100, 100), 0.01) and clock.left_out == {(1, 100)}
    assert not clock.straighten(packet(1, 380, 100), 0.01), "after the first step back a small one is enough"
    assert clock.straighten(packet(1, 395, 100), 0.01) and clock.straighten(packet(0, 100, 4), 0.01)
    joined = Clock(replace(FACTS, container="mpegts"), restarts=False)
    for at in (500, 0):
        assert joined.straighten(packet(1, at, 100), 0.01)


def test_frames_of_an_avi_are_shown_in_decoding_order() -> None:
    for container, codec, pts in (("avi", "h264", 5), ("avi", "mpeg4", 7), ("mov", "h264", 7)):
        facts = replace(FACTS, container=container, video=replace(VIDEO, codec=codec))
        one = packet(0, 5, 1, "video", pts=7)
        assert Clock(facts, restarts=False).straighten(one, 0.01) and one.pts == pts


# Scans of made-up packets


class Film:
    """A container of made-up packets that may end with an error."""

    def __init__(self, broken: bool) -> None:
        self.streams = [SimpleNamespace(time_base=0.001), SimpleNamespace(time_base=0.001)]
        self.sought: list[float] = []
        self.from_s = -1e9
        self.broken = broken
        self.packets: list[Any] = []

    def seek(self, at: int, backward: bool) -> None:
        assert backward
        self.sought.append(at / av.time_base)
        self.from_s = at / av.time_base

    def demux(self, streams: Any) -> Iterator[Any]:
        for packet in self.packets:
            if packet.dts * 0.001 >= self.from_s - 1e-9:
                yield packet
        if self.broken:
            raise av.error.InvalidDataError(1, "Invalid data found")
        yield SimpleNamespace(size=0)


def frame(time_s: float, key: bool = False, **more: Any) -> dict[str, Any]:
    return {"stream_index": 0, "time_s": time_s, "length_s": 0.1, "is_keyframe": key, **more}


def piece(time_s: float, length_s: float = 0.1, **more: Any) -> dict[str, Any]:
    return {"stream_index": 1, "time_s": time_s, "length_s": length_s, "is_keyframe": True, **more}


@pytest.fixture
def film(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`film(packets, ...)`: the container that a scan reads."""

    def make(packets: list[dict[str, Any]], origin_s: float = 0.0, broken: bool = False) -> Film:
        made = Film(broken)
        for one in sorted(packets, key=lambda p: p["time_s"]):
            at = round((one["time_s"] + origin_s) * 1000)
            given = {k: v for k, v in one.items() if k not in ("time_s", "length_s", "encrypted")}
            made.packets.append(
                SimpleNamespace(
                    **{
                        "size": 9,
                        "pts": at,
                        "dts": at,
                        "duration": round(one["length_s"] * 1000),
                        "is_discard": False,
                        "stream": SimpleNamespace(type="audio" if one["stream_index"] else "video"),
                        "has_sidedata": {"encryption_info": one.get("encrypted", False)}.get,
                        **given,
                    }
                )
            )

        def open_media(path: str, limits: Limits) -> Any:
            made.from_s = -1e9  # each reading begins at the start
            return nullcontext(made)

        monkeypatch.setattr(scanning, "open_media", open_media)
        return made

    return make


def whole_film(seconds: int, keys_s: float = 1.0) -> list[dict[str, Any]]:
    tenths = [n / 10 for n in range(10 * seconds)]
    return [frame(s, key=round(s * 10) % round(keys_s * 10) == 0) for s in tenths] + [
        piece(s) for s in tenths
    ]


def read(start_s: float = 0.0, first_s: float = 0.5, seconds: float = 2.0, facts: MediaFacts = FACTS) -> Scan:
    return scanning.scan(facts, start_s, first_s, seconds, Limits())


def test_a_scan_reports_what_packets_promise_in_media_time(film: Any) -> None:
    film(whole_film(3), origin_s=5.0)
    found = read(facts=replace(FACTS, origin_s=5.0))
    assert found.video_s[:3] == pytest.approx([0.0, 0.1, 0.2]) and found.audio_start_s == pytest.approx(0.0)
    assert (found.video_end_s, found.audio_end_s) == (pytest.approx(3.0), pytest.approx(3.0))
    assert found.audio_s == pytest.approx(2.0)
    assert found.at_end and found.video_over and not (found.holes or found.cut or found.error)
    assert (found.parts, found.left_out, found.encrypted, found.seek_s, found.key_s) == (
        1,
        0,
        frozenset(),
        None,
        None,
    )


def test_a_scan_ends_shortly_after_the_clip(film: Any) -> None:
    film(whole_film(20))
    found = read()
    assert not found.at_end and not found.video_over and 3.0 <= found.video_s[-1] <= 3.2
    film([one for one in whole_film(20) if one["stream_index"] == 1 or one["time_s"] < 1])
    found = read()
    assert found.video_over and not found.at_end and 12 < (found.audio_end_s or 0) < 12.3


def test_a_clip_far_inside_is_reached_by_a_seek_to_one_second_before(film: Any) -> None:
    made = film(whole_film(30), origin_s=5.0)
    found = read(10.0, 10.5, facts=replace(FACTS, origin_s=5.0))
    assert made.sought == [pytest.approx(14.0)] and found.seek_s == 9.0 and found.key_s is None
    assert found.video_s[0] == pytest.approx(9.0) and found.audio_s == pytest.approx(2.0)


def test_after_a_seek_frames_before_the_first_key_frame_do_not_count(film: Any) -> None:
    film(whole_film(30, keys_s=1.5))
    found = read(10.0, 11.0)
    assert found.seek_s == 9.0 and found.video_s[0] == pytest.approx(9.0)
    made = film(whole_film(30, keys_s=2.0))
    found = read(10.0, 10.5)
    assert found.seek_s == 9.0 and found.video_s[0] == pytest.approx(10.0), "9.0 to 9.9 do not decode"
    assert made.sought == [9.0]


def test_a_seek_that_lands_too_late_is_retried_earlier_and_then_from_the_start(film: Any) -> None:
    made = film(whole_film(40, keys_s=7.0))
    found = read(20.0, 20.5)
    assert made.sought == [19.0, 9.0] and found.seek_s == 9.0 and found.video_s[0] == pytest.approx(14.0)
    made = film(whole_film(40, keys_s=22.0))
    found = read(20.0, 20.5)
    assert made.sought == [19.0, 9.0] and found.seek_s is None and found.key_s == 0.0


@pytest.mark.parametrize(
    "facts", [replace(FACTS, joined=True), replace(FACTS, video=replace(VIDEO, carries_state=True))]
)
def test_media_that_must_be_read_from_the_start_are_not_seeked(film: Any, facts: MediaFacts) -> None:
    made = film(whole_film(30))
    found = read(10.0, 10.5, facts=facts)
    assert made.sought == [] and found.seek_s is None and found.key_s is None
    made = film(whole_film(30))
    assert (
        scanning.scan(FACTS, 10.0, 10.5, 1.0, Limits(), from_start=True).seek_s is None and made.sought == []
    )
    made = film(whole_film(30))
    assert read(4.9, 5.4).seek_s is None and made.sought == []


def test_a_scan_detects_gaps_cuts_and_encryption(film: Any) -> None:
    plain = whole_film(3)
    film([one for one in plain if one["stream_index"] == 0 or not 0.5 < one["time_s"] < 1.0])
    found = read()
    assert found.holes and found.audio_s == pytest.approx(1.6)
    film([{**one, "is_discard": one["time_s"] < 0.3} for one in plain])
    found = read()
    assert found.cut and found.video_s[0] == pytest.approx(0.3) and found.audio_s == pytest.approx(1.7)
    film([{**one, "is_discard": one["stream_index"] == 1 and one["time_s"] < 0.3} for one in plain])
    assert not read().cut
    film([{**one, "encrypted": one["stream_index"] == 1} for one in plain])
    assert read().encrypted == frozenset({1})
    film(plain, broken=True)
    found = read()
    assert found.error and found.at_end and found.video_over
    film(plain)
    with pytest.raises(DecodeError, match="packets read for one clip: 6 is more than the allowed 5"):
        scanning.scan(FACTS, 0.0, 0.5, 2.0, Limits(packets=5))


def test_the_duration_of_the_last_packet_of_a_file_is_not_promised(film: Any) -> None:
    film([piece(n / 10) for n in range(10)])
    alone = replace(FACTS, video=None)
    found = read(facts=alone)
    assert found.at_end and found.audio_s == pytest.approx(0.9)
    film([piece(n / 10) for n in range(100)])
    assert read(facts=alone).audio_s == pytest.approx(2.0)


def test_a_failed_seek_falls_back_to_the_start_or_is_an_error() -> None:
    class Unseekable:
        def __init__(self, times: int) -> None:
            self.times, self.sought = times, []

        def seek(self, at: int, backward: bool) -> None:
            self.sought.append(at / av.time_base)
            if len(self.sought) <= self.times:
                raise av.error.PermissionError(1, "not there")

    facts = replace(FACTS, origin_s=2.0)
    for times, gone in ((0, True), (1, False)):
        container = Unseekable(times)
        assert scanning.seek_to(container, facts, 10.0) is gone
        assert container.sought == [12.0, 2.0][: times + 1]
    with pytest.raises(DecodeError, match="no place in the file can be gone to: not there"):
        scanning.seek_to(Unseekable(2), facts, 10.0)
    bare = Unseekable(1)
    assert not scanning.seek_to(bare, replace(facts, container="h264"), 10.0) and bare.sought == [12.0]


# One audio stream


def audio_frame(time_s: float | None, samples: Any, rate_hz: int = RATE) -> Any:
    """A decoded piece, `[n]` or `[C, n]`."""
    channels = np.atleast_2d(np.asarray(samples, np.float32))
    layout = {1: "mono", 2: "stereo"}[len(channels)]
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(channels.T).reshape(1, -1), format="flt", layout=layout
    )
    frame.sample_rate, frame.time_base = rate_hz, Fraction(1, 1000)
    frame.pts = None if time_s is None else round(time_s * 1000)
    return frame


def track(**more: Any) -> _AudioTrack:
    return _AudioTrack(plan(**more), SimpleNamespace(time_base=0.001))


def test_audio_is_taken_by_its_times_until_the_clip_is_covered() -> None:
    taken = track(facts=replace(FACTS, origin_s=5.0))
    assert not taken.done
    taken.take(audio_frame(5.0, tone(2.0)))
    taken.take(audio_frame(None, tone(2.05)))
    assert taken.collected().spans_s[0][0] == 0.0 and not taken.done, (
        "the filter needs a little more than the clip"
    )
    taken.take(audio_frame(9.05, tone(0.05)))
    assert taken.done and taken.collected().spans_s == [(0.0, pytest.approx(4.1))]


def test_after_a_change_of_rate_timestamps_are_ignored() -> None:
    taken = track()
    taken.take(audio_frame(0.0, tone(1.0)))
    taken.take(audio_frame(7.0, np.ones(2000, np.float32), 2000))
    taken.take(audio_frame(2.0, tone(1.0)))
    assert taken.collected().spans_s == [(0.0, pytest.approx(3.0))]
    assert [stretch.rate_hz for stretch in taken.collected().stretches] == [1000, 2000, 1000]


def test_channels_that_cancel_within_the_clip_are_remembered_as_loud() -> None:
    for at_s, loudest in ((1.0, 0.5), (4.0, 0.0)):
        taken = track()
        taken.take(audio_frame(at_s, [tone(1.0), -tone(1.0)]))
        assert taken.line.loudest == pytest.approx(loudest)
    taken = track()
    taken.take(audio_frame(0.0, [tone(1.0), tone(1.0)]))
    assert taken.line.loudest == 0.0 and taken.collected().stretches[0].mono[500] == pytest.approx(
        0.5, abs=0.01
    )


def test_errors_before_the_clip_are_reported_only_if_nothing_decoded() -> None:
    taken = track(start_s=100.0)
    packet = SimpleNamespace(pts=99_000, duration=1000)
    assert not taken.concerns(packet) and taken.concerns(SimpleNamespace(pts=99_001, duration=1000))
    assert taken.concerns(None) and taken.concerns(SimpleNamespace(pts=None, duration=0))
    assert not taken.wants(SimpleNamespace(pts=70_000)) and taken.wants(SimpleNamespace(pts=70_001))
    assert taken.wants(SimpleNamespace(pts=None))
    taken.early.append("sad")
    assert taken.collected().errors == ["sad"]
    taken = track(start_s=100.0)
    taken.early.append("sad")
    taken.take(audio_frame(100.0, tone(1.0)))
    assert taken.collected().errors == []
    for channels, rate_hz, said in ((2, RATE, "audio channels: 2"), (1, 2 * RATE, "audio rate: 2000 Hz")):
        strict = _AudioTrack(
            replace(plan(), limits=Limits(audio_channels=1, audio_rate_hz=RATE)),
            SimpleNamespace(time_base=0.001),
        )
        with pytest.raises(DecodeError, match=said):
            strict.take(audio_frame(0.0, [tone(0.1)] * channels, rate_hz))


# One video stream


def video_frame(time_s: float) -> Any:
    frame = av.VideoFrame.from_ndarray(np.full((4, 8, 3), round(time_s * 10), np.uint8), format="rgb24")
    frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
    return frame


def test_the_frame_shown_at_a_time_is_the_last_before_it() -> None:
    wanted = _VideoTrack(plan(start_s=1.0), SimpleNamespace(time_base=0.001), skip=False)
    for at_s in (0.9, 1.5, 2.4, 2.6, 4.0):
        wanted.take(video_frame(at_s))
    assert not wanted.done
    wanted.finish()
    found = wanted.found
    assert wanted.done and found.decoded == 5 and not wanted.late and wanted.first_s == pytest.approx(0.9)
    assert found.shown_s == pytest.approx([1.5, 2.4, 2.6, 4.0])
    assert found.until_s == [pytest.approx(2.4), pytest.approx(2.6), pytest.approx(4.0), None]
    assert [int(image[0, 0, 0]) for image in found.images if image is not None] == [15, 24, 26, 40]
    late = _VideoTrack(plan(), SimpleNamespace(time_base=0.001), skip=False)
    assert late.late
    for at_s in (1.2, 1.3, 2.7, 2.8):
        late.take(video_frame(at_s))
    late.finish()
    assert late.late and late.found.shown_s == pytest.approx([1.2, 1.3, 1.3, 2.8])
    few = _VideoTrack(replace(plan(), limits=Limits(frames=1)), SimpleNamespace(time_base=0.001), skip=False)
    few.take(video_frame(0.0))
    with pytest.raises(DecodeError, match="pictures decoded for one clip: 2 is more than the allowed 1"):
        few.take(video_frame(0.1))
    small = _VideoTrack(
        replace(plan(), limits=Limits(frame_pixels=31)), SimpleNamespace(time_base=0.001), skip=False
    )
    with pytest.raises(DecodeError, match="picture size: 32 pixels"):
        small.take(video_frame(0.0))


def test_unneeded_frames_far_from_the_wanted_ones_are_skipped() -> None:
    near = _near_wanted(plan(segments=2))
    assert near == [(pytest.approx(0.1), pytest.approx(0.6)), (pytest.approx(1.1), pytest.approx(1.6))]
    other = replace(FACTS, video=replace(VIDEO, codec="mpeg4"))
    assert (
        _near_wanted(plan(facts=other))
        == []
        == _near_wanted(plan(Scan(video_s=[0.0])))
        == _near_wanted(plan(Scan(TENTHS, error="x")))
    )
    context = SimpleNamespace(skip_frame="DEFAULT")
    aimed = _VideoTrack(plan(segments=2), SimpleNamespace(time_base=0.001, codec_context=context), skip=True)
    said = []
    for at in (0, 110, 590, 700, 1000, 1200):
        aimed.aim(SimpleNamespace(pts=at))
        said.append(context.skip_frame)
    assert said == ["NONREF", "DEFAULT", "DEFAULT", "NONREF", "NONREF", "DEFAULT"] and aimed.skipped
    far = _VideoTrack(plan(Scan(TENTHS, key_s=2.0)), SimpleNamespace(time_base=0.001), skip=True)
    packets = [(0, True), (1900, False), (2000, False), (2000, True), (2100, False)]
    wants = [far.wants(SimpleNamespace(pts=at, is_keyframe=key)) for at, key in packets]
    assert wants == [False, False, False, True, True], "from the last key frame before the first wanted one"


# Containers


def test_streams_start_in_media_time_whatever_the_containers_clock(write: Any) -> None:
    frame_s, tone_s = [5.5 + n / 10 for n in range(20)], 5.0
    made = write(
        "late.ts", frame_s=frame_s, audio=np.ones(64000, np.int16), audio_codec="aac", audio_from_s=tone_s
    )
    facts = probe(str(made.path))
    assert facts.origin_s > 4 and facts.video is not None and facts.audio is not None
    assert facts.video.start_s == pytest.approx(0.5, abs=0.1)
    assert facts.audio.start_s == pytest.approx(0.0, abs=0.1)
    assert (facts.video_streams, facts.audio_streams, facts.covers, facts.other_streams) == (1, 1, 0, 0)
    assert facts.size_bytes == made.path.stat().st_size and not facts.guessed
    assert facts.end_s == pytest.approx(2.5, abs=0.2)


def test_cover_art_is_no_video_stream() -> None:
    cover = SimpleNamespace(index=0, disposition=av.stream.Disposition.attached_pic)
    first, second = (SimpleNamespace(index=n, disposition=av.stream.Disposition(0)) for n in (1, 2))

    def chosen(best: Any, *streams: Any) -> Any:
        held = SimpleNamespace(video=list(streams), best=lambda kind: best)
        return _chosen(SimpleNamespace(streams=held), "video")

    assert chosen(cover, cover, first, second) == (first, 2)
    assert chosen(second, cover, first, second) == (second, 2)
    assert chosen(cover, cover) == (None, 0) == chosen(None)


# Refusals


@pytest.mark.parametrize(
    ("dtype", "shape"), [("complex64", [1]), ("object", [1]), ("S8", [1]), ("uint8", [-8]), ("uint8", ["8"])]
)
def test_arrays_of_unknown_dtype_or_shape_are_wire_errors(dtype: str, shape: list[Any]) -> None:
    header = json.dumps({"kind": "result", "data": {}, "arrays": [["x", dtype, shape]]}).encode()
    header += b" " * (-len(header) % 64)
    with pytest.raises(WireError, match="claims dtype"):
        unpack(len(header), bytearray(header + bytes(64)))


def test_an_id_that_is_already_running_is_refused() -> None:
    run = Run(iter([{"id": 1}]))
    run.running["1"] = Attempt({"id": 1})
    with pytest.raises(ValueError, match="'1' is given twice"):
        run.refill(9)


def test_a_folder_of_too_many_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a_1.png", "a_2.JPG", "a_3.jpeg", "a.png", "a_4.gif", "a_5.png.part"):
        (tmp_path / name).touch()
    monkeypatch.setattr(stills, "MAX_IMAGES", 3)
    assert sorted(stills._numbered(tmp_path)) == [1, 2, 3]
    monkeypatch.setattr(stills, "MAX_IMAGES", 2)
    with pytest.raises(DecodeError, match="holds more than the allowed 2 pictures"):
        stills._numbered(tmp_path)
    with pytest.raises(DecodeError, match="cannot read gone/"):
        stills._numbered(tmp_path / "gone")


# A child process as its parent sees it


class Started:
    """Stands in for `subprocess.Popen`: records its arguments; the process has ended with `code`."""

    pid = 0

    def __init__(self, command: list[str], **how: Any) -> None:
        self.command, self.how, self.killed = command, how, 0
        self.code: int | None = None
        self.other = socket.socket(fileno=os.dup(how["pass_fds"][0]))

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.killed += 1

    def wait(self, timeout: float | None = None) -> int | None:
        return self.code


def test_a_child_is_started_in_its_own_process_group_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working.subprocess, "Popen", Started)
    killed: list[Any] = []
    monkeypatch.setattr(working.os, "killpg", lambda pid, number: killed.append((pid, number)))
    worker = working.Worker(working.Work("a:b", {"c": 1}, None, 100), 5.0)
    process: Any = worker._process
    assert process.how["start_new_session"] and process.how["env"]["OMP_NUM_THREADS"] == "1"
    assert process.how["env"]["OPENBLAS_NUM_THREADS"] == "1" and process.how["env"]["PATH"]
    assert not worker.ready and not worker.idle and 4 < worker.due_s - time.monotonic() <= 5
    worker.ready = True
    assert worker.idle
    worker.send_request("x", {"id": "x"}, 500.0)
    assert (worker.request, worker.tasks, worker.idle) == ("x", 1, False)
    assert 499 < worker.due_s - time.monotonic() <= 500
    with pytest.raises(ValueError, match="a request of more than"):
        worker.send_request("y", {"id": "y" * (65 << 20)}, 1.0)
    worker._errors.write(b"first\nlast line\n")
    process.code = 3
    assert worker.kill() == "exited with status 3: last line" and killed == [(0, signal.SIGKILL)]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, ""),
        (-11, "died with SIGSEGV"),
        (-9, "died with SIGKILL (often: out of memory)"),
        (-63, "died with signal 63"),
        (0, "exited with status 0"),
    ],
)
def test_the_end_of_a_child_is_described(
    code: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working.subprocess, "Popen", Started)
    monkeypatch.setattr(working.os, "killpg", lambda pid, number: None)
    worker = working.Worker(working.Work("a:b", {}, None, 100), 5.0)
    worker._process.code = code  # type: ignore[attr-defined]
    assert worker._death(code) == said
    worker.kill()


def test_a_pool_needs_a_worker_and_a_deadline() -> None:
    for wrong, said in (({"workers": 0}, "0 workers"), ({"deadline_s": 0}, "a deadline of 0 s")):
        with pytest.raises(CaeavError, match=said):
            WorkerPool("a:b", {}, **wrong)
    pool = WorkerPool("a:b", {}, stage="seen")
    for given, stage in (({}, "seen"), ({"stage": "own"}, "own")):
        message = Message("failure", {"reason": "r", **given}, {})
        failure = pool._outcome(Attempt({"id": 1}, 2), message).failure
        assert failure is not None and (failure.stage, failure.reason, failure.attempts) == (stage, "r", 2)
    with pytest.raises(RuntimeError, match="not open"):
        next(pool.map([]))
    pool.close()


def test_times_are_media_times_in_display_order(film: Any) -> None:
    film([frame(0.0, key=True), frame(0.1, pts=200), frame(0.2, pts=100)])
    assert read().video_s == pytest.approx([0.0, 0.1, 0.2])
    late = _VideoTrack(plan(facts=replace(FACTS, origin_s=5.0)), SimpleNamespace(time_base=0.001), skip=False)
    for at_s in (5.5, 6.5, 7.5, 8.5):
        late.take(video_frame(at_s))
    late.finish()
    assert late.found.shown_s == pytest.approx([0.5, 1.5, 2.5, 3.5])
    exact = AudioLine(0.001, (0.0, 10.0))
    for at_s in (0.001, 0.5018):
        exact.add(at_s, tone(0.5), RATE)
    assert exact.audio().spans_s[0][0] == 0.001
