"""What the demo says about its scores: no more than so few clips can show, and an explanation of odd ones."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caeav.cli import demo
from caeav.cli.demo import score_rows, what_it_shows
from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home


def result(test: float, low: float, high: float, clips: int = 9) -> dict[str, Any]:
    return {
        "metric": "accuracy",
        "scores": {"val": 50.0, "test": test},
        "majority": {"val": 40.0, "test": 36.0},
        "clips": {"val": clips, "test": clips},
        "intervals": {"test": {"bounds": {"accuracy": [low, high]}}},
    }


def test_a_small_demo_says_what_it_shows_and_why_full_is_not_first() -> None:
    """The case of 60 clips: 62 % with everything, 79 % with audio alone, on 9 clips."""
    runs = {
        "full": result(62.2, 36.7, 84.4),
        "audio": result(78.9, 65.6, 91.1),
        "visual": result(53.3, 30.0, 75.0),
    }
    said = " ".join(what_it_shows(runs))
    assert said.startswith("This shows the steps, not the scores of papers")
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


def test_with_many_clips_and_full_first_only_the_general_remarks_are_printed() -> None:
    runs = {"full": result(80, 75, 85, 80), "audio": result(60, 55, 65, 80), "visual": result(60, 55, 65, 80)}
    assert len(what_it_shows(runs)) == 2 and "'classic'" in " ".join(what_it_shows(runs))


@pytest.mark.parametrize("status", [1, 2, 130, -9])
def test_a_step_that_fails_ends_the_demo(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(arguments: list[str], *, check: bool) -> SimpleNamespace:
        asked.append(arguments)
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(demo.subprocess, "run", run)
    with pytest.raises(
        CaeavError, match=f"'caeav extract' ended with status {status}\n  next: see its message"
    ):
        demo._step(["extract", "--home", "h"])
    assert asked == [[sys.executable, "-m", "caeav.cli", "extract", "--home", "h"]]
    status = 0
    assert demo._step(["extract"]) >= 0


def test_every_step_uses_the_home_and_seed_of_the_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[list[str]] = []
    monkeypatch.setattr(demo, "_step", lambda arguments: steps.append(arguments) or 1.0)
    made = {name: {**result(50, 40, 60), "run": f"run-{name}", "recipe": name} for name in demo.RECIPES}
    monkeypatch.setattr(demo, "_newest_runs", lambda place: made)
    monkeypatch.setattr(demo, "_example", lambda place: Path("x.mp4"))
    monkeypatch.setattr("caeav.model.report.page.require", lambda: None)
    demo.demo(clips=77, seed=5, home=tmp_path)
    home = str(tmp_path / "demo")
    assert all(step[-2:] == ["--home", home] for step in steps)
    assert [step[0] for step in steps] == [
        *("synthesise", "manifest", "extract", "caption", "store"),
        *("train", "train", "train", "eval", "predict", "report"),
    ]
    assert steps[0][1:5] == ["--clips", "77", "--seed", "5"]
    trained = [step for step in steps if step[0] == "train"]
    assert [step[step.index("--recipe") + 1] for step in trained] == list(demo.RECIPES)
    assert all(step[step.index("--seeds") + 1] == "5" for step in trained)
    assert steps[-3][2] == steps[-2][3] == steps[-1][1] == "run-full" and "test" in steps[-3]


def test_without_what_a_report_needs_the_demo_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "plotly" else object())
    took: list[tuple[str, float]] = []
    page, why = demo._report(Home(tmp_path), "r", [], took)
    assert page is None and took == []
    assert why == 'a report needs plotly, which is not installed; pip install "caeav[report]"'


def test_the_example_is_a_test_clip_with_something_to_see(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def clip(key: str, split: str, end_s: float) -> Clip:
        return Clip(key, f"{key}.mp4", 0.0, 10.0, split, (Event("dog", 0.0, end_s),))

    clips = [clip("a", "train", 5.0), clip("b", "test", 10.0), clip("c", "test", 0.0), clip("d", "test", 4.0)]
    for given, wanted in ((clips, "/m/d.mp4"), (clips[:3], None)):
        manifest = Manifest("synthetic", 10, 1.0, ("dog",), tuple(given), "/m")
        monkeypatch.setattr("caeav.manifests.dataset.load_dataset", lambda *_, found=manifest: found)
        if wanted is None:
            with pytest.raises(CaeavError, match="no test clip with an event"):
                demo._example(Home(tmp_path))
        else:
            assert demo._example(Home(tmp_path)) == Path(wanted)
