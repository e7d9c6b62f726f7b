"""The descriptor captioner: describes what can be measured, in words that fit the text backbone."""

from __future__ import annotations

import numpy as np
import pytest
from described_clips import RATE, T, describe_audio, describe_frames, tone
from numpy.typing import NDArray

from caeav.pipeline.backbones.choice import ModelChoice
from caeav.pipeline.backbones.classic.text import WORDS, HashedText
from caeav.pipeline.captioners import audio_captioners, visual_captioners
from caeav.pipeline.captioners.descriptor import colour_word, place_word, spans_words
from caeav.pipeline.media.clip import DecodedClip


def ground(level: int = 90) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    blocks = rng.integers(level - 25, level + 25, (16, 16, 1)).repeat(8, 0).repeat(8, 1).repeat(3, 2)
    return np.broadcast_to(blocks, (T, *blocks.shape)).astype(np.uint8).copy()


def box(colour: tuple[int, int, int], seen: range, step: int = 10, size: int = 20) -> NDArray[np.uint8]:
    frames = ground()
    for t in seen:
        at = 4 + step * t if step > 0 else 104 + step * t
        frames[t, 50 : 50 + size, at : at + size] = colour
    return frames


@pytest.mark.parametrize(
    ("colour", "word"),
    [((225, 30, 30), "red"), ((30, 190, 50), "green"), ((40, 60, 230), "blue"), ((235, 225, 40), "yellow")],
)
def test_colour_and_time_of_a_moving_object_are_named(colour: tuple[int, int, int], word: str) -> None:
    text = describe_frames(box(colour, range(2, 6)))
    assert f" {word} " in text
    assert "segments 3 to 6" in text


def test_the_direction_of_motion_is_named() -> None:
    assert "moves right" in describe_frames(box((225, 30, 30), range(T)))
    assert "moves left" in describe_frames(box((225, 30, 30), range(T), step=-10))


def test_an_empty_scene_is_described_as_empty() -> None:
    text = describe_frames(np.full((T, 64, 64, 3), 200, dtype=np.uint8))
    assert text.startswith("Nothing stands out. The ground is bright plain white")


def test_a_cut_is_named_with_its_segment() -> None:
    frames = ground()
    frames[6:] = 255 - frames[6:, ::-1]
    assert "The view changes before segment 7" in describe_frames(frames)
    assert "view changes" not in describe_frames(ground())


def test_loudness_pitch_and_time_of_a_sound_are_named() -> None:
    text = describe_audio(tone(200, range(3, 7)))
    assert text.startswith("A loud low tonal sound")
    assert "in segments 4 to 7" in text
    assert " high " in describe_audio(tone(1500, range(3, 7)))
    assert "quiet" in describe_audio(tone(1500, range(3, 7), level=0.015))


def test_noise_is_distinguished_from_tones() -> None:
    wave = (np.random.default_rng(1).standard_normal(T * RATE) * 0.1).astype(np.float32)
    assert " noisy sound, steady" in describe_audio(wave)


def test_a_pulsed_sound_is_not_called_steady() -> None:
    assert "beating evenly" in describe_audio(tone(600, range(3, 7), gate_hz=5))
    assert "beating fast" in describe_audio(tone(600, range(3, 7), gate_hz=11))


def test_digital_silence_is_called_silence_and_a_missing_modality_has_no_text() -> None:
    assert describe_audio(np.zeros(T * RATE, dtype=np.float32)) == "Silence."
    assert describe_audio(None) == ""
    assert describe_frames(None) == ""


def test_texts_fit_the_text_backbone_and_are_deterministic() -> None:
    clip = box((225, 30, 30), range(2, 6))
    clip[7:] = 255 - clip[7:, ::-1]
    wave = tone(600, range(1, 4), gate_hz=5) + tone(600, range(6, 8), gate_hz=5)
    for text, again in (
        (describe_frames(clip), describe_frames(clip)),
        (describe_audio(wave), describe_audio(wave)),
    ):
        assert text == again
        assert 5 <= len(WORDS.findall(text)) <= HashedText.max_tokens


def test_short_clips_are_described_too() -> None:
    clip = DecodedClip(ground()[:1], tone(600, range(T))[:RATE], (True,), (True,))
    assert visual_captioners["descriptor"](ModelChoice("descriptor")).caption([clip])[0].endswith(".")
    assert "throughout" in audio_captioners["descriptor"](ModelChoice("descriptor")).caption([clip])[0]


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((0.05, 0.05, 0.05), "black"),
        ((0.5, 0.5, 0.52), "grey"),
        ((0.95, 0.95, 0.95), "white"),
        ((0.9, 0.5, 0.1), "orange"),
        ((0.1, 0.8, 0.8), "cyan"),
        ((0.5, 0.15, 0.75), "purple"),
        ((0.45, 0.3, 0.15), "brown"),
        ((0.95, 0.6, 0.72), "pink"),
    ],
)
def test_colour_words(rgb: tuple[float, float, float], word: str) -> None:
    assert colour_word(rgb) == word


def test_span_and_place_words() -> None:
    assert spans_words([False, True, True, False, True]) == "in segments 2 to 3 and 5"
    assert spans_words([False, True]) == "in segment 2"
    assert spans_words([True, True]) == "throughout"
    assert spans_words([True, False] * 3 + [True, True]) == "in segments 1 and 7 to 8"
    assert place_word(0.1, 0.9) == "top right"
    assert place_word(0.5, 0.5) == "centre"
