"""The command as a process: exit status, version, and text that cannot control the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from caeav.cli.app import same_home
from caeav.cli.console import print_table, printable


def caeav(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "caeav.cli", *arguments], capture_output=True, text=True, timeout=120, cwd=cwd
    )


def test_version_and_help(tmp_path: Path) -> None:
    assert caeav("--version", cwd=tmp_path).stdout.strip() == f"caeav {version('caeav')}"
    shown = caeav("--help", cwd=tmp_path)
    assert shown.returncode == 0
    listed = [line.split()[0] for line in shown.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    order = "synthesise manifest models extract caption import train compare eval predict report config runs store "
    order += "demo doctor"
    assert listed == order.split()


def test_wrong_usage_is_status_2_and_names_the_mistake(tmp_path: Path) -> None:
    result = caeav("extract", "--datset", "ave", cwd=tmp_path)
    assert result.returncode == 2
    assert "--datset" in result.stderr


@pytest.mark.parametrize(
    ("hint", "arguments", "added"),
    [
        ("caeav runs ls", ["eval", "--home", "h h"], "; with --home 'h h', as here"),
        ("caeav runs ls", ["--home=h", "eval"], "; with --home h, as here"),
        ("caeav runs ls", ["eval"], ""),
        ("caeav runs ls --home h", ["eval", "--home", "h"], ""),
        ("choose another name", ["eval", "--home", "h"], ""),
        ("caeav runs ls", ["eval", "--home", "mine"], ""),
        ("caeav models convert a b", ["extract", "--home", "h"], ""),
    ],
)
def test_the_next_command_is_for_the_same_home(
    hint: str, arguments: list[str], added: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAEAV_HOME", "mine")
    assert same_home(hint, arguments) == added


def test_a_hint_of_an_error_names_the_home(tmp_path: Path) -> None:
    result = caeav("runs", "show", "last", "--home", str(tmp_path / "h"), cwd=tmp_path)
    assert result.returncode == 1
    assert f"train one: caeav train --task ave; with --home {tmp_path / 'h'}, as here" in result.stderr


def test_a_missing_data_set_is_status_1_without_traceback(tmp_path: Path) -> None:
    result = caeav("extract", "--dataset", "ave", "--home", str(tmp_path / "home"), cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "Annotations.txt" in result.stderr
    assert "next:" in result.stderr
    assert not (tmp_path / "home").exists()


def test_a_file_in_place_of_the_home_is_an_error_without_traceback(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"")
    for taken in ("file", "file/below"):
        (tmp_path / "file").write_bytes(b"")
        result = caeav("manifest", "build", "--dataset", "clips", "--home", taken, cwd=tmp_path)
        assert result.returncode == 1
        assert "Traceback" not in result.stderr and "a file is in the way" in result.stderr


def test_json_is_valid_whatever_stdout_can_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "\u00fcn\u65e5.mp4").write_bytes(b"")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    result = caeav("manifest", "show", "--dataset", "clips", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)[0]["media"] == "\u00fcn\u65e5.mp4"


def test_printed_tables_have_no_trailing_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "clips", "note"], [["a", 3, ""], ["long name", 12, "x"]], title="what")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["what"],
        ["name", "clips", "note"],
        ["a", "3"],
        ["long", "name", "12", "x"],
    ]
    assert not any(line != line.rstrip() for line in lines)


def test_untrusted_text_cannot_control_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\x07") == "a\\x1b[2Jb\\x0ac\\x07"
