"""What is printed when a training is over: one run or a group of runs, in words and in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import cells

from caeav.cli.train import finish, print_group
from caeav.manifests.core.home import Home
from caeav.model.train.groups import read_group
from caeav.model.train.protocol import PUBLISHED

RESULT: dict[str, Any] = {
    "run": "r0", "group": "g", "task": "ave", "recipe": "full", "dataset": "d", "seed": 0,
    "metric": "accuracy", "rows": "clips", "select_on": "val", "protocol": "honest",
    "scores": {"val": 61.5, "test": 58.25}, "majority": {"val": 20.5, "test": 21.5},
    "clips": {"val": 12, "test": 34}, "left_out": {"val": 0, "test": 0},
    "intervals": {"test": {"bounds": {"accuracy": [50.0, 66.0], "recall": [1.0, 2.0]}}},
    "details": {"val": {"recall": 7.5}, "test": {"recall": 21.25}},
    "epochs": 7, "best_epoch": 5, "stopped_early": False, "bare": {"test": [2, 60]},
}  # fmt: skip


def test_one_run_is_shown_split_by_split_with_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path)
    finish([{**RESULT, "peaks": {"test": {"accuracy": 77.0}}}], home, False)
    shown = capsys.readouterr()
    assert cells(shown.out) == [
        ["split", "accuracy %", "interval", "majority %", "clips"],
        ["val", "61.5", "20.5", "12"],
        ["test", "58.25", "50.00 to 66.00", "21.5", "34"],
        ["also", "val", "test"],
        ["recall", "7.5", "21.25"],
    ]
    assert "neither frames nor audio, as past the end of the media: test 2 of 60" in shown.err
    assert "Best over epochs on test, each number in its own epoch: accuracy 77.00." in shown.err
    assert "best epoch 5 of 7\n" in shown.err and f"run: {home.runs / 'r0'}\n" in shown.err
    assert f"next: caeav predict FILE --run r0 --home {tmp_path}\n" in shown.err
    assert f"caeav eval --run r0 --home {tmp_path} --split test" in shown.err
    assert not list(tmp_path.iterdir())  # one run is no group


def test_early_stopping_questions_and_a_test_that_chose_the_epoch_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAEAV_HOME", str(tmp_path))
    changed = {"stopped_early": True, "select_on": "test", "rows": "questions", "details": {"val": {}}}
    finish([{**RESULT, **changed}], Home(tmp_path), False)
    shown = capsys.readouterr()
    assert [row[0] for row in cells(shown.out)] == ["split", "val", "test (selected on test)"]
    assert cells(shown.out)[0][-1] == "questions"
    assert "best epoch 5 of 7, stopped early" in shown.err
    assert 'next: caeav predict FILE --run r0 --question "..."\n' in shown.err
    assert shown.err.count("--question") == 1 and "--home" not in shown.err
    finish([{**RESULT, "protocol": PUBLISHED}], Home(tmp_path), False)
    assert "test (published, best epoch by val)" in capsys.readouterr().out


def test_several_seeds_are_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path)
    second = {**RESULT, "run": "r1", "seed": 1, "scores": {"val": 63.5, "test": 60.25}}
    finish([RESULT, second], home, False)
    shown = capsys.readouterr()
    assert cells(shown.out) == [
        ["split", "accuracy %", "deviation", "majority %", "by seed"],
        ["val", "62.5", "1.414", "20.5", "61.50 63.50"],
        ["test", "59.25", "1.414", "21.5", "58.25 60.25"],
    ]
    assert f"runs: r0, r1 in {home.runs}" in shown.err and "predict FILE --run r0" in shown.err
    kept = read_group(home, "g")
    assert kept is not None and (kept["runs"], kept["seeds"]) == (["r0", "r1"], [0, 1])
    finish([RESULT, second], home, True)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == kept and shown.err == ""
    finish([RESULT], home, True)
    assert json.loads(capsys.readouterr().out) == RESULT


def test_the_table_of_a_group_names_its_metric(capsys: pytest.CaptureFixture[str]) -> None:
    spread = {"mean": 1.0, "std": 0.0, "values": [1.0]}
    print_group({"metric": "J&F", "scores": {"val": spread}, "majority": {"val": 0}, "select_on": "val"})
    assert "J&F %" in capsys.readouterr().out
