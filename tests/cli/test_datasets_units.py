"""A data set as a command gets it, what the home remembers being given: what is said, asked, read and remembered."""

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


class Seen:
    def __init__(self) -> None:
        self.resolved = ResolvedDataset("arg", "called", Source(None, None, 7, 0.5, None), Path("/root"))
        self.loads: list[tuple[Any, ...]] = []
        self.remembered: list[bool] = []
        self.said: list[str] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()

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


def changed(seen: Seen, *changes: str) -> None:
    seen.resolved = ResolvedDataset(
        "arg", "called", seen.resolved.source, Path("/root"), ("taken from x",), changes
    )


def test_it_is_read_as_it_is_remembered_and_called_as_it_was_typed(seen: Seen, tmp_path: Path) -> None:
    loaded = datasets.load("typed", Source(), Home(tmp_path), KEEPS)
    assert (loaded.manifest, loaded.called, loaded.source) == (MADE, "typed", seen.resolved.source)
    [(args, options)] = seen.loads
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


def test_a_manifest_that_was_built_is_read_as_it_is(seen: Seen, tmp_path: Path) -> None:
    seen.resolved = ResolvedDataset("arg", "called", seen.resolved.source, built=True)
    datasets.load("typed", Source(), Home(tmp_path), LOOKS)
    assert seen.loads[0][1].keys() == {"dataset", "lengths"}


@pytest.mark.parametrize(("does", "remembered"), [(LOOKS, []), (KEEPS, [False]), (IS_LAST, [True])])
def test_what_only_looks_is_not_remembered_and_only_extracting_makes_it_the_last(
    seen: Seen, tmp_path: Path, does: str, remembered: list[bool]
) -> None:
    datasets.load("typed", Source(), Home(tmp_path), does)
    assert seen.remembered == remembered and seen.said == []


def test_a_change_is_said_where_it_is_only_looked_at(seen: Seen, tmp_path: Path) -> None:
    changed(seen, "labels a instead of b", "stride 1 instead of 2")
    datasets.load("typed", Source(), Home(tmp_path), LOOKS)
    assert seen.said == [
        "taken from x",
        "note: labels a instead of b; stride 1 instead of 2; only this command looks at it so",
    ]


def test_a_change_is_refused_before_anything_is_read_unless_it_is_asked_for(
    seen: Seen, tmp_path: Path
) -> None:
    changed(seen, "a", "b")
    with pytest.raises(CaeavError, match=r"^a; b\n.*--relabel"):
        datasets.load("typed", Source(), Home(tmp_path), IS_LAST)
    assert seen.loads == [] and seen.remembered == []
    datasets.load("typed", Source(), Home(tmp_path), IS_LAST, relabel=True)
    assert seen.said[-1] == "a; b: taken, as --relabel says" and seen.remembered == [True]


@pytest.mark.parametrize("answer", [True, False])
def test_somebody_at_the_terminal_is_asked(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    changed(seen, "a")
    monkeypatch.setattr(datasets, "is_terminal", lambda: True)
    monkeypatch.setattr(datasets.typer, "confirm", lambda text, err: answer and err)
    if answer:
        datasets.load("typed", Source(), Home(tmp_path), KEEPS)
    else:
        with pytest.raises(CaeavError, match="--relabel"):
            datasets.load("typed", Source(), Home(tmp_path), KEEPS)
    assert seen.said[-1] == "a" and len(seen.loads) == int(answer)


def test_a_name_is_one_of_which_something_was_made(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    monkeypatch.setattr(
        datasets, "dataset_name", lambda home, dataset, same: "ave" if dataset in ("", "d/x y") else dataset
    )
    with pytest.raises(CaeavError, match=r"nothing was made of ave in .* yet") as raised:
        datasets.name("", home)
    assert raised.value.hint == f"caeav extract --dataset ave --home {tmp_path}"
    with pytest.raises(CaeavError, match="nothing was made of d/x y in") as raised:
        datasets.name("d/x y", home)
    assert "--dataset 'd/x y'" in raised.value.hint
    assert datasets.name("other", home) == "other" and seen.said == []
    (home.stores / "ave").mkdir(parents=True)
    assert datasets.name("d/x y", home) == "ave" and seen.said == []
    assert datasets.name("", home) == "ave"
    assert seen.said == [f"data set ave, the one last extracted in {tmp_path}"]


def test_the_options_say_where_the_media_lies_and_how_it_is_cut() -> None:
    assert source(Path("r"), None, 4, 0.5, 2.0) == Source(Path("r"), None, 4, 0.5, 2.0)
