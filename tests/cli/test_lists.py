"""`runs ls`, `store ls`, `rm` of both, and short names: what distinguishes runs and stores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from commands import invoke
from tiny_home import write_tiny_home
from typer.testing import Result

from caeav.cli import console, runs, store, train
from caeav.cli.console import print_table
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.core.util import age_text
from caeav.pipeline.store import convert, find_store, list_stores

FAST = ["--set", "training.epochs=1", "--set", "model.head.width=16", "--recipe", "none", "--device", "cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The tiny stores, the tokens in both formats, and two runs of one group."""
    made = write_tiny_home(tmp_path_factory.mktemp("lists") / "home")
    assert call(made, "train", "--dataset", "tiny", *FAST, "--seeds", "1,2").exit_code == 0
    convert(find_store(made.stores, "tiny", "tokens"), "zarr")
    return made


def call(home: Home, *arguments: str) -> Result:
    return invoke((train, runs, store), *arguments, "--home", home.root)


def test_runs_ls_shows_backbones_settings_and_the_seeds_of_a_group(home: Home) -> None:
    listed = json.loads(call(home, "runs", "ls", "--json").stdout)
    assert [row["seed"] for row in listed] == [1, 2]
    assert listed[0]["set"] == ["model.head.width=16", "training.epochs=1"]
    assert listed[0]["backbones"] and listed[0]["age_s"] >= 0
    shown = call(home, "runs", "ls").stdout
    mean = sum(row["test"] for row in listed) / 2
    deviation = abs(listed[0]["test"] - listed[1]["test"]) / 2**0.5
    assert f"{mean:.2f} ± {deviation:.2f}" in shown and "1,2" in shown
    assert "model.head.width=16 training.epochs=1" in shown


def test_store_ls_shows_what_made_a_store_and_which_runs_use_it(home: Home) -> None:
    listed = {Path(row["path"]).name: row for row in json.loads(call(home, "store", "ls", "--json").stdout)}
    formats = {row["format"]: row for row in listed.values() if row["kind"] == "tokens"}
    assert set(formats) == {"webdataset", "zarr"}
    assert len(formats["webdataset"]["runs"]) == 2 and formats["zarr"]["runs"] == []
    assert formats["zarr"]["made_by"] == formats["webdataset"]["made_by"]
    assert "made by" in call(home, "store", "ls").stdout


def test_short_names_are_enough_where_they_are_unambiguous(home: Home) -> None:
    zarr = find_store(home.stores, "tiny", "tokens", "zarr")
    assert find_store(home.stores, "tiny", "tokens", "web") != zarr
    assert find_store(home.stores, "tiny", None, "zar") == zarr
    with pytest.raises(CaeavError, match="2 stores match"):
        find_store(home.stores, "tiny", "tokens", "tiny")
    with pytest.raises(CaeavError, match="no tokens store of tiny called 'arr'"):
        find_store(home.stores, "tiny", "tokens", "arr")


def test_a_store_is_removed_only_when_confirmed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr = find_store(home.stores, "tiny", "tokens", "zarr")
    refused = call(home, "store", "rm", "tiny", "--store", "zarr")
    assert isinstance(refused.exception, CaeavError) and "--yes" in str(refused.exception) and zarr.is_dir()
    [used] = [info.path for info in list_stores(home.stores) if info.kind == "tokens" and info.path != zarr]
    warned = call(home, "store", "rm", str(used))
    assert "2 runs cannot be scored or repeated without it" in warned.stderr
    assert call(home, "store", "rm", "tiny", "--store", "zarr", "--yes").exit_code == 0
    assert not zarr.exists() and len(list_stores(home.stores)) == 2


def test_two_runs_are_compared_by_settings_scores_and_clips(home: Home) -> None:
    names = [row["run"] for row in json.loads(call(home, "runs", "ls", "--json").stdout)]
    found = json.loads(call(home, "runs", "compare", *names, "--json").stdout)
    assert found["settings"] == [["seed", "1", "2"]]
    tests = [json.loads((home.runs / name / "result.json").read_text())["scores"]["test"] for name in names]
    [score] = found["differences"]
    assert score["points"] == pytest.approx(tests[1] - tests[0], abs=1e-4)
    assert score["low"] <= score["points"] <= score["high"] and found["split"] == "test"
    gaps = [abs(a - b) for a, b in (each["scores"] for each in found["clips"])]
    assert gaps == sorted(gaps, reverse=True) and all(gaps)
    shown = call(home, "runs", "compare", *names)
    assert "beyond chance" in shown.stdout and f"caeav report {names[0]} {names[1]}" in shown.stderr


def test_runs_are_removed_all_or_none(home: Home) -> None:
    names = [row["run"] for row in json.loads(call(home, "runs", "ls", "--json").stdout)]
    assert isinstance(call(home, "runs", "rm", names[0], "nothing", "--yes").exception, CaeavError)
    assert (home.runs / names[0]).is_dir()
    assert call(home, "runs", "rm", names[0], "--yes").stdout.split() == [names[0]]
    assert not (home.runs / names[0]).exists() and (home.runs / names[1]).is_dir()


def table(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **more: object
) -> tuple[str, str]:
    monkeypatch.setattr(console, "Console", lambda **given: _console(width, given))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    print_table(
        ("run", "words", "n"),
        [("a-name-of-twenty-char", "some words", 3)],
        drop=("words", "n"),
        **more,  # type: ignore[arg-type]
    )
    shown = capsys.readouterr()
    return shown.out, shown.err


def _console(width: int, given: dict[str, object]) -> object:
    from rich.console import Console

    return Console(width=given.get("width") or width, file=sys.stdout, color_system=None)  # type: ignore[arg-type]


def test_a_narrow_terminal_drops_columns_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = table(100, monkeypatch, capsys)
    assert "words" in out and err == ""
    out, err = table(30, monkeypatch, capsys)
    assert "words" not in out and " n" in out and "words; --wide shows all" in err
    out, err = table(10, monkeypatch, capsys)
    assert "a-name-of-twenty-char" in out and "words, n; --wide" in err
    out, err = table(10, monkeypatch, capsys, wide=True)
    assert "a-name-of-twenty-char  some words  3" in out and err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (60, "1 min"), (119, "1 min"), (7199, "119 min"), (7200, "2 h"), (200000, "2 d")],
)
def test_ages_are_rough(seconds: float, text: str) -> None:
    assert age_text(seconds) == text
