"""Timelines of the generated set: what they promise, for thousands of them, before any media is made."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from caeav.manifests.clip import SPLITS
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.keys import KEY_PATTERN
from caeav.manifests.synthetic.layouts.base import assign_splits
from caeav.manifests.synthetic.options import KINDS, SyntheticOptions
from caeav.manifests.synthetic.scenario import AUDIO, VISUAL, Scenario, Timeline, plan


def plans(**options: object) -> list[Scenario]:
    o = SyntheticOptions(**options)  # type: ignore[arg-type]
    return [plan(o, i) for i in range(o.clips)]


def seconds_of(scenario: Scenario, modality: str) -> list[int]:
    return [t for t, present in enumerate(getattr(scenario, modality)) if scenario.category in present]


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


def test_the_modality_a_misalignment_leaves_exact_gets_a_distractor() -> None:
    for s in plans(clips=200, misaligned=1.0, distractors=1.0):
        event = set(range(s.start_s, s.end_s))
        for modality in ("seen", "heard"):
            if set(seconds_of(s, modality)) == event:
                present = set().union(*getattr(s, modality))
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


class Scripted:
    """Stands in for a random generator: returns the given shares, and the lowest or highest whole numbers."""

    def __init__(self, *shares: float, high: bool = False) -> None:
        self.shares, self.high = list(shares), high

    def random(self) -> float:
        return self.shares.pop(0)

    def integers(self, low: int, high: int) -> int:
        return high - 1 if self.high else low

    def permutation(self, given: list[int]) -> list[int]:
        return list(given)


def timeline(*shares: float, high: bool = False) -> Timeline:
    return Timeline(SyntheticOptions(classes=5, seconds=10), 1, Scripted(*shares, high=high))  # type: ignore[arg-type]


def there(made: Timeline, modality: int, cls: int = 1) -> list[int]:
    return np.flatnonzero(made.present[modality, cls]).tolist()


@pytest.mark.parametrize(("share", "event"), [(0.19, (0, 10)), (0.21, (0, 3))])
def test_a_fifth_of_the_aligned_clips_are_aligned_throughout(share: float, event: tuple[int, int]) -> None:
    made = timeline(share)
    made.aligned()
    assert made.event == event and made.spoilt is None
    assert there(made, VISUAL) == there(made, AUDIO) == list(range(*event))


@pytest.mark.parametrize(("kind", "modality"), [("offscreen", AUDIO), ("silent", VISUAL)])
def test_one_modality_outlasts_the_event_throughout_or_on_its_longer_side(kind: str, modality: int) -> None:
    whole, beside, late = timeline(0.59), timeline(0.61), timeline(0.61, high=True)
    for made in (whole, beside, late):
        getattr(made, kind)()
        assert made.spoilt == modality
    assert (whole.event, beside.event, late.event) == ((0, 3), (0, 3), (2, 10))
    assert there(whole, modality) == list(range(10))
    assert there(beside, modality) == list(range(7))  # from its end, at least half of the seven that are free
    assert there(late, modality) == list(range(10))  # the two before it, all that are free
    assert there(late, 1 - modality) == list(range(2, 10))


def test_a_wrong_sound_is_another_class_beside_the_event() -> None:
    made = timeline()
    made.wrong_sound()
    assert there(made, VISUAL) == list(range(7)) and there(made, AUDIO) == [0, 1, 2]
    assert there(made, AUDIO, 4) == [3, 4, 5, 6] and there(made, VISUAL, 4) == []
    assert made.spoilt == VISUAL and made.others == [0, 2, 3]


@pytest.mark.parametrize(
    ("share", "high", "cut_s", "event", "beyond"),
    [
        (0.4, False, 3, (1, 3), range(3, 7)),
        (0.6, False, 3, (3, 7), range(1, 3)),
        (0.4, True, 7, (0, 7), range(7, 10)),
        (0.6, True, 7, (7, 10), range(7)),
    ],
)
def test_a_cut_divides_the_event_from_what_outlasts_it(
    share: float, high: bool, cut_s: int, event: tuple[int, int], beyond: range
) -> None:
    made = timeline(share, high=high)
    made.cut()
    assert (made.cut_s, made.event, made.spoilt) == (cut_s, event, AUDIO if high else VISUAL)
    assert made.spoilt is not None and there(made, 1 - made.spoilt) == list(range(*event))
    assert there(made, made.spoilt) == sorted({*range(*event), *beyond})


@pytest.mark.parametrize("spoilt", [VISUAL, AUDIO])
def test_distractors_are_in_the_exact_modality_and_some_in_the_other(spoilt: int) -> None:
    few, many = timeline(0.99, 0.99, 0.99), timeline(0.0, 0.0, 0.0, 0.0, 0.99)
    for made in (few, many):
        made.spoilt = spoilt
        made.distract()
    exact = 1 - spoilt
    assert there(few, exact, 4) == [0, 1, 2] and few.others == [0, 2, 3] and not few.present[spoilt].any()
    assert there(many, exact, 4) == there(many, exact, 3) == list(range(10))
    assert there(many, spoilt, 2) == [0, 1, 2] and many.others == [0]


def test_distractors_come_as_often_as_asked() -> None:
    """Only where a modality was spoilt: an aligned clip has none."""
    for share, low, high in ((0.0, 0.0, 0.0), (0.3, 0.2, 0.4), (1.0, 1.0, 1.0)):
        made = plans(clips=200, misaligned=1.0, mix={"silent": 1.0}, distractors=share)
        with_one = [s for s in made if {c for both in (*s.seen, *s.heard) for c in both} != {s.category}]
        assert low <= len(with_one) / 200 <= high
    assert all(s.seen == s.heard for s in plans(clips=50, misaligned=0.0, distractors=1.0))
