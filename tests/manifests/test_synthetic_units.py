"""Parts of the generated world: options, names, audio gates, outlines, motions, stretches and shares."""

from __future__ import annotations

import numpy as np
import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.synthetic import audio
from caeav.manifests.synthetic.audio import RHYTHMIC, VOICES
from caeav.manifests.synthetic.classes import CLASSES, class_names, llp_name, simple_name
from caeav.manifests.synthetic.layouts import llp
from caeav.manifests.synthetic.layouts.music_avqa import LAYOUT, _split_of
from caeav.manifests.synthetic.options import KINDS, SyntheticOptions
from caeav.manifests.synthetic.render import MUTED, backdrop, muted_colour
from caeav.manifests.synthetic.scenario import Scenario, plan
from caeav.manifests.synthetic.sprites import MAX_SCALE, MOTIONS, OUTLINES, PATTERNS, colour, stamp


@pytest.mark.parametrize(
    ("option", "allowed", "refused"),
    [
        ("clips", (1, 1_000_000), (0, 1_000_001, True, 2.0)),
        ("classes", (5, 12), (4, 13)),
        ("seconds", (4, 60), (3, 61)),
        ("size_px", (64, 512, 66), (62, 514, 65)),
        ("fps", (4, 60), (3, 61)),
        ("seed", (0, 2**63 - 1), (-1, 2**63)),
        ("rate_hz", (16_000, 48_000), (8_000, 0)),
        ("misaligned", (0, 1, 0.5), (-0.1, 1.1, float("nan"), True)),
        ("distractors", (0.0, 1.0), (1.01, "x")),
        ("splits", ((1, 0, 0), (0.2, 0.3, 0.5)), ((0.5, 0.5), (0.5, 0.5, 0.1), (1.5, -0.5, 0.0))),
        (
            "mix",
            ({"cut": 1}, {"cut": 0, "silent": 2.5}),
            ({}, {"cut": 0}, {"cut": -1, "silent": 2}, {"x": 1}),
        ),
        ("mix", ({"cut": 5},), ({"cut": float("inf")}, {"cut": float("nan")})),
    ],
)
def test_options_are_allowed_up_to_their_ends_and_refused_beyond(
    option: str, allowed: tuple[object, ...], refused: tuple[object, ...]
) -> None:
    for value in allowed:
        assert getattr(SyntheticOptions(**{option: value}), option) == value  # type: ignore[arg-type]
    for value in refused:
        with pytest.raises(CaeavError, match=option):
            SyntheticOptions(**{option: value})  # type: ignore[arg-type]


def test_shares_of_kinds_add_up_and_follow_the_weights() -> None:
    shares = SyntheticOptions(misaligned=0.8, mix={"cut": 3, "silent": 1}).kind_shares()
    assert list(shares) == ["aligned", *KINDS]
    assert shares == pytest.approx(
        {"aligned": 0.2, "offscreen": 0, "silent": 0.2, "wrong_sound": 0, "cut": 0.6}
    )


def test_default_options_are_written_without_layout_and_questions() -> None:
    assert {"layout", "questions"} & SyntheticOptions().to_json().keys() == set()
    written = SyntheticOptions(layout="music-avqa", questions=9, mix={"cut": 1}).to_json()
    assert (written["layout"], written["questions"], written["version"]) == ("music-avqa", 9, 1)
    assert written["mix"] == {"offscreen": 0.0, "silent": 0.0, "wrong_sound": 0.0, "cut": 1.0}
    usual = SyntheticOptions.for_layout("avs-s4", clips=3)
    assert (usual.seconds, usual.size_px, usual.clips) == (5, 224, 3)
    assert SyntheticOptions.for_layout("llp") == SyntheticOptions(layout="llp")
    assert SyntheticOptions.for_layout("avs-ms3", seconds=7).seconds == 7


def test_names_of_classes_are_written_as_each_set_would() -> None:
    assert class_names(6)[5] == "Hopping box, square"
    last = class_names(7)[5:]
    assert [*map(llp_name, last)] == ["Hopping_box_square", "Circling_cross_(plus)"]
    assert [*map(simple_name, last)] == ["hopping_box_square", "circling_cross_plus"]


