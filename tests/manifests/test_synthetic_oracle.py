"""The bound on what one sense alone can reach."""

from __future__ import annotations

import pytest

from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.oracle import scores
from caeav.manifests.synthetic.scenario import Scenario, plan


def clip(
    start: int, end: int, seen: tuple[tuple[int, ...], ...], heard: tuple[tuple[int, ...], ...]
) -> Scenario:
    return Scenario(0, "x" * 11, 0, "aligned", start, end, None, seen, heard)


def test_scores_of_a_clip_done_by_hand() -> None:
    """Seen as labelled, heard throughout: sound alone must guess which three of the four seconds are the event."""
    seen = ((), (0,), (0,), (0,))
    knows_nothing, sight, sound, both = scores([clip(1, 4, seen, ((0,),) * 4)], classes=5)
    assert knows_nothing.accuracy == 0.75 and knows_nothing.rule == "one class"
    assert sight.accuracy == both.accuracy == 1.0
    # Of one clip the best rule is right by luck: it knows the usual length, and one of its rules cuts the start.
    assert sound.accuracy == 1.0 and "to its end" in sound.rule


def test_one_sense_cannot_choose_between_two_alike() -> None:
    """Two clips look the same; the sound tells which object is the event."""
    seen = ((0, 1),) * 4
    zero = clip(0, 4, seen, ((0,),) * 4)
    one = Scenario(1, "y" * 11, 1, "silent", 0, 4, None, seen, ((1,),) * 4)
    _, sight, sound, both = scores([zero, one], classes=5)
    assert sight.accuracy == 0.5
    assert sound.accuracy == both.accuracy == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_by_default_one_sense_stays_well_below_both(seed: int) -> None:
    options = SyntheticOptions(seed=seed)
    nothing, sight, sound, both = scores([plan(options, i) for i in range(options.clips)], options.classes)
    assert both.accuracy == 1.0
    assert nothing.accuracy < 0.5
    for one in (sight, sound):
        assert 0.6 < one.accuracy < 0.78


def test_more_misalignment_leaves_one_sense_with_less_and_none_leaves_it_everything() -> None:
    def reach(misaligned: float) -> list[float]:
        options = SyntheticOptions(misaligned=misaligned)
        return [s.accuracy for s in scores([plan(options, i) for i in range(240)], 8)[1:3]]

    aligned, half, full = reach(0.0), reach(0.5), reach(1.0)
    assert aligned == [1.0, 1.0]
    assert all(a > h > f for a, h, f in zip(aligned, half, full, strict=True))
    assert max(full) < 0.65
