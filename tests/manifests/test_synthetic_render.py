"""What the generated world shows and what is asked about it: frames, masks, shots, wav files and facts of a clip."""

from __future__ import annotations

import io
import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic_names import simple_names

from caeav.manifests.synthetic import render
from caeav.manifests.synthetic.layouts.avsbench import MS3, S4, sounding_objects
from caeav.manifests.synthetic.layouts.music_avqa import plan as plan_scene
from caeav.manifests.synthetic.media import png, wav
from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.questions import Facts, choose_questions
from caeav.manifests.synthetic.scenario import Scenario, Thing
from caeav.manifests.synthetic.sprites import MAX_SCALE

OPTIONS = SyntheticOptions(clips=4, seconds=4, size_px=64, fps=4)


def scene(
    seen: tuple[tuple[int, ...], ...],
    heard: tuple[tuple[int, ...], ...],
    cut_s: int | None = None,
    things: tuple[Thing, ...] = (),
    index: int = 0,
) -> Scenario:
    return Scenario(index, "x" * 11, 2, "aligned", 0, len(seen), cut_s, seen, heard, things)


def test_objects_are_in_the_picture_in_their_seconds_only() -> None:
    with_object = list(render.frames(OPTIONS, scene(((0,), (), (0,), ()), ((),) * 4)))
    without = list(render.frames(OPTIONS, scene(((0,), (), (), ()), ((),) * 4)))
    assert len(with_object) == 16 and with_object[0].shape == (64, 64, 3) and with_object[0].dtype == np.uint8
    differ = [not np.array_equal(one, other) for one, other in zip(with_object, without, strict=True)]
    assert differ == [False] * 8 + [True] * 4 + [False] * 4


def test_each_pixel_is_owned_by_the_object_it_shows_or_by_none() -> None:
    stills = list(render.stills(OPTIONS, scene(((0, 3), (), (3,), (0,)), ((),) * 4)))
    object_map = [set(np.unique(owner)) - {render.NO_OBJECT} for _, owner in stills]
    assert 3 in object_map[0] and object_map[1:] == [set(), {3}, {0}] and object_map[0] <= {0, 3}
    picture, owner = stills[3]
    assert owner.shape == picture.shape[:2] == (64, 64) and owner.dtype == np.int16
    red = picture[owner == 0].astype(int).mean(axis=0)
    assert red[0] > red[1] + 60 and red[0] > red[2] + 60  # the first class is red


def test_the_picture_jumps_at_a_cut_and_nowhere_else() -> None:
    made = list(render.frames(OPTIONS, scene(((0,),) * 4, ((),) * 4, cut_s=2)))
    steps = [float(np.abs(b.astype(int) - a.astype(int)).mean()) for a, b in pairwise(made)]
    assert int(np.argmax(steps)) == 7 and steps[7] > 2 * sorted(steps)[-2]


@pytest.mark.parametrize("lane", [0, 1, 2])
def test_a_thing_stays_in_its_third_and_a_body_in_the_picture(lane: int) -> None:
    options = SyntheticOptions(clips=1, seconds=4, size_px=96, layout="music-avqa")
    made = scene(((0,),) * 4, ((),) * 4, things=(Thing(1, lane, 0.1),))
    for _, owner in render.stills(options, made):
        columns = np.flatnonzero((owner == 0).any(axis=0))
        assert abs(columns.mean() - (lane + 0.5) * 32) < 12
    rng = np.random.default_rng(lane)
    for _ in range(30):
        look = render._look(rng, OPTIONS, scene(((0,),), ((),)), 0)
        body = render._placed(rng, "disc", "plain", "spin", look, 64)
        reach = body.movement.room_px + MAX_SCALE * body.radius_px
        for at in (body.movement.x_px, body.movement.y_px):
            assert reach - 1e-6 <= at <= 64 - reach + 1e-6


def test_objects_are_larger_where_masks_are_wanted_and_smaller_in_thirds() -> None:
    def radius(layout: str, things: tuple[Thing, ...] = ()) -> float:
        options = SyntheticOptions(clips=1, layout=layout)
        made = scene(((0,),), ((),), things=things)
        return render._look(np.random.default_rng(0), options, made, 0).radius_px

    usual = radius("ave")
    assert radius("avs-s4") == radius("avs-ms3") == pytest.approx(1.35 * usual)
    assert radius("music-avqa", (Thing(0, 1, 0.1),)) == pytest.approx(0.7 * usual)
    assert radius("llp") == usual


MADE = scene(((1, 2), (1,), (2, 3), ()), ((2,), (2,), (3, 2), (1,)))


def test_what_sounds_is_seen_and_heard_in_that_second() -> None:
    assert [sounding_objects(MADE, second) for second in range(4)] == [[2], [], [2, 3], []]


