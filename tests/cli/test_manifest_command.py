"""`caeav manifest build|show|check`, from arguments to what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import checked, invoke

from caeav.cli import manifest
from caeav.manifests.core.errors import CaeavError
from caeav.manifests.manifest import manifest_digest, read_manifest
from caeav.manifests.synthetic import SyntheticOptions, synthesise

ROWS = "Church bell&-a&good&0&10\nBark&b&good&2&4\nBark&-a&good&0&0\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "ave"
    (folder / "AVE").mkdir(parents=True)
    (folder / "AVE" / "-a.mp4").touch()
    lines = ROWS.splitlines()
    for name, content in zip(("Annotations", "trainSet", "valSet", "testSet"), (ROWS, *lines), strict=True):
        (folder / f"{name}.txt").write_text(content)
    return folder


def call(*arguments: object) -> tuple[str, str]:
    """Standard output and standard error of `caeav manifest ...`."""
    result = checked(invoke([manifest], "manifest", *arguments))
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def call_json(*arguments: object) -> Any:
    return json.loads(call(*arguments, "--json")[0])


def test_build_writes_the_manifest_and_prints_counts(root: Path, tmp_path: Path) -> None:
    out, err = call("build", "--dataset", "ave", "--root", root, "--home", tmp_path / "home")
    path = tmp_path / "home" / "data" / "ave" / "manifest.jsonl"
    assert f"wrote {path}" in err
    assert read_manifest(path).split_counts() == {"train": 1, "val": 1, "test": 1}
    assert "ave: 3 clips, 1 of them without media, 28 classes" in out
    for code in ("missing_media", "id_in_two_splits", "zero_length_event"):
        assert code in out


def test_build_as_json_gives_path_and_digests(root: Path, tmp_path: Path) -> None:
    result = call_json("build", "--dataset", "ave", "--root", root, "--home", tmp_path / "home")
    assert result["digest"] == manifest_digest(read_manifest(Path(result["path"])))
    assert len(result["source_digest"]) == 64
    assert result["missing"] == ["b__bark"]


def test_after_build_the_name_is_enough(root: Path, tmp_path: Path) -> None:
    call("build", "--dataset", "ave", "--root", root, "--home", tmp_path / "home")
    assert len(call_json("show", "--dataset", "ave", "--home", tmp_path / "home")) == 3


def test_show_filters_by_split_key_and_limit(root: Path) -> None:
    base = ("show", "--dataset", "ave", "--root", root)
    assert [row["key"] for row in call_json(*base, "--split", "val")] == ["b__bark"]
    assert [row["key"] for row in call_json(*base, "--key", "bark")] == ["b__bark", "-a__bark"]
    assert [row["key"] for row in call_json(*base, "--limit", 1)] == ["-a__church_bell"]
    out, err = call(*base, "--limit", 2)
    assert "Church bell 0-10" in out and "AVE/b.mp4" in out and "-a__bark" not in out
    assert "2 of 3 clips; more with --limit" in err


def test_show_prints_one_clip_in_full_also_when_its_key_looks_like_an_option(root: Path) -> None:
    base = ("show", "--dataset", "ave", "--root", root, "--key", "-a__church_bell")
    row = call_json(*base)
    assert row["events"] == [{"label": "Church bell", "start_s": 0.0, "end_s": 10.0}]
    assert row["path"] == str(root / "AVE" / "-a.mp4")
    assert row["media_there"] is True
    out, _ = call(*base)
    assert "Church bell 0-10" in out and "extra.quality" in out


def test_show_prints_a_clip_with_an_impossible_media_path(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    labels = tmp_path / "l.csv"
    labels.write_text(f"file,label\na.mp4,dog\n{'x' * 300}.mp4,dog\n")
    base = ("show", "--dataset", tmp_path / "clips", "--labels", labels, "--home", tmp_path / "home")
    _, row = call_json(*base)
    assert call_json(*base, "--key", row["key"])["media_there"] is False


def test_show_of_nothing_is_an_error_naming_what_there_is(root: Path) -> None:
    with pytest.raises(CaeavError, match="no clip of ave has 'zzz' in its key") as raised:
        call("show", "--dataset", "ave", "--root", root, "--key", "zzz")
    assert "-a__church_bell" in raised.value.hint


def test_check_prints_classes_and_findings_and_succeeds(root: Path) -> None:
    out, _ = call("check", "--dataset", "ave", "--root", root)
    bark = next(line for line in out.splitlines() if line.startswith("Bark"))
    assert bark.split() == ["Bark", "0", "1", "1", "2"]
    assert "missing_media" in out
    assert call_json("check", "--dataset", "ave", "--root", root)["missing"] == ["b__bark"]


def test_a_folder_of_media_with_labels(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.mp4").touch()
    labels = tmp_path / "l.csv"
    labels.write_text("file,start_s,end_s,label,split\na.mp4,0,2,\x1b[31mdog,train\n")
    out, _ = call("check", "--dataset", folder, "--labels", labels, "--home", tmp_path / "home")
    assert "clips: 1 clip, 1 class" in out
    assert "\x1b" not in out


def test_a_folder_gets_the_given_segments(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    given = ("--dataset", tmp_path / "clips", "--home", tmp_path / "home")
    cut = ("--segments", 4, "--segment-seconds", 0.5)
    assert [row["seconds"] for row in call_json("show", *given, *cut)] == [2.0]
    built = read_manifest(Path(call_json("build", *given, *cut)["path"]))
    assert (built.segments, built.segment_s) == (4, 0.5)
    assert "1 clip" in call("check", *given, *cut)[0]


def test_a_second_folder_with_the_same_name_gets_its_own(tmp_path: Path) -> None:
    for where in ("x", "y"):
        (tmp_path / where / "clips").mkdir(parents=True)
        (tmp_path / where / "clips" / f"{where}.mp4").touch()
    build = ("build", "--home", tmp_path / "home", "--dataset")
    first = [call_json(*build, tmp_path / "x" / "clips")["path"] for _ in range(2)]
    _, err = call(*build, tmp_path / "y" / "clips")
    assert f"clips is {tmp_path / 'x' / 'clips'}" in err and "is called clips-" in err
    second = [call_json(*build, tmp_path / "y" / "clips")["path"] for _ in range(2)]
    assert first[0] == first[1] != second[0] == second[1]
    assert [clip.key for clip in read_manifest(Path(first[0])).clips] == ["x"]
    name = Path(second[0]).parent.name
    assert call_json("show", "--dataset", name, "--home", tmp_path / "home")[0]["key"] == "y"


def test_real_annotations_and_media_are_built(shared: Path, tmp_path: Path) -> None:
    out, _ = call("build", "--dataset", "ave", "--root", shared / "data/annotations/ave", "--home", tmp_path)
    assert "ave: 4143 clips, 4143 of them without media, 28 classes" in out
    for row in (["train", "3339", "33390"], ["val", "402", "4020"], ["test", "402", "4020"]):
        assert any(line.split()[:3] == row for line in out.splitlines())
    out, _ = call("build", "--dataset", shared / "data/media", "--home", tmp_path)
    assert "media: 20 clips, 0 classes" in out


def test_check_prints_the_labels_of_every_layout(tmp_path: Path) -> None:
    expected = {
        "llp": ("labels of the clip alone", "seconds with any"),
        "avs-ms3": ("M_J of a constant mask", "pixels that sound"),
        "music-avqa": ("test: questions", "Audio-Visual Temporal"),
    }
    for name, words in expected.items():
        options = SyntheticOptions.for_layout(name, clips=10, size_px=64, fps=4, seconds=4)
        synthesise(tmp_path / "data" / f"synthetic-{name}", options, workers=1)
        out, _ = call("check", "--dataset", f"synthetic-{name}", "--home", tmp_path)
        assert all(word in out for word in words)
    shown, _ = call("show", "--dataset", "synthetic-music-avqa", "--home", tmp_path, "--key", "00000001")
    assert "question" in shown and "Visual" in shown
    shown, _ = call("show", "--dataset", "synthetic-avs-ms3", "--home", tmp_path, "--limit", "2")
    assert "5 masks" not in shown and "4 masks" in shown
    checked = call_json("check", "--dataset", "synthetic-avs-ms3", "--home", tmp_path)
    assert checked["masks"]["test"]["masks"] == checked["masks"]["test"]["frames"]
