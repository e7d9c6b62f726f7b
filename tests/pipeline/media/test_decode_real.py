"""Every real file through every decoder: content and notes are what MEDIA.csv says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from caeav.pipeline.media.clip import DecodeError, Sampling

LENGTH_S = 10.0


def _expected_codes(row: dict[str, str]) -> dict[str, bool]:
    """Note code -> whether the file must have it, by its independently measured row."""
    video_s = float(row["frames_decoded"]) / float(row["fps_avg"])
    audio_s = float(row["a_seconds_decoded"] or 0)
    return {
        "no_audio": not row["a_codec"],
        "no_video": not row["v_codec"],
        "short_video": video_s < LENGTH_S - 1.0,
        "short_audio": bool(row["a_codec"]) and audio_s < LENGTH_S - 0.05,
        "variable_frame_rate": row["vfr"] == "yes",
        "rotated": bool(row["rotation"]),
        "downmixed": int(row["a_channels"] or 0) > 2,
        "silent_audio": float(row["max_db"] or 0) < -80,
        "several_streams": row["streams"].count("v") > 1 or row["streams"].count("a") > 1,
        "damaged": int(row["v_error_lines"] or 0) > 0 or int(row["a_error_lines"] or 0) > 0,
    }


def test_notes_and_shapes_match_the_measured_files(
    decoder: Any, decoded: Any, media_rows: list[dict[str, str]]
) -> None:
    wrong = []
    for row in media_rows:
        clip = decoded(decoder.name, row["file"])
        if not int(row["frames_decoded"]) and not float(row["a_seconds_decoded"] or 0):
            if not isinstance(clip, DecodeError):
                wrong.append(f"{row['file']}: decoded although nothing in it does")
            continue
        if isinstance(clip, DecodeError):
            wrong.append(f"{row['file']}: {clip}")
            continue
        said = {note.code for note in clip.notes}
        wrong += [
            f"{row['file']}: {'no ' if must else ''}{code}: {[n.detail for n in clip.notes if n.code == code]}"
            for code, must in _expected_codes(row).items()
            if (code in said) != must
        ]
        width, height = (int(n) for n in row["resolution"].split("x"))
        shown = (width, height) if row["rotation"] in ("-90", "90", "270") else (height, width)
        if row["streams"].count("v") == 1 and clip.frames.shape != (10, *shown, 3):
            wrong.append(f"{row['file']}: frames {clip.frames.shape}, expected {shown}")
        if row["a_codec"] and (clip.wave is None or clip.wave.shape != (160000,)):
            wrong.append(f"{row['file']}: wave {clip.wave if clip.wave is None else clip.wave.shape}")
        if not row["a_codec"] and clip.wave is not None:
            wrong.append(f"{row['file']}: sound out of nowhere")
    assert not wrong, "\n".join(wrong)


def test_counted_audio_agrees_with_an_independent_count(
    decoder: Any, decoded: Any, media_rows: list[dict[str, str]]
) -> None:
    for row in media_rows:
        clip = decoded(decoder.name, row["file"])
        if row["streams"].count("a") != 1 or isinstance(clip, DecodeError):
            continue
        real_s = min(float(row["a_seconds_decoded"]), LENGTH_S)
        assert abs(clip.facts["audio"]["samples"] / 16000 - real_s) < 0.01, row["file"]
        assert clip.audio_ok == tuple(t + 0.5 <= real_s for t in range(10)), row["file"]


def test_a_file_in_which_nothing_decodes_is_refused_with_the_reason(
    decoder: Any, decoded: Any, media_rows: list[dict[str, str]]
) -> None:
    empty = [row for row in media_rows if row["frames_decoded"] == "0"]
    for row in empty:
        reason = str(decoded(decoder.name, row["file"]))
        assert "nothing decodes" in reason
        assert f"{float(row['duration_s']):.3f} s" in reason  # what the header claims
        assert row["bytes"] in reason


def test_the_other_decoders_agree_with_pyav(
    decoder: Any, decoded: Any, media_rows: list[dict[str, str]]
) -> None:
    """Segment by segment, wherever both call the segment real."""
    if decoder.name == "pyav":
        pytest.skip("the others are compared with this one")
    for row in media_rows:
        ours, other = decoded("pyav", row["file"]), decoded(decoder.name, row["file"])
        if isinstance(ours, DecodeError) or isinstance(other, DecodeError):
            assert type(ours) is type(other), row["file"]
            continue
        for t in range(10):
            if ours.frames_ok[t] and other.frames_ok[t]:
                difference = np.abs(ours.frames[t].astype(np.int16) - other.frames[t]).mean()
                assert difference < 4.0, (row["file"], t, difference)
        if ours.wave is not None and ours.facts["audio"]["stream"] == other.facts["audio"]["stream"]:
            error, shift_s = _best_match(ours.wave, other.wave)
            allowed_s = 0.01 if decoder.name == "decord" else 0.001  # Opus pre-skip; Matroska's clock
            assert abs(shift_s) <= allowed_s, (row["file"], shift_s)
            assert error < 0.06 * max(0.01, float(np.abs(ours.wave).max())), (row["file"], error)


def _best_match(wave: Any, other: Any) -> tuple[float, float]:
    """The 99th percentile of the difference at the best shift of up to 20 ms, and that shift."""
    most = 320
    middle = wave[most : most + 14000]
    errors = [
        float(np.percentile(np.abs(middle - other[most + s :][: middle.size]), 99))
        for s in range(-most, most + 1)
    ]
    best = min(range(len(errors)), key=lambda at: (errors[at], abs(at - most)))
    return errors[best], (best - most) / 16000


def test_decoding_twice_gives_the_same_bytes(decoder: Any, decoded: Any, shared: Any) -> None:
    file = "bento.mp4"
    path = shared / "data" / "media" / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    once = decoded(decoder.name, file)
    again = decoder.decode(str(path), 0.0, Sampling(10, 1.0, 16000))
    assert np.array_equal(once.frames, again.frames) and np.array_equal(once.wave, again.wave)
    assert (once.notes, once.facts) == (again.notes, again.facts)
