"""What the demo says of its scores: no more than so few clips can show, and never nothing when they look wrong."""

from __future__ import annotations

from typing import Any

import pytest

from caeav.cli.demo import score_rows, what_it_shows


def result(test: float, low: float, high: float, clips: int = 9) -> dict[str, Any]:
    return {
        "metric": "accuracy",
        "scores": {"val": 50.0, "test": test},
        "majority": {"val": 40.0, "test": 36.0},
        "clips": {"val": clips, "test": clips},
        "intervals": {"test": {"bounds": {"accuracy": [low, high]}}},
    }


def test_a_small_demo_says_that_it_shows_the_way_and_why_full_is_not_first() -> None:
    """The case of 60 clips: 62 % with everything, 79 % by sound alone, on 9 clips."""
    runs = {
        "full": result(62.2, 36.7, 84.4),
        "audio": result(78.9, 65.6, 91.1),
        "visual": result(53.3, 30.0, 75.0),
    }
    said = " ".join(what_it_shows(runs))
    assert said.startswith("This shows the way, not the scores of papers")
    assert "'classic'" in said and "With 9 test clips a score is mostly chance" in said
    assert "Here 'audio' is not worse than 'full' on test; their intervals overlap: nothing follows" in said
    rows = score_rows(runs)
    assert rows[0] == ["majority", "nothing", 40.0, 36.0, ""]
    assert [(row[0], row[4]) for row in rows[1:]] == [
        ("full", "36.7 to 84.4"),
        ("audio", "65.6 to 91.1"),
        ("visual", "30.0 to 75.0"),
    ]


@pytest.mark.parametrize(("low", "high"), [(82.0, 95.0), (10.0, 20.0)])
def test_intervals_that_are_apart_are_not_called_overlapping(low: float, high: float) -> None:
    runs = {"full": result(50, 30, 70), "audio": result(40, 30, 60), "visual": result(90, low, high)}
    assert what_it_shows(runs)[-1].endswith("their intervals do not overlap.")


def test_with_many_clips_and_full_first_only_what_it_is_is_said() -> None:
    runs = {"full": result(80, 75, 85, 80), "audio": result(60, 55, 65, 80), "visual": result(60, 55, 65, 80)}
    assert len(what_it_shows(runs)) == 2 and "'classic'" in " ".join(what_it_shows(runs))
