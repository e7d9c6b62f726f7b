"""The bound on what one modality alone can reach."""

from __future__ import annotations

import numpy as np
import pytest

from caeav.manifests.synthetic.options import SyntheticOptions
from caeav.manifests.synthetic.oracle import PICKS, SPANS, best_unimodal, labels, predict, presence, scores
from caeav.manifests.synthetic.scenario import Scenario, plan


def clip(
    start: int, end: int, seen: tuple[tuple[int, ...], ...], heard: tuple[tuple[int, ...], ...]
) -> Scenario:
    return Scenario(0, "x" * 11, 0, "aligned", start, end, None, seen, heard)


def test_scores_of_one_clip_computed_by_hand() -> None:
    """Seen as labelled, heard throughout: audio alone must guess which three of the four seconds are the event."""
    seen = ((), (0,), (0,), (0,))
    nothing, visual, audio, both = scores([clip(1, 4, seen, ((0,),) * 4)], classes=5)
    assert nothing.accuracy == 0.75 and nothing.rule == "one class"
    assert visual.accuracy == both.accuracy == 1.0
    # With one clip the best rule is right by luck: it knows the usual length, and one rule cuts the start.
    assert audio.accuracy == 1.0 and "to its end" in audio.rule


def test_one_modality_cannot_choose_between_two_equal_clips() -> None:
    """Two clips look the same; the audio tells which object is the event."""
    seen = ((0, 1),) * 4
    zero = clip(0, 4, seen, ((0,),) * 4)
    one = Scenario(1, "y" * 11, 1, "silent", 0, 4, None, seen, ((1,),) * 4)
    _, visual, audio, both = scores([zero, one], classes=5)
    assert visual.accuracy == 0.5
    assert audio.accuracy == both.accuracy == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_by_default_one_modality_stays_well_below_both(seed: int) -> None:
    options = SyntheticOptions(seed=seed)
    nothing, visual, audio, both = scores([plan(options, i) for i in range(options.clips)], options.classes)
    assert both.accuracy == 1.0
    assert nothing.accuracy < 0.5
    for one in (visual, audio):
        assert 0.6 < one.accuracy < 0.78


def test_more_misalignment_leaves_one_modality_with_less_and_none_leaves_it_everything() -> None:
    def reach(misaligned: float) -> list[float]:
        options = SyntheticOptions(misaligned=misaligned)
        return [s.accuracy for s in scores([plan(options, i) for i in range(240)], 8)[1:3]]

    aligned, half, full = reach(0.0), reach(0.5), reach(1.0)
    assert aligned == [1.0, 1.0]
    assert all(a > h > f for a, h, f in zip(aligned, half, full, strict=True))
    assert max(full) < 0.65


MASK = np.zeros((1, 3, 6), dtype=bool)
MASK[0, 0], MASK[0, 1, 1:3], MASK[0, 2, 3:] = True, True, True
"""One clip of six seconds: a class throughout, one for two seconds, one for the last three."""
TRUTH = np.array([[1, 1, 3, 3, 3, 3]])


@pytest.mark.parametrize(
    ("pick", "chosen"),
    [
        ("the longest", 0),
        ("the shortest", 1),
        ("the longest not throughout", 2),
        ("the one nearest to a usual event", 1),
        ("the first", 0),
        ("the last", 2),
    ],
)
def test_each_rule_picks_the_class_that_it_names(pick: str, chosen: int) -> None:
    found = predict(MASK, TRUTH, pick, "whenever it is present", abstain=False)
    assert found.tolist() == [[chosen if there else 3 for there in MASK[0, chosen]]]
    assert (predict(MASK, TRUTH, pick, "whenever it is present", abstain=True) == 3).all()
    one = MASK & (np.arange(3) == chosen)[:, None]
    assert (predict(one, TRUTH, pick, "whenever it is present", abstain=True) == found).all()


@pytest.mark.parametrize(
    ("span", "seconds"),
    [
        ("whenever it is present", [0, 1, 2, 3, 4, 5]),
        ("while it is alone", [0]),
        ("for the usual length from its start", [0, 1]),
        ("for the usual length to its end", [4, 5]),
    ],
)
def test_each_rule_names_the_seconds_that_it_says(span: str, seconds: list[int]) -> None:
    found = predict(MASK, TRUTH, "the longest", span, abstain=False)
    assert np.flatnonzero(found[0] == 0).tolist() == seconds and set(found[0]) <= {0, 3}


def test_the_best_rule_is_named_and_scored_over_all_seconds() -> None:
    assert len(PICKS) * len(SPANS) == 24
    best = best_unimodal("visual alone", MASK, np.array([[3, 3, 3, 2, 2, 2]]))
    assert (best.accuracy, best.rule) == (1.0, "the longest not throughout class, whenever it is present")
    hidden = best_unimodal("visual alone", MASK, np.array([[3, 3, 3, 3, 3, 1]]))
    assert hidden.accuracy == pytest.approx(5 / 6)
    assert hidden.rule.endswith("nothing where several are")


def test_labels_and_presence_are_those_of_the_scenario() -> None:
    made = Scenario(0, "x" * 11, 2, "silent", 1, 2, None, ((), (2,), (2, 0), (0,)), ((1,), (2,), (), ()))
    assert labels([made], 4).tolist() == [[4, 2, 4, 4]]
    assert [np.flatnonzero(row).tolist() for row in presence([made], 4, "seen")[0].T] == [
        [],
        [2],
        [0, 2],
        [0],
    ]
    assert [np.flatnonzero(row).tolist() for row in presence([made], 4, "heard")[0].T] == [[1], [2], [], []]
    nothing, *_, both = scores([made], 4)
    assert (nothing.accuracy, nothing.rule) == (0.75, "always background")
    assert (both.accuracy, both.rule) == (1.0, "seen and heard")
