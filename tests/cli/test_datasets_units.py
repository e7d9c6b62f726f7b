"""A data set as a command loads it, the home's memory being given: what is reported, asked, read, remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caeav.cli import datasets
from caeav.cli.datasets import IS_LAST, KEEPS, LOOKS, source
from caeav.manifests.clip import Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import Source
from caeav.manifests.remembered import ResolvedDataset

MADE = Manifest("mine", 10, 1.0, (), ())


class Calls:
    def __init__(self) -> None:
        self.resolved = ResolvedDataset("arg", "called", Source(None, None, 7, 0.5, None), Path("/root"))
        self.loads: list[tuple[Any, ...]] = []
        self.remembered: list[bool] = []
        self.said: list[str] = []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()

    def load_dataset(*args: Any, **options: Any) -> Manifest:
        found.loads.append((args, options))
        return MADE

    monkeypatch.setattr(datasets, "resolve_dataset", lambda home, dataset, given, same: found.resolved)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(
        datasets, "remember", lambda home, resolved, last, last_name: found.remembered.append(last)
    )
    monkeypatch.setattr(datasets, "say", found.said.append)
    monkeypatch.setattr(datasets, "is_terminal", lambda: False)
    monkeypatch.setattr("caeav.pipeline.media.lengths.lengths_in", lambda home: f"lengths in {home.root}")
    return found


def changed(calls: Calls, *changes: str) -> None:
    calls.resolved = ResolvedDataset(
        "arg", "called", calls.resolved.source, Path("/root"), ("taken from x",), changes
    )


def test_a_data_set_is_read_as_remembered_and_named_as_typed(calls: Calls, tmp_path: Path) -> None:
    loaded = datasets.load("typed", Source(), Home(tmp_path), KEEPS)
    assert (loaded.manifest, loaded.called, loaded.source) == (MADE, "typed", calls.resolved.source)
    [(args, options)] = calls.loads
    assert args == ("arg", Path("/root"), Home(tmp_path))
    assert options == {
        "dataset": "called",
        "lengths": f"lengths in {tmp_path}",
        "labels": None,
        "segments": 7,
        "segment_s": 0.5,
        "stride_s": None,
    }
    assert datasets.load("", Source(), Home(tmp_path), KEEPS).called == "called"


def test_a_built_manifest_is_read_unchanged(calls: Calls, tmp_path: Path) -> None:
    calls.resolved = ResolvedDataset("arg", "called", calls.resolved.source, built=True)
    datasets.load("typed", Source(), Home(tmp_path), LOOKS)
    assert calls.loads[0][1].keys() == {"dataset", "lengths"}


@pytest.mark.parametrize(("does", "remembered"), [(LOOKS, []), (KEEPS, [False]), (IS_LAST, [True])])
def test_looking_is_not_remembered_and_only_extracting_makes_it_the_last(
    calls: Calls, tmp_path: Path, does: str, remembered: list[bool]
) -> None:
    datasets.load("typed", Source(), Home(tmp_path), does)
    assert calls.remembered == remembered and calls.said == []


def test_a_command_that_only_looks_reports_a_change(calls: Calls, tmp_path: Path) -> None:
    changed(calls, "labels a instead of b", "stride 1 instead of 2")
    datasets.load("typed", Source(), Home(tmp_path), LOOKS)
    assert calls.said == [
        "taken from x",
        "note: labels a instead of b; stride 1 instead of 2; only this command uses it",
    ]


def test_a_change_is_refused_before_anything_is_read_unless_relabel_is_given(
    calls: Calls, tmp_path: Path
) -> None:
    changed(calls, "a", "b")
    with pytest.raises(CaeavError, match=r"^a; b\n.*--relabel"):
        datasets.load("typed", Source(), Home(tmp_path), IS_LAST)
    assert calls.loads == [] and calls.remembered == []
    datasets.load("typed", Source(), Home(tmp_path), IS_LAST, relabel=True)
    assert calls.said[-1] == "a; b: used from now on, as --relabel says" and calls.remembered == [True]


@pytest.mark.parametrize("answer", [True, False])
def test_a_change_is_confirmed_at_a_terminal(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    changed(calls, "a")
    monkeypatch.setattr(datasets, "is_terminal", lambda: True)
    monkeypatch.setattr(datasets.typer, "confirm", lambda text, err: answer and err)
    if answer:
        datasets.load("typed", Source(), Home(tmp_path), KEEPS)
    else:
        with pytest.raises(CaeavError, match="--relabel"):
            datasets.load("typed", Source(), Home(tmp_path), KEEPS)
    assert calls.said[-1] == "a" and len(calls.loads) == int(answer)


def test_a_name_needs_a_store_of_that_data_set(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    monkeypatch.setattr(
        datasets, "dataset_name", lambda home, dataset, same: "ave" if dataset in ("", "d/x y") else dataset
    )
    with pytest.raises(CaeavError, match=r"there is no store of ave in .* yet") as raised:
        datasets.name("", home)
    assert raised.value.hint == f"caeav extract --dataset ave --home {tmp_path}"
    with pytest.raises(CaeavError, match="there is no store of d/x y in") as raised:
        datasets.name("d/x y", home)
    assert "--dataset 'd/x y'" in raised.value.hint
    assert datasets.name("other", home) == "other" and calls.said == []
    (home.stores / "ave").mkdir(parents=True)
    assert datasets.name("d/x y", home) == "ave" and calls.said == []
    assert datasets.name("", home) == "ave"
    assert calls.said == [f"data set ave, the one last extracted in {tmp_path}"]


def test_options_become_a_source() -> None:
    assert source(Path("r"), None, 4, 0.5, 2.0) == Source(Path("r"), None, 4, 0.5, 2.0)
