"""The checks of what a decoder returned, with made-up plans: promises, ends, encryption, clips with nothing real."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from caeav.pipeline.media.audio import Audio
from caeav.pipeline.media.checks import checked_clip
from caeav.pipeline.media.clip import DecodeError, Limits, Sampling
from caeav.pipeline.media.frames import Frames, Orientation
from caeav.pipeline.media.mixing import channels_of, mix_gain, mix_to_mono
from caeav.pipeline.media.probe import AudioFacts, MediaFacts, VideoFacts
from caeav.pipeline.media.registry import decoders
from caeav.pipeline.media.scan import Plan, Scan

RATE = 8000
VIDEO = VideoFacts(0, "h264", True, 8, 4, 10.0, 10.0, 0.0, 10.0)
AUDIO = AudioFacts(1, "aac", True, RATE, ("FC",), 0.0, 10.0)
FACTS = MediaFacts("film.mp4", 1000, "mov", 0.0, 10.0, VIDEO, AUDIO, 1, 1, 0, 0)
EVERY_TENTH = [n / 10 for n in range(100)]


def _plan(scan: Scan, facts: MediaFacts = FACTS, start_s: float = 0.0, segments: int = 4) -> Plan:
    return Plan(facts, scan, start_s, Sampling(segments, 1.0, RATE), Limits())


def _scan(**more: Any) -> Scan:
    return Scan(video_s=EVERY_TENTH, audio_s=4.0, audio_start_s=0.0, audio_end_s=10.0, **more)


def _frames(shown_s: list[float | None], until_s: list[float | None]) -> Frames:
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    return Frames([None if s is None else image for s in shown_s], shown_s, until_s)


def _audio(seconds: float, start_s: float = 0.0) -> Audio:
    return Audio.of(np.full(round(seconds * RATE), 0.5, dtype=np.float32), RATE, start_s)


SHOWN: list[float | None] = [0.5, 1.5, 2.5, 3.5]
UNTIL: list[float | None] = [0.6, 1.6, 2.6, 3.6]


def test_the_larger_promise_of_header_and_packets_counts() -> None:
    """One second by the header, four by the packets; and the other way round at the file's end."""
    facts = replace(FACTS, audio=replace(AUDIO, duration_s=1.0))
    clip = checked_clip("pyav", _plan(_scan(), facts), _frames(SHOWN, UNTIL), Audio())
    assert any("no sample decodes of 4.000 s promised" in n.detail for n in clip.notes)
    clip = checked_clip("pyav", _plan(_scan(), facts), _frames(SHOWN, UNTIL), _audio(1.0))
    assert any("1.000 s of sound decoded of 4.000 s promised" in n.detail for n in clip.notes)
    ended = Scan(video_s=EVERY_TENTH, audio_s=1.0, audio_start_s=0.0, audio_end_s=1.0, at_end=True)
    clip = checked_clip("pyav", _plan(ended), _frames(SHOWN, UNTIL), _audio(1.0))
    assert any("1.000 s of sound decoded of 4.000 s promised" in n.detail for n in clip.notes)


@pytest.mark.parametrize("guessed", [True, False])
def test_a_guessed_duration_is_no_promise(guessed: bool) -> None:
    ended = Scan(audio_s=1.0, audio_start_s=0.0, audio_end_s=1.0, at_end=True)
    facts = replace(FACTS, video=None, guessed=guessed)
    clip = checked_clip("pyav", _plan(ended, facts), None, _audio(1.0))
    assert ("damaged" in {n.code for n in clip.notes}) != guessed


@pytest.mark.parametrize(
    ("shown_s", "until_s", "ok", "code"),
    [
        (SHOWN, UNTIL, (True,) * 4, None),
        (
            [0.5, 0.9, 0.9, 0.9],
            [0.6, None, None, None],
            (True, False, False, False),
            "damaged",
        ),  # packets say more
        ([0.5, 1.5, 2.5, 0.0], [0.6, 1.6, 2.6, 0.1], (True, True, True, False), "damaged"),
        ([0.5, 1.5, None, 3.5], [0.6, 1.6, None, 3.6], (True, True, False, True), "damaged"),
    ],
)
def test_a_frame_is_real_if_it_is_the_one_to_be_shown(
    shown_s: list[float | None], until_s: list[float | None], ok: tuple[bool, ...], code: str | None
) -> None:
    clip = checked_clip("pyav", _plan(_scan()), _frames(shown_s, until_s), _audio(4))
    assert clip.frames_ok == ok
    assert {n.code for n in clip.notes} - {"longer_media"} == ({code} if code else set())


@pytest.mark.parametrize("at_end", [True, False])
def test_the_last_frame_is_real_while_it_is_shown_wherever_reading_stopped(at_end: bool) -> None:
    """Frames end at 1.5 s; it makes no difference whether reading reached the file's end or the audio went on."""
    scan = Scan(
        video_s=EVERY_TENTH[:15],
        audio_s=4.0,
        audio_start_s=0.0,
        audio_end_s=10.0,
        at_end=at_end,
        video_over=True,
    )
    clip = checked_clip(
        "pyav", _plan(scan), _frames([0.5, 1.4, 1.4, 1.4], [0.6, None, None, None]), _audio(4)
    )
    assert clip.frames_ok == (True, True, False, False)
    assert any(
        n.code == "short_video" and "ends at 1.500 s" in n.detail and "2 of 4" in n.detail for n in clip.notes
    )


