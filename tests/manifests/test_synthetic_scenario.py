"""Timelines of the generated set: what they promise, for thousands of them, before any media is made."""

from __future__ import annotations

from collections import Counter

import pytest

from caeav.manifests.clip import KEY_PATTERN, SPLITS
from caeav.manifests.errors import CaeavError
from caeav.manifests.synthetic.layout import assign_splits
from caeav.manifests.synthetic.options import KINDS, SyntheticOptions
from caeav.manifests.synthetic.scenario import Scenario, plan


def plans(**options: object) -> list[Scenario]:
    o = SyntheticOptions(**options)  # type: ignore[arg-type]
    return [plan(o, i) for i in range(o.clips)]


def seconds_of(scenario: Scenario, sense: str) -> list[int]:
    return [t for t, present in enumerate(getattr(scenario, sense)) if scenario.category in present]


@pytest.mark.parametrize(
    "options", [{}, {"classes": 5, "seconds": 4}, {"classes": 12, "seconds": 17, "seed": 9}]
)
def test_a_class_is_both_seen_and_heard_in_the_event_and_nowhere_else(options: dict[str, int]) -> None:
    for s in plans(clips=400, **options):
        assert 0 <= s.start_s < s.end_s <= len(s.seen) == len(s.heard)
        for t, (seen, heard) in enumerate(zip(s.seen, s.heard, strict=True)):
            both = set(seen) & set(heard)
            assert both == ({s.category} if s.start_s <= t < s.end_s else set()), (s, t)


def test_aligned_clips_hold_nothing_but_their_event() -> None:
    for s in plans(clips=200, misaligned=0.0):
        event = range(s.start_s, s.end_s)
        expected = tuple((s.category,) if t in event else () for t in range(len(s.seen)))
        assert s.kind == "aligned"
        assert s.seen == s.heard == expected


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_what_its_name_says(kind: str) -> None:
    for s in plans(clips=100, misaligned=1.0, mix={kind: 1.0}, distractors=0.0):
        event = set(range(s.start_s, s.end_s))
        seen, heard = set(seconds_of(s, "seen")), set(seconds_of(s, "heard"))
        assert s.kind == kind
        assert (s.cut_s is not None) == (kind == "cut")
        if kind == "offscreen":
            assert seen == event < heard
        elif kind == "silent":
            assert heard == event < seen
        elif kind == "wrong_sound":
            beside = seen - event
            assert heard == event and beside
            others = [s.heard[t] for t in sorted(beside)]
            assert len(set(others)) == 1 and len(others[0]) == 1 and others[0] != (s.category,)
        else:
            assert s.cut_s in (s.start_s, s.end_s)
            longer, exact = (seen, heard) if len(seen) > len(heard) else (heard, seen)
            assert exact == event < longer
            beyond = longer - event
            assert all((t >= s.cut_s) != (s.start_s >= s.cut_s) for t in beyond)


def test_the_sense_a_misalignment_leaves_exact_gets_a_distractor() -> None:
    for s in plans(clips=200, misaligned=1.0, distractors=1.0):
        event = set(range(s.start_s, s.end_s))
        for sense in ("seen", "heard"):
            if set(seconds_of(s, sense)) == event:
                present = set().union(*getattr(s, sense))
                assert len(present) > 1, s


def test_a_clip_does_not_depend_on_how_many_there_are() -> None:
    assert plans(clips=64)[:16] == plans(clips=16)
    assert plans(clips=16) != plans(clips=16, seed=1)


def test_classes_are_balanced_and_kinds_have_their_shares() -> None:
    clips = plans(clips=400, misaligned=0.5, mix={"cut": 3.0, "silent": 1.0})
    assert set(Counter(s.category for s in clips).values()) == {50}
    kinds = Counter(s.kind for s in clips)
    assert set(kinds) == {"aligned", "cut", "silent"}
    for kind, share in (("aligned", 0.5), ("cut", 0.375), ("silent", 0.125)):
        assert kinds[kind] / 400 == pytest.approx(share, abs=0.02)


def test_about_two_fifths_of_all_seconds_are_background() -> None:
    clips = plans(clips=1000)
    event = sum(s.end_s - s.start_s for s in clips)
    assert 0.35 < 1 - event / 10_000 < 0.5


def test_ids_look_like_those_of_the_real_set() -> None:
    ids = [s.clip_id for s in plans(clips=500)]
    assert len(set(ids)) == 500
    assert all(len(i) == 11 and KEY_PATTERN.fullmatch(i) for i in ids)
    assert 0.1 < sum(i.startswith("-") for i in ids) / 500 < 0.2


def test_splits_have_their_shares_in_all_and_within_each_class() -> None:
    options = SyntheticOptions(clips=240)
    clips = [plan(options, i) for i in range(240)]
    splits = assign_splits(options, clips)
    assert [splits.count(split) for split in SPLITS] == [168, 36, 36]
    by_class = Counter(zip((s.category for s in clips), splits, strict=True))
    for category in range(8):
        assert abs(by_class[category, "train"] - 21) <= 1
        assert abs(by_class[category, "val"] - 4.5) <= 1.5


def test_all_wrong_options_are_listed_together() -> None:
    with pytest.raises(CaeavError) as caught:
        SyntheticOptions(
            clips=0,
            classes=99,
            size_px=65,
            rate_hz=8000,
            misaligned=1.5,
            mix={"blur": 1.0},
            splits=(0.5, 0.1, 0.1),
        )
    text = str(caught.value)
    for part in (
        "clips is 0",
        "classes is 99",
        "size_px is 65",
        "rate_hz is 8000",
        "misaligned is 1.5",
        "'blur'",
        "splits is",
    ):
        assert part in text
    with pytest.raises(CaeavError, match="one above 0"):
        SyntheticOptions(mix={"cut": 0.0})
