"""What is printed when a training is over, and what captions look like, cell by cell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from caeav.cli import caption as caption_command
from caeav.cli import options
from caeav.cli import train as train_command
from caeav.cli.app import build
from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.store import Quarantined, Recipe, Record, open_for_writing

RESULT: dict[str, Any] = {
    "run": "r0", "group": "g", "task": "ave", "recipe": "full", "dataset": "d", "seed": 0,
    "metric": "accuracy", "rows": "clips", "select_on": "val", "protocol": "honest",
    "scores": {"val": 61.5, "test": 58.25}, "majority": {"val": 20.5, "test": 21.5},
    "clips": {"val": 12, "test": 34}, "left_out": {"val": 0, "test": 0},
    "intervals": {"test": {"bounds": {"accuracy": [50.0, 66.0], "recall": [1.0, 2.0]}}},
    "details": {"val": {"recall": 7.5}, "test": {"recall": 21.25}},
    "epochs": 7, "best_epoch": 5, "stopped_early": False, "bare": {"test": [2, 60]},
}  # fmt: skip


def cells(text: str) -> list[list[str]]:
    """Rows of a printed table; columns are two blanks apart at least."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.strip()]


# ---- a training's end ----------------------------------------------------------------------------------------


def test_a_run_s_numbers_stand_under_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path)
    train_command.finish([RESULT], home, False)
    said = capsys.readouterr()
    assert cells(said.out) == [
        ["split", "accuracy %", "interval", "majority %", "clips"],
        ["val", "61.5", "20.5", "12"],
        ["test", "58.25", "50.00 to 66.00", "21.5", "34"],
        ["also", "val", "test"],
        ["recall", "7.5", "21.25"],
    ]
    assert "neither frames nor audio, as past the end of the media: test 2 of 60" in said.err
    assert "best epoch 5 of 7\n" in said.err and f"run: {home.runs / 'r0'}\n" in said.err
    assert f"next: caeav predict FILE --run r0 --home {tmp_path}\n" in said.err
    assert f"caeav eval --run r0 --home {tmp_path} --split test" in said.err
    assert not list(tmp_path.iterdir())  # one run is no group

    changed = {"stopped_early": True, "select_on": "test", "rows": "questions", "details": {"val": {}}}
    train_command.finish([{**RESULT, **changed}], home, False)
    said = capsys.readouterr()
    assert [row[0] for row in cells(said.out)] == ["split", "val", "test (selected on test)"]
    assert cells(said.out)[0][-1] == "questions"
    assert "best epoch 5 of 7, stopped early" in said.err and '--question "..."\n' in said.err
    assert said.err.count("--question") == 1


def test_several_seeds_are_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path)
    home.runs.mkdir()
    second = {**RESULT, "run": "r1", "seed": 1, "scores": {"val": 63.5, "test": 60.25}}
    train_command.finish([RESULT, second], home, False)
    said = capsys.readouterr()
    assert cells(said.out) == [
        ["split", "accuracy %", "deviation", "majority %", "by seed"],
        ["val", "62.5", "1.414", "20.5", "61.50 63.50"],
        ["test", "59.25", "1.414", "21.5", "58.25 60.25"],
    ]
    assert f"runs: r0, r1 in {home.runs}" in said.err and "predict FILE --run r0" in said.err
    [kept] = [path for path in home.runs.iterdir() if path.is_file()]
    assert json.loads(kept.read_text())["seeds"] == [0, 1]
    train_command.finish([RESULT, second], home, True)
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads(kept.read_text()) and said.err == ""
    train_command.finish([RESULT], home, True)
    assert json.loads(capsys.readouterr().out) == RESULT


# ---- captions ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two caption stores of one data set; the first lacks two of its clips and could not make another."""
    made = Home(tmp_path_factory.mktemp("captions") / "home")
    weights = {"source": "hub:a/b", "digest": "sha256:0123456789abcdef"}
    for name, width, keys in (("one", 4, ("a", "b", "c", "d")), ("two", 6, ("a", "e"))):
        side = {"name": "blip2", "settings": {"beams": 3}, "weights": weights, "frames": 5}
        text = {"name": "clip", "weights": weights}
        fields = {"visual": {**side, "text": text}, "audio": {"name": "file", "text": {"name": "classic"}}}
        recipe = Recipe("captions", name, {**fields, "shard_clips": 1})
        manifest = Manifest("d", 2, 1.0, (), tuple(Clip(key, f"{key}.mp4", 0.0, 2.0) for key in keys))
        with open_for_writing(made.stores / "d", recipe, manifest) as writer:
            if name == "one":
                writer.quarantine(Quarantined("b", "decode", "broken", 1))
            for plan in writer.plan():
                if set(plan.missing) <= {"a", "e"}:
                    writer.publish(plan, {key: record(key, width) for key in plan.missing})
            if name == "two":
                writer.finish()
    return made


