"""Own media from the command line: doubts are told where data is used, and long files are pointed to the stride."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from caeav.cli.app import build
from caeav.manifests.errors import CaeavError


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
    result = CliRunner().invoke(build(), list(map(str, arguments)))
    if isinstance(result.exception, CaeavError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def extract(folder: Path, home: str, *more: object) -> Result:
    place = folder.parent / home
    options = ("--segments", 2, "--workers", 1, "--home", place)
    return call("extract", "--dataset", folder, *options, *more)


def test_an_extraction_tells_what_names_were_taken_for_and_of_long_files(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label,split\ndog\\a,dog,train\n")
    result = extract(folder, "home")
    assert "remark: names that are not written as the files' paths" in result.stderr
    assert "dog\\a -> dog/a.wav" in result.stderr
    assert "1 clip of files that go on longer (longer_media)" in result.stderr
    assert "--stride-seconds 2" in result.stderr


def test_with_a_stride_all_of_a_file_is_stored_and_nothing_is_pointed_out(folder: Path) -> None:
    result = extract(folder, "home", "--stride-seconds", 4, "--labels", "folders", "--json")
    assert json.loads(result.stdout)["stored"] == 3
    assert "longer_media" not in result.stderr
    shown = call("manifest", "show", "--dataset", folder, "--home", folder.parent / "home", "--json")
    rows = json.loads(shown.stdout)
    assert [row["key"] for row in rows] == ["dog__a", "dog__a__4000ms", "dog__a__8000ms"]
    assert all(row["events"][0]["label"] == "dog" for row in rows)


def test_labels_past_the_end_of_the_media_are_refused_before_anything_is_extracted(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,start_s,end_s,label\ndog/a.wav,2000,5000,dog\n")
    with pytest.raises(CaeavError, match="as milliseconds: 2 to 5 s"):
        extract(folder, "home")
    assert not (folder.parent / "home" / "stores").exists()
