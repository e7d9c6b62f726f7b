"""What is said when a training is over, the results being given: one run, or a group; in words and in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caeav.cli.train import finish, print_group
from caeav.manifests.core.home import Home
from caeav.model.train.groups import read_group
from caeav.model.train.protocol import PUBLISHED


def result(run: str = "r1", seed: int = 0, score: float = 50.0, **other: Any) -> dict[str, Any]:
    return {
        "run": run,
        "seed": seed,
        "group": "g1",
        "task": "ave",
        "recipe": "x",
        "dataset": "ave",
        "metric": "accuracy",
        "select_on": "val",
        "protocol": "honest",
        "rows": "segments",
        "scores": {"val": score, "test": score + 1},
        "majority": {"val": 11.25, "test": 12.5},
        "clips": {"val": 30, "test": 40},
        "intervals": {"test": {"bounds": {"accuracy": [48.0, 53.5]}}},
        "details": {"val": {}, "test": {}},
        "stopped_early": False,
        "best_epoch": 3,
        "epochs": 9,
        **other,
    }


def test_one_run_is_told_split_by_split_with_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    details = {"val": {"audio F": 1.5}, "test": {"audio F": 2.5}}
    finish([result(details=details, peaks={"test": {"accuracy": 77.0}})], Home(tmp_path), False)
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines() if line.strip()]
    assert ["val", "50", "11.25", "30"] in rows and [
        "test",
        "51",
        "48.00",
        "to",
        "53.50",
        "12.5",
        "40",
    ] in rows
    assert ["audio", "F", "1.5", "2.5"] in rows
    assert "Best over epochs on test, each number in its own epoch: accuracy 77.00." in err
    assert "best epoch 3 of 9\n" in err and f"run: {tmp_path / 'runs' / 'r1'}" in err
    assert f"next: caeav predict FILE --run r1 --home {tmp_path}\n" in err
    assert f"caeav eval --run r1 --home {tmp_path} --split test" in err
    assert not (tmp_path / "runs").exists()


def test_an_early_end_a_question_and_a_test_that_was_not_honest_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAEAV_HOME", str(tmp_path))
    finish(
        [result(rows="questions", stopped_early=True, select_on="test", intervals={})], Home(tmp_path), False
    )
    out, err = capsys.readouterr()
    assert "best epoch 3 of 9, stopped early" in err
    assert 'next: caeav predict FILE --run r1 --question "..."\n' in err and "--home" not in err
    assert "test (selected on test)" in out and "val (" not in out and "questions" in out
    finish([result(protocol=PUBLISHED)], Home(tmp_path), False)
    assert "test (published, best epoch by val)" in capsys.readouterr().out


def test_a_group_is_told_as_mean_and_deviation_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path)
    made = [result("r1", 0, 50.0), result("r2", 1, 53.0)]
    finish(made, home, True)
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["seeds"], told["scores"]["val"]["mean"]) == (["r1", "r2"], [0, 1], 51.5)
    assert read_group(home, "g1") == told
    finish(made, home, False)
    out, err = capsys.readouterr()
    [row] = [line.split() for line in out.splitlines() if line.split()[:1] == ["test"]]
    assert row == ["test", "52.5", "2.121", "12.5", "51.00", "54.00"]
    assert f"runs: r1, r2 in {home.runs}" in err and "--run r1" in err
    finish(made[:1], home, True)
    assert json.loads(capsys.readouterr().out) == made[0]


def test_the_table_of_a_group_names_its_metric(capsys: pytest.CaptureFixture[str]) -> None:
    spread = {"mean": 1.0, "std": 0.0, "values": [1.0]}
    print_group({"metric": "J&F", "scores": {"val": spread}, "majority": {"val": 0}, "select_on": "val"})
    assert "J&F %" in capsys.readouterr().out
