"""A machine without optional things can be had on one that has them: what is taken away is as if never installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import importlib.util, importlib.metadata
try:
    import torchcodec
except RuntimeError as error:
    print(str(error).splitlines()[0])
for name in ("torchcodec", "timm"):
    try:
        print(name, importlib.util.find_spec(name) is None, bool(importlib.metadata.version(name)))
    except importlib.metadata.PackageNotFoundError:
        print(name, importlib.util.find_spec(name) is None, "no version")
"""


def test_a_child_process_lacks_what_was_taken_away(repository: Path) -> None:
    """torchcodec is installed and does not load; timm is not there at all, to `import` and to pip."""
    away = {"PYTHONPATH": str(repository / "tests" / "absent"), "CAEAV_TEST_WITHOUT": "torchcodec, timm"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env={**os.environ, **away}, capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert said[0] == "Could not load libtorchcodec. Likely causes:"
    assert said[1] in ("torchcodec False True", "torchcodec False no version")  # where it is not installed
    assert said[2] == "timm True no version"


def run_of_pytest(repository: Path, folder: Path, test: str, without: str, *options: str) -> str:
    """What pytest prints for one test module under this checkout's conftest."""
    shutil.copytree(repository / "tests" / "absent", folder / "tests" / "absent")
    shutil.copy(repository / "tests" / "conftest.py", folder / "tests")
    (folder / "tests" / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "tests"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "CAEAV_TEST_WITHOUT": without},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


def test_reasons_for_skipping_are_counted_and_commands_are_gone(repository: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("ffmpeg", "another"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    test = """
import shutil, subprocess, pytest
@pytest.mark.parametrize("n", range(3))
def test_a(needs, n): needs("ffmpeg")
def test_b(): assert shutil.which("another") and subprocess.run(["another"]).returncode == 0
def test_c(shared): pass
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        said = run_of_pytest(repository, tmp_path, test, "ffmpeg,shared", f"--skipped-to={tmp_path / 'list'}")
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "3 no ffmpeg command here" in lines
    assert [line for line in lines if line.startswith("1 no shared data at ")]
    assert lines[-1].startswith("1 passed, 4 skipped")
    listed = [line.split("\t") for line in (tmp_path / "list").read_text().splitlines()]
    assert ["no ffmpeg command here", "tests/test_it.py::test_a[1]"] in listed and len(listed) == 4


def test_an_unknown_name_to_take_away_is_refused(repository: Path, tmp_path: Path) -> None:
    said = run_of_pytest(repository, tmp_path, "def test_a(): pass\n", "ffmgep")
    assert "CAEAV_TEST_WITHOUT: ffmgep; known: " in said and "passed" not in said