def test_masks_and_pictures_and_sound_lie_where_the_sets_have_them(tmp_path: Path) -> None:
    options = SyntheticOptions(clips=3, seconds=4, size_px=64, fps=4, layout="avs-ms3")
    for layout, split, count in ((S4, "train", 1), (S4, "test", 4), (MS3, "train", 4), (MS3, "val", 4)):
        root = tmp_path / f"{layout.measure[:3]}{split}{count}{type(layout).__name__}"
        layout.write_clip(root, options, MADE, split)
        pictures, audio, masks, pattern = layout.places(MADE, split)
        assert layout.last_file(root, MADE, split) == root / audio and (root / audio).is_file()
        assert sorted(p.name for p in (root / pictures).iterdir()) == [pattern.format(n) for n in range(1, 5)]
        name = layout.name(MADE)
        assert sorted(p.name for p in (root / masks).iterdir()) == [
            f"{name}_{n + 1}.png" for n in range(count)
        ]
        first = np.asarray(Image.open(root / masks / f"{name}_1.png"))
        assert first.shape == (64, 64) and 0 < (first > 0).mean() < 0.5
        assert np.array_equal(first > 0, next(render.stills(options, MADE))[1] == 2)  # one of two sounds
        if layout is S4:
            assert first.dtype == bool and split in str(masks) and "swinging_bar" in str(masks)
        else:
            assert set(np.unique(first)) == {0, 255} and split not in str(pictures)
            assert not np.asarray(Image.open(root / masks / f"{name}_4.png")).any()


def test_the_best_score_of_visual_alone_is_given() -> None:
    everything, visual, both = S4.scores(OPTIONS, [MADE])
    # by second: of 2 seen 1 sounds, of 1 none, of 2 both, nothing seen
    assert (everything.accuracy, both.accuracy) == (0.5, 1.0)
    assert (visual.accuracy, visual.rule) == (pytest.approx((0.5 + 0 + 1 + 1) / 4), "every object")


def test_some_ms3_clips_share_the_video_of_their_neighbour() -> None:
    options = SyntheticOptions(clips=50, layout="avs-ms3", size_px=64)
    plans = [MS3.plan(options, index) for index in range(30)]
    twice = {p.index for p in plans if sum(q.clip_id == p.clip_id for q in plans) == 2}
    assert twice and all((index + 1 in twice) or (index - 1 in twice) for index in twice)
    assert len({MS3.name(p) for p in plans}) == 30
    assert all(MS3.name(p)[:11] == p.clip_id and MS3.name(p)[-2:] in ("_0", "_1") for p in plans)


def test_a_wav_holds_the_samples_and_a_png_the_pixels() -> None:
    with wave.open(io.BytesIO(wav(np.array([0, 0.5, -1, 2], np.float32), 16_000))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        samples = np.frombuffer(file.readframes(9), "<i2")
    assert samples.tolist() == [0, 16384, -32767, 32767]
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)


THINGS = (Thing(0, 0, 0.1), Thing(1, 1, 0.2), Thing(1, 2, 0.05), Thing(3, None, 0.3))
FACTS = Facts(scene(((0, 1, 2),) * 4, ((3,), (3, 1), (0, 1), (0,)), things=THINGS), ("a", "b", "c", "d"))


def test_the_facts_of_a_clip_are_by_the_names_of_classes() -> None:
    assert FACTS.count == {"a": 1, "b": 2} and FACTS.row == {0: "a", 1: "b", 2: "b"} and FACTS.seconds == 4
    assert FACTS.span == {"a": (2, 4), "b": (1, 3), "d": (0, 2)} and FACTS.voices == ["d", "b", "a"]
    assert FACTS.level == {"a": 0.1, "b": 0.2, "d": 0.3} and FACTS.sounding == ["b", "a"]
    assert FACTS.rhythmic == {
        "a",
        "c",
    }  # rising chirps and bursts of noise pause, an engine and a bell do not
    assert (FACTS.begins_alone("first"), FACTS.begins_alone("last")) == ("d", "a")
    assert FACTS.beside("a", "left") == FACTS.beside("a", "right") == FACTS.beside("b", "left") == ""
    two = Facts(scene(((0, 1),) * 2, ((0, 1), (0, 1)), things=THINGS), ("a", "b", "c", "d"))
    assert (two.beside("a", "right"), two.beside("b", "left"), two.beside("b", "right")) == ("b", "a", "")
    twins = (Thing(1, 0, 0.1), Thing(1, 1, 0.1), Thing(0, 2, 0.1))
    assert Facts(scene(((0, 1, 2),), ((0,),), things=twins), ("a", "b")).beside("b", "right") == ""
    assert two.begins_alone("first") == two.begins_alone("last") == ""


def test_questions_are_distinct_within_the_limit_and_of_all_types_before_any_repeats() -> None:
    options = SyntheticOptions(clips=9, layout="music-avqa", questions=20)
    for index in range(5):
        made = plan_scene(options, index)
        for most in (1, 5, 20):
            asked = choose_questions(made, simple_names(8), most, np.random.default_rng(index))
            assert len(asked) <= most and len(set(asked)) == len(asked)
            kinds = [question.type for question in asked]
            assert max(map(kinds.count, kinds)) <= -(-most // 9)
        again = choose_questions(made, simple_names(8), 20, np.random.default_rng(index))
        assert again == asked
