"""Class folders as labels: what is read, and what is refused as ambiguous."""

from __future__ import annotations

from pathlib import Path

import pytest

from caeav.manifests.clip import Event, Manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.findings import warning_lines
from caeav.manifests.readers import CLASS_FOLDERS, ReadOptions, readers


def read(root: Path, *files: str, **options: object) -> Manifest:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return readers["folder"](root, ReadOptions("mine", labels=CLASS_FOLDERS, **options))  # type: ignore[arg-type]


def rows(manifest: Manifest) -> list[tuple[str, str, list[str]]]:
    return [(clip.media, clip.split, [event.label for event in clip.events]) for clip in manifest.clips]


def test_the_folder_is_the_class(tmp_path: Path) -> None:
    manifest = read(tmp_path, "dog/a.mp4", "cat/b.mp4", "cat/c.mp4")
    assert manifest.classes == ("cat", "dog")
    assert rows(manifest) == [
        ("cat/b.mp4", "", ["cat"]),
        ("cat/c.mp4", "", ["cat"]),
        ("dog/a.mp4", "", ["dog"]),
    ]
    assert manifest.clips[0].events == (Event("cat", 0.0, 10.0),)
    assert "2 class folders (cat, dog), no splits" in warning_lines(manifest)[0]


def test_a_few_classes_are_named_and_more_are_counted(tmp_path: Path) -> None:
    assert (
        "3 class folders (a, b, c), no"
        in warning_lines(read(tmp_path, *(f"{name}/x.mp4" for name in "abc")))[0]
    )
    assert "4 class folders (a, b, c and 1 more), no" in warning_lines(read(tmp_path, "d/x.mp4"))[0]


def test_the_folder_above_is_the_split(tmp_path: Path) -> None:
    manifest = read(tmp_path, "train/dog/a.mp4", "Validation/dog/b.mp4", "testing/cat/c.mp4")
    assert rows(manifest) == [
        ("Validation/dog/b.mp4", "val", ["dog"]),
        ("testing/cat/c.mp4", "test", ["cat"]),
        ("train/dog/a.mp4", "train", ["dog"]),
    ]
    assert "Validation/ as val, testing/ as test, train/ as train" in warning_lines(manifest)[0]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train", "train"), ("training", "train"), ("val", "val"), ("valid", "val"), ("validation", "val")),
        *(("test", "test"), ("testing", "test")),
    ],
)
def test_folders_may_name_their_split_in_several_ways(tmp_path: Path, name: str, split: str) -> None:
    assert rows(read(tmp_path, f"{name}/dog/a.mp4")) == [(f"{name}/dog/a.mp4", split, ["dog"])]


def test_a_class_may_be_called_like_a_split_beside_other_classes(tmp_path: Path) -> None:
    manifest = read(tmp_path, "train/a.mp4", "bus/b.mp4")
    assert manifest.classes == ("bus", "train") and {clip.split for clip in manifest.clips} == {""}


def test_composed_and_decomposed_letters_are_one_class(tmp_path: Path) -> None:
    apart, together = "cafe\u0301", "caf\u00e9"  # macOS writes the first
    manifest = read(tmp_path, f"train/{apart}/a.mp4", f"test/{together}/b.mp4")
    assert manifest.classes == (together,)


def test_background_is_no_class(tmp_path: Path) -> None:
    manifest = read(tmp_path, "train/dog/a.mp4", "train/Background/b.mp4")
    assert manifest.classes == ("dog",)
    assert rows(manifest)[0] == ("train/Background/b.mp4", "train", [])


def test_files_in_no_class_folder_have_no_label_and_no_split_and_are_reported(tmp_path: Path) -> None:
    manifest = read(tmp_path, "train/dog/a.mp4", "train/x.mp4", "y.mp4")
    assert rows(manifest)[1:] == [("train/x.mp4", "", []), ("y.mp4", "", [])]
    found = [(f.where, f.detail) for f in manifest.findings if f.code == "unlabelled_file"]
    assert found == [("train/x.mp4", "in no class folder"), ("y.mp4", "in no class folder")]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("a.mp4",), "its files lie in no folder"),
        (("train/a.mp4", "test/b.mp4"), "files lie in 'test', 'train', which are splits by their names"),
        (("train/dog/a.mp4", "cat/b.mp4"), "'train' is a split by its name, 'cat' beside it is none"),
        (("dog/day1/a.mp4", "cat/b.mp4"), "1 file too deep for <class>/<file>, such as dog/day1/a.mp4"),
        (("train/dog/day1/a.mp4",), "1 file too deep for <split>/<class>/<file>"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path: Path, files: tuple[str, ...], says: str) -> None:
    with pytest.raises(CaeavError) as raised:
        read(tmp_path, *files)
    assert says in str(raised.value) and "<split>/<class>/<file>" in str(raised.value)


def test_a_label_file_is_not_read_when_labels_come_from_folders(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\ndog/a.mp4,cat\n")
    assert rows(read(tmp_path, "dog/a.mp4")) == [("dog/a.mp4", "", ["dog"])]
    assert rows(readers["folder"](tmp_path, ReadOptions("mine"))) == [("dog/a.mp4", "", ["cat"])]


def test_a_stride_gives_all_windows_of_a_file_its_class_and_split(tmp_path: Path) -> None:
    manifest = read(tmp_path, "val/dog/a.mp4", stride_s=10.0, lengths=lambda paths: [25.0] * len(paths))
    assert [(clip.start_s, clip.split, clip.labels()) for clip in manifest.clips] == [
        (0.0, "val", ("dog",)),
        (10.0, "val", ("dog",)),
        (20.0, "val", ("dog",)),
    ]
