"""Whole sentences of the descriptor captioner: a scene or a sound for every word it uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from described_clips import RATE, SECONDS, T, describe_audio, describe_frames, tone
from numpy.typing import NDArray

from caeav.pipeline.captioners.base import evenly, one_caption, tidy
from caeav.pipeline.captioners.descriptor import IMAGE_SIZE, _blob, pick, place_word, spans_words

RED, BLUE, GREEN = (225, 30, 30), (40, 60, 230), (30, 190, 50)
Place = Callable[[int], tuple[int, int]]


def scene(
    place: Place,
    size: tuple[int, int] = (20, 20),
    seen: range = range(T),
    level: int | None = None,
    colour: tuple[int, int, int] = RED,
) -> NDArray[np.uint8]:
    """A box on uneven ground, or on flat ground of `level`."""
    blocks = np.random.default_rng(0).integers(65, 115, (16, 16, 1)).repeat(8, 0).repeat(8, 1).repeat(3, 2)
    if level is not None:
        blocks = np.full_like(blocks, level)
    frames = np.broadcast_to(blocks, (T, *blocks.shape)).astype(np.uint8)
    for t in seen:
        y, x = place(t)
        frames[t, y : y + size[0], x : x + size[1]] = colour
    return frames


UNEVEN = "The ground is dim uneven grey."


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (
            scene(lambda t: (8 + 9 * t, 50)),
            f"A medium red compact thing moves down at the centre throughout. {UNEVEN}",
        ),
        (
            scene(lambda t: (98 - 9 * t, 50)),
            f"A medium red compact thing moves up at the centre throughout. {UNEVEN}",
        ),
        (
            scene(lambda t: (20 + 60 * (t % 2), 54)),
            f"A small red compact thing moves up and down at the centre throughout. {UNEVEN}",
        ),
        (
            scene(lambda t: (54, 20 + 60 * (t % 2))),
            f"A small red compact thing moves to and fro at the centre throughout. {UNEVEN}",
        ),
        (
            scene(lambda t: (96, 100), seen=range(3, 6)),
            f"A medium red compact thing stays at the bottom right in segments 4 to 6. {UNEVEN}",
        ),
        (
            scene(lambda t: (10, 4 + 10 * t), (9, 9)),
            f"A small red compact thing moves right at the top throughout. {UNEVEN}",
        ),
        (
            scene(lambda t: (20, 4 + 10 * t), (80, 12)),
            f"A medium red tall thing moves right at the centre throughout. {UNEVEN}",
        ),
        (
            scene(lambda t: (4 + 10 * t, 20), (12, 80)),
            f"A medium red wide thing moves down at the centre throughout. {UNEVEN}",
        ),
        (
            scene(lambda t: (10, 12), (40, 40), level=90, colour=BLUE),
            "A large blue compact thing stands still at the top left throughout. "
            "The ground is dim plain grey.",
        ),
        (
            scene(lambda t: (54, 4 + 10 * t), level=30),
            "A small red compact thing moves right at the centre throughout. The ground is dark plain black.",
        ),
        (
            scene(lambda t: (54, 4 + 10 * t), level=230),
            "A small red compact thing moves right at the centre throughout. "
            "The ground is bright plain white.",
        ),
        (  # of two objects only the stronger one; what is not connected to it is another object
            np.maximum(
                scene(lambda t: (10, 4 + 10 * t)),
                scene(lambda t: (100, 104 - 10 * t), (14, 14), colour=GREEN),
            ),
            f"A medium red compact thing moves right at the top throughout. {UNEVEN}",
        ),
    ],
)
def test_a_scene_is_described_in_these_words(frames: NDArray[np.uint8], text: str) -> None:
    assert describe_frames(frames) == text


def chirp(begin_hz: float, end_hz: float) -> NDArray[np.float32]:
    at = SECONDS % 1.0
    wave = 0.3 * np.sin(2 * np.pi * (begin_hz * at + (end_hz - begin_hz) * at * at / 2))
    return (tone(0, range(0)) + np.isin(SECONDS.astype(int), range(3, 7)) * wave).astype(np.float32)


HEARD = "in segments 4 to 7. Else faint noise."
NOISE = np.random.default_rng(3).standard_normal(T * RATE) * 0.02
SWELL = 0.3 * np.sin(2 * np.pi * 600 * SECONDS) * (0.5 - 0.5 * np.cos(2 * np.pi * SECONDS))


@pytest.mark.parametrize(
    ("wave", "text"),
    [
        (chirp(300, 1500), f"A loud middle tonal sound, steady, rising, {HEARD}"),
        (chirp(1500, 300), f"A loud middle tonal sound, steady, falling, {HEARD}"),
        (tone(200, range(2)), "A loud low tonal sound, steady, in segments 1 to 2. Else faint noise."),
        (tone(1500, range(3, 7)), f"A loud high tonal sound, steady, {HEARD}"),
        (
            tone(4000, range(8, 10)),
            "A loud very high tonal sound, steady, in segments 9 to 10. Else faint noise.",
        ),
        (tone(500, range(3, 7), 0.08), f"A clear middle tonal sound, steady, {HEARD}"),
        (tone(500, range(3, 7), 0.006), f"A quiet middle tonal sound, steady, {HEARD}"),
        (tone(600, range(3, 7), gate_hz=2), f"A loud middle tonal sound, beating slowly, {HEARD}"),
        (tone(600, range(3, 7), gate_hz=21), f"A loud middle tonal sound, beating very fast, {HEARD}"),
        (SWELL.astype(np.float32), "A loud middle tonal sound, swelling, throughout."),
        (
            np.where(SECONDS < 3, tone(600, range(3)), 0).astype(np.float32),
            "A loud middle tonal sound, steady, in segments 1 to 3. Else silence.",
        ),
        (
            (tone(600, range(3)) + NOISE).astype(np.float32),
            "A loud middle tonal sound, steady, in segments 1 to 3. Else noise.",
        ),
    ],
)
def test_a_sound_is_described_in_these_words(wave: NDArray[np.float32], text: str) -> None:
    assert describe_audio(wave) == text


def test_every_place_has_its_word() -> None:
    places = [[place_word(y, x) for x in (0.2, 0.36, 0.64, 0.8)] for y in (0.2, 0.36, 0.64, 0.8)]
    inner = ["left", "centre", "centre", "right"]
    assert places == [
        ["top left", "top", "top", "top right"],
        inner,
        inner,
        ["bottom left", "bottom", "bottom", "bottom right"],
    ]


def test_the_longest_spans_are_named_in_order_of_time() -> None:
    on = [bool(int(c)) for c in "1011101100"]
    assert spans_words(on) == "in segments 3 to 5 and 7 to 8"
    assert spans_words(on, most=1) == "in segments 3 to 5"
    assert spans_words([False, False]) == ""


def test_a_bound_belongs_to_the_next_word() -> None:
    steps = ((1.0, "low"), (2.0, "middle"))
    assert [pick(x, steps, "high") for x in (0.9, 1.0, 1.9, 2.0)] == ["low", "middle", "middle", "high"]


def test_frames_are_taken_from_the_middle_of_equal_parts() -> None:
    assert evenly([True] * 10, 1) == [5]
    assert evenly([True] * 10, 3) == [1, 5, 8]
    assert evenly([True, False, False, True, True, False], 3) == [0, 3, 4]
    assert evenly([True, True, False, False], 2) == [0, 1]
    assert evenly([False, True], 3) == [1, 1, 1]
    assert evenly([False, False], 3) == []


def test_captions_are_cleaned_and_joined_without_repetitions() -> None:
    assert one_caption(["A dog.", "a dog", "A cat!", " "]) == "A dog. A cat!"
    assert one_caption(["a dog", "A DOG!"]) == "a dog"
    assert one_caption(["one", "two?"]) == "one. two?"
    assert one_caption(["", "..."]) == ""
    assert one_caption(["  a dog\n barks "]) == "a dog barks"
    assert one_caption(["red\x1b[31m\u202e dog"]) == "red [31m dog"
    assert tidy(" a\x07b \n c\u2028d ") == "a b c d"


@pytest.mark.parametrize("at", [1, 6, 9])
def test_a_cut_is_named_with_the_first_segment_of_the_new_view(at: int) -> None:
    frames = scene(lambda t: (54, 4 + 10 * t))
    frames[at:] = 255 - frames[at:, ::-1]
    assert describe_frames(frames).endswith(f"The view changes before segment {at + 1}.")
    assert "view changes" not in describe_frames(scene(lambda t: (54, 4 + 10 * t)))


def test_an_object_is_the_region_connected_to_the_strongest_place() -> None:
    """Separate spots are two objects; cells that touch at a corner are one."""
    rgb, weight = (
        np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.float32),
        np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32),
    )
    weight[8:16, 8:16], weight[40:56, 48:56] = 1.0, 0.8
    rgb[8:16, 8:16], rgb[40:56, 48:56] = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)
    one = _blob(rgb, weight)
    assert one is not None and (one.y, one.x) == (12 / IMAGE_SIZE, 12 / IMAGE_SIZE)
    assert (one.colour, one.area, one.mass) == ("red", pytest.approx(64 / IMAGE_SIZE**2), pytest.approx(64))
    weight[16:20, 16:20] = 0.5
    joined = _blob(rgb, weight)
    assert joined is not None and joined.area == pytest.approx(80 / IMAGE_SIZE**2) and joined.y > one.y
    weight[8:16, 8:16] = weight[16:20, 16:20] = 0
    other = _blob(rgb, weight)
    assert other is not None and (other.y, other.x) == (48 / IMAGE_SIZE, 52 / IMAGE_SIZE)
    assert other.stretch == pytest.approx(1.8, abs=0.2)
    assert _blob(rgb, weight * 0.04) is None and _blob(rgb, weight * 0.06) is not None