def test_every_class_has_its_own_shape_motion_and_voice_and_a_hue_of_its_own() -> None:
    for column, table in (("shape", OUTLINES), ("motion", MOTIONS), ("voice", VOICES)):
        used = [getattr(each, column) for each in CLASSES]
        assert len(set(used)) == len(CLASSES) and set(used) <= table.keys()
    assert {each.pattern for each in CLASSES} <= PATTERNS.keys()
    hues = sorted(each.hue_deg for each in CLASSES)
    gaps = np.diff([*hues, hues[0] + 360])
    assert gaps.min() >= 23


@pytest.mark.parametrize("name", MOTIONS)
def test_a_motion_stays_in_its_room_below_the_largest_scale_and_does_not_stand_still(name: str) -> None:
    poses = [MOTIONS[name](t / 40) for t in range(2400)]
    places = np.array([(p.x, p.y) for p in poses])
    scales = np.array([p.scale for p in poses])
    assert np.abs(places).max() <= 1.0 + 1e-9
    assert scales.min() >= 0.6 and scales.max() <= MAX_SCALE + 1e-9
    turned = np.array([p.angle for p in poses])
    assert max(np.ptp(places), np.ptp(scales), np.ptp(turned)) > 0.5


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_is_about_the_distance_to_the_edge_and_the_object_about_one_in_radius(name: str) -> None:
    line = np.linspace(-2, 2, 401, dtype=np.float32)
    x, y = np.broadcast_arrays(line[None, :], line[:, None])
    value = OUTLINES[name](x, y)
    inside = value < 0
    assert 0.9 <= np.hypot(x, y)[inside].max() <= 1.45
    assert 0.5 <= inside.sum() * 1e-4 <= 3.5
    steps = np.hypot(*np.gradient(value, 0.01))
    assert 0.4 < np.median(steps[np.abs(value) < 0.05]) < 2.5


def test_an_object_is_drawn_at_its_place_and_cut_at_the_border() -> None:
    fill = np.array([250, 100, 20], np.float32)
    canvas = np.zeros((64, 96, 3), np.float32)
    top, left, inside = stamp(canvas, "disc", 60.0, 30.0, 10.0, 0.0, fill)
    drawn = np.argwhere(canvas.any(axis=2))
    assert drawn.min(axis=0) == pytest.approx([20, 50], abs=1) and drawn.max(axis=0) == pytest.approx(
        [39, 69], abs=1
    )
    assert inside.sum() == pytest.approx(np.pi * 100, rel=0.02)
    rows, columns = np.nonzero(inside >= 0.5)
    assert (rows.mean() + top, columns.mean() + left) == pytest.approx((29.5, 59.5), abs=0.2)
    assert canvas[30, 60] == pytest.approx(fill)
    assert canvas[20:40, 50].max() < 250 * 0.75  # its rim is darker
    stamp(canvas, "disc", -5.0, -5.0, 10.0, 0.0, fill)
    assert canvas[0, 0].any() and not canvas[15, 15].any()
    before = canvas.copy()
    assert stamp(canvas, "disc", 300.0, 300.0, 10.0, 0.0, fill)[2].size == 0
    assert stamp(canvas, "disc", -300.0, 20.0, 10.0, 0.0, fill)[2].size == 0
    assert np.array_equal(canvas, before)


def test_a_pattern_is_half_as_bright_and_turns_with_its_object() -> None:
    fill = np.full(3, 200, np.float32)
    for angle, dark, light in ((0.0, (40, 60), (60, 60)), (np.pi / 2, (60, 60), (40, 60))):
        canvas = np.zeros((100, 100, 3), np.float32)
        stamp(canvas, "square", 50.0, 50.0, 30.0, angle, fill, "checker")
        assert canvas[dark] == pytest.approx(canvas[light] / 2, rel=1e-3) and canvas[light].any()


def test_walls_and_clutter_are_muted_and_colours_are_not() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        shade = muted_colour(rng)
        assert 1 - shade.min() / shade.max() <= MUTED + 1e-6 and shade.max() <= 0.85 * 255 + 1e-3
    assert colour(0, 1, 1).tolist() == colour(360, 1, 1).tolist() == [255, 0, 0]
    assert colour(120, 1, 0.5) == pytest.approx([0, 127.5, 0])
    wall = backdrop(rng, 48)
    assert wall.shape == (48, 48, 3) and wall.std() > 3


def test_a_voice_is_silent_outside_its_seconds_and_fades_inside_them() -> None:
    gate = audio._gate(np.array([False, True, True, False, True]), 100)
    assert gate.shape == (500,)
    assert not gate[:100].any() and not gate[300:400].any()
    assert gate[100:103].tolist() == pytest.approx([0, 1 / 3, 2 / 3]) and gate[
        297:300
    ].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert (gate[103:297] == 1).all() and (gate[403:497] == 1).all() and gate[499] == 0
    whole = audio._gate(np.array([True, True]), 100)
    assert whole[0] == whole[-1] == 0 and whole[100] == 1