def record(key: str, width: int) -> Record:
    arrays: dict[str, Any] = {}
    for side, count in (("visual", 3), ("audio", 0)):
        arrays[f"{side}_caption"] = np.zeros((5, width if count else 7), np.float16)
        arrays[f"{side}_caption_mask"] = np.arange(5) < count
    return Record(key, arrays, {"texts": {"visual": "a dog, \x1b[2J", "audio": ""}, "notes": []})


def call(home: Home, *arguments: str) -> Any:
    return CliRunner().invoke(build(), ["caption", *arguments, "--home", str(home.root)])


def test_a_clip_s_captions_are_shown_with_who_wrote_and_embedded_them(home: Home) -> None:
    said = call(home, "show", "a", "--dataset", "d", "--store", "one")
    assert said.exit_code == 0, said.output
    path, head, *rows = said.stdout.splitlines()
    assert "captions-one" in path and head == "a"
    written = "(hub:a/b, sha256:0123456789ab)"
    assert cells("\n".join(rows)) == [
        ["visual", "a dog, \\x1b[2J"],
        ["written by", f"blip2 {written}"],
        ["with", "frames 5, beams 3"],
        ["embedded by", f"clip {written}: 3 tokens of 5 x 4 float16"],
        ["audio", "(none)"],
        ["written by", "file"],
        ["embedded by", "classic: 0 tokens of 5 x 7 float16"],
    ]


def test_captions_of_every_store_that_has_the_clip_are_shown(home: Home) -> None:
    both = json.loads(call(home, "show", "a", "--dataset", "d", "--json").stdout)
    assert [each["visual"]["shape"] for each in both] == [[5, 4], [5, 6]]
    assert both[0]["key"] == "a" and both[0]["path"].rpartition("/")[2].startswith("captions-one")
    assert both[0]["visual"] == {
        "text": "a dog, \x1b[2J",
        "text_backbone": {
            "name": "clip",
            "weights": {"source": "hub:a/b", "digest": "sha256:0123456789abcdef"},
        },
        "captioner": {
            "name": "blip2",
            "settings": {"beams": 3},
            "weights": {"source": "hub:a/b", "digest": "sha256:0123456789abcdef"},
            "frames": 5,
        },
        "tokens": 3, "shape": [5, 4], "dtype": "float16",
    }  # fmt: skip
    [only] = json.loads(call(home, "show", "e", "--dataset", "d", "--json").stdout)
    assert only["key"] == "e" and only["visual"]["shape"] == [5, 6]
    assert both[0]["audio"]["text"] == "" and both[0]["audio"]["tokens"] == 0


def test_an_export_says_which_clips_it_lacks_and_why(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    said = call(
        home, "export", "--dataset", "d", "--store", "one", "--format", "jsonl", "--output", str(file)
    )
    assert said.exit_code == 0 and said.stdout == ""
    assert json.loads(file.read_text()) == {"key": "a", "visual": "a dog, \x1b[2J", "audio": ""}
    assert said.stderr.splitlines() == [
        "1 of 4 clips have no captions: in quarantine",
        "2 of 4 clips have no captions: not yet made",
        f"1 clip written to {file}",
    ]
    whole = call(home, "export", "--dataset", "d", "--store", "two")
    assert whole.stdout == '"key","visual","audio"\n"a","a dog, \x1b[2J",""\n"e","a dog, \x1b[2J",""\n'
    assert whole.stderr == ""
    wrong = call(home, "export", "--dataset", "d", "--format", "xml")
    assert isinstance(wrong.exception, CaeavError) and "choose one of: csv, jsonl" in str(wrong.exception)


def test_options_in_front_of_a_sub_command_are_refused_with_their_place() -> None:
    said = CliRunner().invoke(build(), ["caption", "--dataset", "d", "show", "a"])
    assert said.exit_code == 2
    told = " ".join(re.sub("[│╭╰─╮╯]", " ", said.output).split())
    assert "--dataset belongs after the command: caeav caption show --dataset" in told


def test_without_a_sub_command_captions_are_made() -> None:
    context = typer.Context(typer.main.get_command(build()))
    context.invoked_subcommand = None
    assert caption_command._sub_command_named(context) is False


# ---- backbones for inject ------------------------------------------------------------------------------------


def test_both_backbones_are_opened_each_as_its_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [SimpleNamespace()]
    asked: list[Any] = []

    def opened(recipes: Any, side: str) -> Any:
        asked.append((recipes, side))
        return SimpleNamespace(stages=stages, module=side)

    remembered: list[Any] = []
    monkeypatch.setattr("caeav.pipeline.extract.jobs.open_live", opened)
    monkeypatch.setattr(
        "caeav.pipeline.backbones.weights.remember_at", lambda *given: remembered.append((asked[:], given))
    )
    home = Home(tmp_path)
    recipes: Any = ["recipe"]
    assert options.live_opener(home)(recipes).modules == ("visual", "audio")
    assert asked == [(recipes, "visual"), (recipes, "audio")]
    assert remembered == [([], (home, options.say))]  # before any weights are looked for
