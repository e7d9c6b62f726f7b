"""`--dry-run` and `--limit`: what a run would take, and a small run in its own name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import invoke
from typer.testing import Result

from caeav.cli import caption, extract, synthesise
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import limited_name, whole_of
from caeav.manifests.remembered import last_dataset
from caeav.pipeline.extract import forecast
from caeav.pipeline.store import StoreReader, list_stores


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("forecast") / "home")
    assert call(made, "synthesise", "--clips", "12", "--seconds", "4", "--seed", "1").exit_code == 0
    return made


def call(home: Home, *arguments: str) -> Result:
    return invoke((extract, caption, synthesise), *arguments, "--home", home.root)


def plan(home: Home, *arguments: str) -> dict[str, Any]:
    made = call(home, *arguments, "--dry-run", "--json")
    assert made.exit_code == 0, made.output
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def test_a_limited_run_tells_how_long_the_whole_one_takes(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "TELLING_CLIPS", 2)
    before = plan(home, "extract", "--dataset", "synthetic", "--captions")
    tokens, captions = before["stores"]
    assert before["seconds"] is None and (tokens["due"], captions["due"]) == (12, 12)
    assert list_stores(home.stores) == [] and not home.remembered.exists()

    assert call(home, "extract", "--dataset", "synthetic", "--captions", "--limit", "2").exit_code == 0
    assert last_dataset(home) == "synthetic-first2"
    [first] = [info for info in list_stores(home.stores) if info.kind == "tokens"]
    small = StoreReader.open(first.path)
    counts = small.manifest.split_counts()
    assert first.dataset == "synthetic-first2" and max(counts.values()) == 2
    record = small.read_stored(small.keys[0])
    assert sum(array.nbytes for array in record.arrays.values()) == tokens["clip_bytes"]

    after = plan(home, "extract", "--dataset", "synthetic", "--captions")
    again = plan(home, "extract", "--dataset", "synthetic-first2", "--captions")
    assert after["seconds"] > 0 and after["stores"][0]["due"] == 12
    assert again["stores"][0]["due"] == 0 and again["stores"][0]["stored"] == len(small)
    assert again["seconds"] == 0


def test_the_next_command_continues_with_the_limited_set(home: Home) -> None:
    assert call(home, "extract", "--dataset", "synthetic", "--limit", "1").exit_code == 0
    made = call(home, "caption")
    assert made.exit_code == 0 and "synthetic-first1, the one last extracted" in made.stderr
    kinds = {info.kind for info in list_stores(home.stores) if info.dataset == "synthetic-first1"}
    assert kinds == {"tokens", "captions"}
    whole = call(home, "extract", "--dataset", "synthetic")
    assert whole.exit_code == 0 and last_dataset(home) == "synthetic"


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float16", 2 * 1000), ("float32", 4 * 1000), ("int8", 1000 + 4 * 50), ("other", None)],
)
def test_bytes_follow_from_the_declared_shapes(dtype: str, size: int | None) -> None:
    taps = [{"name": "visual.a", "tokens": 2, "channels": 50}]
    fields = {"dtype": dtype, "sampling": {"segments": 10}, "visual": {"taps": taps}}
    assert forecast.clip_bytes(forecast.Recipe("tokens", "x", fields)) == size


def test_damaged_rates_are_ignored(tmp_path: Path) -> None:
    (tmp_path / forecast.RATES).write_text('{"a": 1.5, "b": -1, "c": "x", "d": NaN}')
    assert forecast.read_rates(Home(tmp_path)) == {"a": 1.5}
    (tmp_path / forecast.RATES).write_text("{")
    assert forecast.read_rates(Home(tmp_path)) == {}


def test_names_of_limited_sets() -> None:
    assert whole_of(limited_name("ave", 20)) == ("ave", 20)
    assert whole_of("ave") == ("ave", 0) and whole_of("x-first0") == ("x-first0", 0)
