"""Own media on the command line: doubts are reported where data is used, and a stride is suggested for long files."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest
from commands import checked
from typer.testing import CliRunner, Result

from caeav.cli.app import build
from caeav.manifests.core.errors import CaeavError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "clips"
    (root / "dog").mkdir(parents=True)
    with wave.open(str(root / "dog" / "a.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(b"\0\1\0\2" * 48_000)  # 12 s
    return root


def call(*arguments: object) -> Result:
    result = checked(CliRunner().invoke(build(), list(map(str, arguments))))
    assert result.exit_code == 0, result.output
    return result


def extract(folder: Path, home: str, *more: object) -> Result:
    place = folder.parent / home
    options = ("--segments", 2, "--workers", 1, "--home", place)
    return call("extract", "--dataset", folder, *options, *more)


def test_an_extraction_reports_resolved_names_and_long_files(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label,split\ndog\\a,dog,train\n")
    result = extract(folder, "home")
    assert "remark: names that are not the files' paths" in result.stderr
    assert "dog\\a -> dog/a.wav" in result.stderr
    assert "1 clip of files longer than their clip (longer_media)" in result.stderr
    assert "--stride-seconds 2" in result.stderr


def test_with_a_stride_all_of_a_file_is_stored_and_nothing_is_reported(folder: Path) -> None:
    result = extract(folder, "home", "--stride-seconds", 4, "--labels", "folders", "--json")
    assert json.loads(result.stdout)["stored"] == 3
    assert "longer_media" not in result.stderr
    shown = call("manifest", "show", "--dataset", folder, "--home", folder.parent / "home", "--json")
    rows = json.loads(shown.stdout)
    assert [row["key"] for row in rows] == ["dog__a", "dog__a__4000ms", "dog__a__8000ms"]
    assert all(row["events"][0]["label"] == "dog" for row in rows)


def test_no_stride_is_suggested_where_one_is_remembered(folder: Path) -> None:
    extract(folder, "home", "--stride-seconds", 4)
    assert "add --stride-seconds" not in extract(folder, "home", "--audio", "none").stderr


@pytest.mark.parametrize(
    "text",
    [
        "file,clip_start_s,label\ndog/a.wav,3,dog\n",
        "file,start_s,end_s,label\ndog/a.wav,3,4,dog\n",
        "{id},0,dog,train\n",
    ],
)
def test_no_stride_is_suggested_where_labels_name_the_clips(folder: Path, text: str) -> None:
    (folder / "dog" / "a.wav").rename(folder / "dog" / "AAAAAAAAAAA_000000.wav")
    (folder / "labels.csv").write_text(
        text.replace("a.wav", "AAAAAAAAAAA_000000.wav").format(id="AAAAAAAAAAA")
    )
    said = extract(folder, "home", *(("--segments", 10) if "{id}" in text else ()))
    assert "longer_media" in said.stdout and "--stride-seconds" not in said.stderr


def test_remembered_options_can_be_withdrawn(folder: Path) -> None:
    (folder.parent / "l.csv").write_text("file,label\ndog/a.wav,dog\n")
    extract(folder, "home", "--stride-seconds", 4, "--labels", folder.parent / "l.csv")
    back = ("--labels", "none", "--stride-seconds", 0)
    with pytest.raises(CaeavError, match=r"l\.csv, now it is none; .* --stride-seconds 4, now it is 0"):
        extract(folder, "home", *back)
    extract(folder, "home", *back, "--relabel")
    shown = call("manifest", "show", "--dataset", "clips", "--home", folder.parent / "home", "--json")
    assert [(row["key"], row["events"]) for row in json.loads(shown.stdout)] == [("dog__a", [])]
    assert "data set clips: --segments 2, as remembered" in shown.stderr


def test_labels_past_the_end_of_the_media_are_refused_before_anything_is_extracted(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,start_s,end_s,label\ndog/a.wav,2000,5000,dog\n")
    with pytest.raises(CaeavError, match="as milliseconds: 2 to 5 s"):
        extract(folder, "home")
    assert not (folder.parent / "home" / "stores").exists()
