"""Labels and source of a clip, split counts of a manifest, and the place of the home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from caeav.manifests.clip import Clip, Event, Manifest
from caeav.manifests.core.home import DEFAULT_HOME, Home


def clip(key: str = "a", split: str = "", **extra: object) -> Clip:
    events = (Event("dog", 0, 1), Event("cat", 1, 2), Event("dog", 3, 4))
    return Clip(key, f"{key}.mp4", 2.0, 10.0, split, events, extra)


@pytest.mark.parametrize(
    ("extra", "labels"),
    [
        ({}, ("dog", "cat")),
        ({"category": "bird"}, ("bird",)),
        ({"category": None}, ("dog", "cat")),
        ({"labels": ["x", "y", "x"], "category": "bird"}, ("x", "y")),
        ({"labels": []}, ()),
    ],
)
def test_labels_come_from_the_list_else_the_category_else_the_events(
    extra: dict[str, object], labels: tuple[str, ...]
) -> None:
    assert clip(**extra).labels() == labels


def test_the_source_of_a_clip_is_its_key_media_and_times() -> None:
    assert clip("a", "train", x=1).source() == clip("a", "test").source() == ("a", "a.mp4", 2.0, 10.0)


def test_split_counts_keep_the_order_and_leave_out_empty_splits() -> None:
    clips = [clip(str(n), split) for n, split in enumerate(("", "test", "train", "test", "train", "train"))]
    manifest = Manifest("mine", 10, 1.0, (), clips)
    assert list(manifest.split_counts().items()) == [("train", 3), ("test", 2), ("", 1)]
    assert list(manifest.keys) == ["0", "1", "2", "3", "4", "5"]


def test_the_home_is_the_given_folder_else_the_environments_else_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.delenv("CAEAV_HOME", raising=False)
    assert Home.find().root == Home.find("").root == tmp_path / DEFAULT_HOME
    monkeypatch.setenv("CAEAV_HOME", "~/there")
    assert Home.find().root == tmp_path / "me" / "there"
    assert Home.find("here").root == tmp_path / "here"
    assert Home.find("~").root == tmp_path / "me"
    assert not any(tmp_path.iterdir())


def test_everything_lies_below_the_home_folder(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.data("ave") == tmp_path / "data" / "ave"
    assert home.manifest("ave") == tmp_path / "data" / "ave" / "manifest.jsonl"
    assert home.remembered == tmp_path / "datasets.json"
    assert (home.stores, home.runs) == (tmp_path / "stores", tmp_path / "runs")
