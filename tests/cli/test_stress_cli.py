"""Scores under stress, curves, the published protocol, leaks and completed groups, as typed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from commands import invoke
from tiny_home import write_tiny_home
from typer.testing import Result

from caeav.cli import evaluate, runs, train
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.model.train.runs import RESULT, find_run

FAST = ["--set", "training.epochs=1", "--set", "model.head.width=16", "--recipe", "none", "--device", "cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return write_tiny_home(tmp_path_factory.mktemp("stress") / "home", captions=False)


def call(home: Home, *arguments: str) -> Result:
    return invoke((train, evaluate, runs), *arguments, "--home", home.root)


@pytest.fixture(scope="module")
def trained(home: Home) -> str:
    result = call(home, "train", "--dataset", "tiny", *FAST, "--protocol", "published", "--json")
    assert result.exit_code == 0, result.output
    name: str = json.loads(result.stdout)["run"]
    return name


def test_eval_prints_the_score_with_and_without_stress(home: Home, trained: str) -> None:
    plain: dict[str, Any] = json.loads(call(home, "eval", "--run", trained, "--json").stdout)
    assert plain["stress"] == {} and plain["score_without_stress"] is None
    assert plain["score"] == plain["score_after_training"]
    low, high = plain["interval"]["bounds"]["pooled_accuracy"]
    assert low < plain["details"]["pooled_accuracy"] < high
    result = call(home, "eval", "--run", trained, "--stress", "mute=1,shift=2")
    assert result.exit_code == 0, result.output
    assert "under stress shift=2,mute=1; without: accuracy" in result.output
    zero = json.loads(call(home, "eval", "--run", trained, "--stress", "mute=0", "--json").stdout)
    assert zero == plain


def test_eval_draws_curves_into_the_run(home: Home, trained: str) -> None:
    result = call(home, "eval", "--run", trained, "--stress-curve", "mute,shift", "--split", "val")
    assert result.exit_code == 0, result.output
    assert "0.25 0.5 0.75 1" in result.output
    folder = find_run(home, trained).folder / "stress"
    assert {path.name for path in folder.iterdir()} == {"val.json", "val.png"}
    both = call(home, "eval", "--run", trained, "--stress-curve", "mute", "--stress", "mute=1")
    assert isinstance(both.exception, CaeavError)


def test_a_published_run_is_marked_wherever_it_is_shown(home: Home, trained: str) -> None:
    assert "-published-" in trained
    assert "published, best epoch by test" in call(home, "runs", "ls").output
    assert "Published protocol" in call(home, "runs", "show", trained).output
    assert f"`{trained}`" in call(home, "runs", "table", "--task", "ave").output
    table = json.loads(call(home, "runs", "table", "--json").stdout)
    assert [line["source"] for section in table["sections"] for line in section["lines"] if line["own"]] == [
        trained
    ]
    assert "(published, best epoch by test)" in call(home, "eval", "--run", trained).output


def test_resuming_the_last_run_of_a_group_completes_the_group(home: Home) -> None:
    result = call(home, "train", "--dataset", "tiny", *FAST, "--seeds", "0,1", "--drop-leaks", "--json")
    assert result.exit_code == 0, result.output
    group = json.loads(result.stdout)
    written = home.runs / f"{group['group']}.group.json"
    before = json.loads(written.read_text())
    written.unlink()
    last = find_run(home, group["runs"][1])
    (last.folder / RESULT).unlink()
    resumed = call(home, "train", "--resume", last.name, "--device", "cpu")
    assert resumed.exit_code == 0, resumed.output
    assert "by seed" in resumed.output
    assert json.loads(written.read_text()) == before
    assert "0 of 35 of train, 0 of 12 of val" in resumed.output  # nothing leaks in this set