def test_a_clip_without_anything_real_is_refused() -> None:
    scan = Scan(video_s=EVERY_TENTH[:15], audio_end_s=1.5, audio_start_s=0.0, at_end=True, video_over=True)
    with pytest.raises(
        DecodeError, match=r"\(5\.000-9\.000 s\) holds no real picture and no real sound: the header promises"
    ):
        checked_clip("pyav", _plan(scan, start_s=5.0), _frames([1.4] * 4, [None] * 4), _audio(1.5))


def test_encrypted_streams_are_refused_and_an_unencrypted_one_is_kept() -> None:
    both = FACTS.without({0, 1})
    with pytest.raises(
        DecodeError, match=r"video: it is encrypted, and there is no key; audio .* it is encrypted"
    ):
        checked_clip("pyav", _plan(_scan(), both), None, None)
    clip = checked_clip("pyav", _plan(_scan(), FACTS.without({0})), None, _audio(4))
    assert all(clip.audio_ok) and not any(clip.frames_ok) and clip.frames is None
    assert [n.detail for n in clip.notes if n.code == "damaged"] == [
        "video: it is encrypted, and there is no key"
    ]


def test_an_encrypted_file_is_refused_with_the_reason(write: Any, decoder: Any, tmp_path: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg command to encrypt a file with")
    tone = np.round(9000 * np.sin(np.arange(64000) / 9)).astype(np.int16)
    made = write("clear.mp4", frame_s=[n / 30 for n in range(60)], audio=tone, audio_codec="aac")
    path = tmp_path / "encrypted.mp4"
    keys = [
        "-encryption_key",
        "76a6c65c5ea762046bd749a2e632ccbb",
        "-encryption_kid",
        "a7e61c373e219033c21091fa607bf3b8",
    ]
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        str(made.path),
        "-c",
        "copy",
        "-encryption_scheme",
        "cenc-aes-ctr",
        *keys,
        str(path),
    ]
    subprocess.run(command, check=True, timeout=60)
    with pytest.raises(DecodeError, match="it is encrypted, and there is no key"):
        decoder.decode(str(path), 0.0, Sampling(2, 1.0, RATE))


@pytest.mark.parametrize(
    ("layout", "shares"),
    [
        ("stereo", {"FL": 0.5, "FR": 0.5}),
        ("5.1", {"FC": 1 / 3.4142, "FL": 0.7071 / 3.4142, "BL": 0.5 / 3.4142, "LFE": 0.0}),
        ("FL+FC+FR+SL+SR+LFE", {"FC": 1 / 3.4142, "SR": 0.5 / 3.4142, "LFE": 0.0}),
        ("ambisonic 1", {"AMBI0": 1.0, "AMBI1": 0.0}),
    ],
)
def test_channels_have_ffmpegs_share_of_the_mix(layout: str, shares: dict[str, float]) -> None:
    names = channels_of(av.AudioLayout(layout))
    for name, share in shares.items():
        samples = np.zeros((len(names), 256), dtype=np.float32)
        samples[names.index(name)] = 1.0
        mono, loudest = mix_to_mono(samples, names, RATE)
        assert mono == pytest.approx(share, abs=1e-4) and loudest == 1.0
    if layout != "ambisonic 1":
        assert mix_gain(names) == pytest.approx(1 / shares.get("FC", 1 / 2**0.5), abs=1e-3)


def test_channels_without_names_get_ffmpegs_names() -> None:
    assert channels_of(av.AudioLayout("6 channels")) == ("FL", "FR", "FC", "LFE", "BL", "BR")
    assert channels_of(av.AudioLayout("11 channels")) == ("NONE",) * 11
    mono, _ = mix_to_mono(np.ones((11, 64), dtype=np.float32), ("NONE",) * 11, RATE)
    assert mono == pytest.approx(1.0, abs=1e-5)


def test_a_matrix_without_a_right_angle_rotates_nothing() -> None:
    one, half = 1 << 16, round((1 << 16) * 0.7071)
    assert Orientation.of([half, half, 0, -half, half, 0, 0, 0, 1 << 30]) == Orientation(askew_deg=45)
    assert Orientation.of([0, one, 0, one, 0, 0, 0, 0, 1 << 30]) == Orientation(transposed=True)
    assert Orientation.of([0] * 9) == Orientation()


def test_an_unencrypted_file_has_no_note_of_encryption(write: Any) -> None:
    made = write("clear.mp4", frame_s=[n / 30 for n in range(30)])
    notes = decoders["pyav"]().decode(str(made.path), 0.0, Sampling(1, 1.0, RATE)).notes
    assert not any("encrypted" in note.detail for note in notes)