def test_a_level_is_a_root_mean_square_and_a_cut_changes_the_noise() -> None:
    assert np.sqrt(np.mean(audio._at_level(np.array([3.0, -5.0, 1.0]), 0.1) ** 2)) == pytest.approx(0.1)
    t = np.arange(4000) / 1000
    same = audio._background(np.random.default_rng(1), t, 1000, None)
    cut = audio._background(np.random.default_rng(1), t, 1000, 2)
    assert (
        np.array_equal(same[:2000], cut[:2000]) and not np.isclose(same[2000:], cut[2000:]).any(axis=0).all()
    )
    assert 0.0 < np.sqrt(np.mean(same**2)) < 0.06


@pytest.mark.parametrize("name", VOICES)
def test_any_second_of_a_voice_can_be_heard_and_only_rhythmic_ones_pause(name: str) -> None:
    for seed in range(3):
        wave = VOICES[name](np.arange(4 * 8000) / 8000, np.random.default_rng(seed))
        assert wave.shape == (32000,) and np.isfinite(wave).all()
        power = np.sqrt((wave.reshape(4, 100, 80) ** 2).mean(axis=2))  # [4 s, 100 hundredths]
        assert np.sqrt((power**2).mean(axis=1)).min() > 0.4 * np.sqrt((power**2).mean())
        quiet = float((power < 0.1 * power.max()).mean())
        assert quiet > 0.2 if name in RHYTHMIC else quiet < 0.25


def test_stretches_are_unbroken_and_by_class() -> None:
    assert list(llp.stretches([(3, 1), (1,), (3,), (3,), ()])) == [(1, 0, 2), (3, 0, 1), (3, 2, 4)]
    assert list(llp.stretches([(), ()])) == [] and list(llp.stretches([(2,), (2,)])) == [(2, 0, 2)]


def test_llps_score_is_the_mean_f_of_the_three_kinds() -> None:
    heard = np.zeros((2, 2, 4), bool)
    seen = heard.copy()
    heard[0, 0, :2] = seen[0, 0, 1:3] = True
    assert llp.type_at_av(heard, seen, heard, seen) == 1.0
    nothing = np.zeros_like(heard)
    # the first clip has all three kinds and is missed in each, the second has none and is right
    assert llp.type_at_av(nothing, nothing, heard, seen) == pytest.approx(0.5)
    # audio: F 2*1/(2+2) of its class; visual right; both: one second guessed of two, and that is right
    assert llp.type_at_av(seen, seen, heard, seen) == pytest.approx(((0.5 + 1) / 2 + 1 + (2 / 3 + 1) / 2) / 3)
    wrong = heard.copy()
    wrong[1, 1, 0] = True  # a class that is not there costs its clip all
    assert llp.type_at_av(wrong, seen, heard, seen) == pytest.approx(((1 + 0) / 2 + 1 + 1) / 3)
    wrong[1, 1, 0], wrong[0, 1, 0] = False, True  # and half of a clip with another one
    assert llp.type_at_av(wrong, seen, heard, seen) == pytest.approx(((0.5 + 1) / 2 + 1 + 1) / 3)


def test_llps_names_carry_the_clips_times_and_a_few_have_decimals() -> None:
    options = SyntheticOptions(clips=50, layout="llp")
    for index, tenths in ((0, ""), (38, ""), (39, ".8"), (40, "")):
        made = plan(options, index)
        start, end = llp.file_name(options, made)[len(made.clip_id) + 1 :].split("_")
        assert float(end) - float(start) == pytest.approx(10) and ("." in start) == bool(tenths)
        assert start.endswith(tenths) and end.endswith(tenths)


def test_questions_of_every_tenth_video_are_in_two_splits_by_turns() -> None:
    def where(index: int, split: str) -> list[str]:
        made = Scenario(index, "x" * 11, 0, "aligned", 0, 1, None, ((0,),), ((0,),))
        return [_split_of(made, number, split) for number in range(4)]

    assert where(8, "train") == where(4, "train") == ["train"] * 4
    assert where(9, "train") == ["train", "val"] * 2 and where(19, "test") == ["test", "train"] * 2
    assert LAYOUT.measure == "share of questions answered rightly"
