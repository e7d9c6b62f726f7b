"""From a data set's name to its manifest: the reader, the folder, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from caeav.manifests.core.errors import CaeavError
from caeav.manifests.core.home import Home
from caeav.manifests.dataset import folder_dataset, load_dataset
from caeav.manifests.manifest import write_manifest

ROW = "Bark&v1&good&0&5\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def official(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in (("Annotations", ROW), ("trainSet", ROW), ("valSet", ""), ("testSet", "")):
        (root / f"{name}.txt").write_text(content)
    return root


def media(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "a.mp4").touch()
    return root


@pytest.mark.parametrize("name", ["ave", "synthetic"])
def test_official_sets_are_read_from_the_home_or_from_root(home: Home, tmp_path: Path, name: str) -> None:
    at_root = load_dataset(name, official(tmp_path / "elsewhere"), home)
    official(home.data(name))
    at_home = load_dataset(name, None, home)
    assert at_root.dataset == at_home.dataset == name
    assert at_root.clips == at_home.clips
    assert at_root.media_root == str(tmp_path / "elsewhere")
    assert at_home.media_root == str(home.data(name))


def test_a_built_manifest_is_used_where_the_home_has_no_official_files(home: Home, tmp_path: Path) -> None:
    built = load_dataset("ave", official(tmp_path / "elsewhere"), home)
    write_manifest(built, home.manifest("ave"))
    assert load_dataset("ave", None, home) == built
    official(home.data("ave"))
    assert load_dataset("ave", None, home).media_root == str(home.data("ave"))


@pytest.mark.parametrize("name", ["json_update/avqa-train.json", "data/avqa-val.json", "avqa-test.json"])
def test_official_question_files_in_any_known_folder_precede_a_built_manifest(
    home: Home, tmp_path: Path, name: str
) -> None:
    def questions(root: Path, video: str) -> Path:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        item = {"video_id": video, "question_id": 1, "type": '["Audio", "Counting"]', "anser": "yes"}
        (root / name).write_text(json.dumps([{**item, "question_content": "Is it?", "templ_values": "[]"}]))
        return root

    built = load_dataset("music-avqa", questions(tmp_path / "elsewhere", "before"), home)
    write_manifest(built, home.manifest("music-avqa"))
    questions(home.data("music-avqa"), "now")
    assert [clip.key for clip in load_dataset("music-avqa", None, home).clips] == ["now"]


def test_a_folder_names_its_data_set_and_finds_its_built_manifest(home: Home, tmp_path: Path) -> None:
    manifest = load_dataset(str(media(tmp_path / "my clips")), None, home)
    assert manifest.dataset == "my_clips"
    write_manifest(manifest, home.manifest("my_clips"))
    assert load_dataset("my_clips", None, home) == manifest
    with pytest.raises(CaeavError, match="manifest built before"):
        load_dataset("my_clips", None, home, labels=tmp_path / "x.csv")


def test_a_folder_named_like_an_official_set_gets_another_name(home: Home, tmp_path: Path) -> None:
    assert load_dataset(f"{media(tmp_path / 'ave')}", None, home).dataset == "ave-folder"


def test_the_current_folder_has_its_real_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(media(tmp_path / "clips"))
    assert folder_dataset(Path()) == "clips"


def test_labels_and_segments_reach_the_folder_reader(home: Home, tmp_path: Path) -> None:
    folder = media(tmp_path / "m")
    labels = tmp_path / "any.csv"
    labels.write_text("file,label\na.mp4,dog\n")
    manifest = load_dataset(str(folder), None, home, labels=labels, segments=5, segment_s=2.0)
    assert manifest.classes == ("dog",)
    assert manifest.clips[0].seconds == 10
    assert manifest.segments == 5


def test_the_home_folder_within_the_media_is_left_out(tmp_path: Path) -> None:
    folder = media(tmp_path / "m")
    media(folder / "caeav_home" / "data" / "synthetic")
    assert len(load_dataset(str(folder), None, Home(folder / "caeav_home")).clips) == 1


@pytest.mark.parametrize("name", ["avee", "no/such/folder", ""])
def test_an_unknown_name_is_refused_with_what_is_possible(home: Home, name: str) -> None:
    with pytest.raises(CaeavError, match=f"no data set '{name}'") as raised:
        load_dataset(name, None, home)
    assert str(home.data("ave")) in str(raised.value)
    assert "synthetic" in str(raised.value)


def test_missing_official_files_are_named_with_their_place(home: Home) -> None:
    with pytest.raises(
        CaeavError, match=r"Annotations\.txt, trainSet\.txt, valSet\.txt, testSet\.txt"
    ) as raised:
        load_dataset("ave", None, home)
    assert str(home.data("ave")) in str(raised.value)
    assert "--root" in raised.value.hint and "authors" in raised.value.hint


def test_root_is_for_official_sets_only(home: Home, tmp_path: Path) -> None:
    with pytest.raises(CaeavError, match=r"goes with ave, llp, .* only"):
        load_dataset(str(media(tmp_path / "m")), tmp_path, home)


def test_a_given_root_precedes_a_built_manifest(home: Home, tmp_path: Path) -> None:
    write_manifest(load_dataset("ave", official(tmp_path / "before"), home), home.manifest("ave"))
    now = official(tmp_path / "now")
    assert load_dataset("ave", now, home).media_root == str(now)
    with pytest.raises(CaeavError, match="labels and segments were given for 'ave'"):
        load_dataset("ave", None, home, segments=3)


def test_a_folder_may_get_another_name_and_its_lengths_come_from_the_caller(
    home: Home, tmp_path: Path
) -> None:
    folder = media(tmp_path / "m")
    asked: list[Path] = []

    def lengths(paths: Sequence[Path]) -> list[float | None]:
        asked.extend(paths)
        return [7.0] * len(paths)

    found = load_dataset(
        *(str(folder), None, home), dataset="mine", lengths=lengths, segments=2, segment_s=1.5, stride_s=2.0
    )
    assert found.dataset == "mine" and asked == [folder / "a.mp4"]
    assert [(clip.start_s, clip.seconds) for clip in found.clips] == [(0.0, 3.0), (2.0, 3.0), (4.0, 3.0)]
