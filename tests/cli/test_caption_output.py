"""`caeav caption show` and `export`, cell by cell: which stores are read, what is printed, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from commands import cells
from typer.testing import CliRunner, Result

from caeav.cli import caption as caption_command
from caeav.cli.app import build
from caeav.manifests.clip import Clip, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.pipeline.store import Quarantined, Recipe, Record, open_for_writing


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two caption stores of one data set beside its tokens; the first lacks two clips and quarantined another."""
    made = Home(tmp_path_factory.mktemp("captions") / "home")
    weights = {"source": "hub:a/b", "digest": "sha256:0123456789abcdef"}
    for name, width, keys in (("one", 4, ("a", "b", "c", "d")), ("two", 6, ("a", "e"))):
        captioner = {"name": "blip2", "settings": {"beams": 3}, "weights": weights, "frames": 5}
        text = {"name": "clip", "weights": weights}
        fields = {
            "visual": {**captioner, "text": text},
            "audio": {"name": "file", "text": {"name": "classic"}},
        }
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
    manifest = Manifest("d", 2, 1.0, (), (Clip("a", "a.mp4", 0.0, 2.0),))
    with open_for_writing(made.stores / "d", Recipe("tokens", "t", {"shard_clips": 1}), manifest) as writer:
        [plan] = writer.plan()
        writer.publish(plan, {"a": Record("a", {"visual.x": np.zeros((2, 1, 3), np.float16)}, {})})
        writer.finish()
    return made


def record(key: str, width: int) -> Record:
    arrays: dict[str, Any] = {}
    for modality, count in (("visual", 3), ("audio", 0)):
        arrays[f"{modality}_caption"] = np.zeros((5, width if count else 7), np.float16)
        arrays[f"{modality}_caption_mask"] = np.arange(5) < count
    return Record(key, arrays, {"texts": {"visual": "a dog, \x1b[2J", "audio": ""}, "notes": []})


def call(home: Home, *arguments: str) -> Result:
    return CliRunner().invoke(build(), ["caption", *arguments, "--dataset", "d", "--home", str(home.root)])


def test_captions_are_shown_with_who_wrote_and_embedded_them(home: Home) -> None:
    said = call(home, "show", "a", "--store", "one")
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
    both = json.loads(call(home, "show", "a", "--json").stdout)
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
    [only] = json.loads(call(home, "show", "e", "--json").stdout)
    assert only["key"] == "e" and only["visual"]["shape"] == [5, 6]
    assert both[0]["audio"]["text"] == "" and both[0]["audio"]["tokens"] == 0
    [named] = json.loads(call(home, "show", "a", "--store", "two", "--json").stdout)
    assert named["visual"]["shape"] == [5, 6]
    unknown = call(home, "show", "zzz")
    assert isinstance(unknown.exception, CaeavError) and "zzz" in str(unknown.exception)
    assert unknown.exception.hint == "its keys are like 'a'"


def test_an_export_says_which_clips_it_lacks_and_why(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    said = call(home, "export", "--store", "one", "--format", "jsonl", "--output", str(file))
    assert said.exit_code == 0 and said.stdout == ""
    assert json.loads(file.read_text()) == {"key": "a", "visual": "a dog, \x1b[2J", "audio": ""}
    assert said.stderr.splitlines() == [
        "1 of 4 clips have no captions: in quarantine",
        "2 of 4 clips have no captions: not yet made",
        f"1 clip written to {file}",
    ]
    whole = call(home, "export", "--store", "two")
    assert whole.stdout == '"key","visual","audio"\n"a","a dog, \x1b[2J",""\n"e","a dog, \x1b[2J",""\n'
    assert whole.stderr == ""
    wrong = call(home, "export", "--format", "xml")
    assert isinstance(wrong.exception, CaeavError) and "choose one of: csv, jsonl" in str(wrong.exception)


def test_options_before_a_sub_command_are_refused_with_their_place() -> None:
    said = CliRunner().invoke(build(), ["caption", "--dataset", "d", "show", "a"])
    assert said.exit_code == 2
    told = " ".join(re.sub("[│╭╰─╮╯]", " ", said.output).split())
    assert "--dataset belongs after the command: caeav caption show --dataset" in told


def test_without_a_sub_command_captions_are_made() -> None:
    context = typer.Context(typer.main.get_command(build()))
    context.invoked_subcommand = None
    assert caption_command._sub_command_named(context) is False
