"""`caeav compare` as a command: its processes, what it prints and writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_home import write_tiny_home

from caeav.cli.app import run
from caeav.manifests.core.home import Home

SMALL = ["--task", "ave", "--dataset", "tiny", "--recipes", "probe,none", "--seeds", "0"]
DEADLINE_S = 1200
SETTINGS = ["training.epochs=2", "model.head.width=16", "model.head.hidden=16"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The tiny stores that the tests of `model` train on."""
    return write_tiny_home(tmp_path_factory.mktemp("compare") / "home")


def command(home: Home, *more: str) -> list[str]:
    words = [sys.executable, "-m", "caeav.cli", "compare", "--home", str(home.root), *SMALL]
    for setting in SETTINGS:
        words += ["--set", setting]
    return [*words, "--device", "cpu", *more]


def workers(home: Home) -> list[int]:
    """The processes that train cells for this home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if "caeav.cli.compare_cell" in words and str(home.root) in words:
            found.append(int(folder.name))
    return found


def wait_for(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes by /proc")
def test_a_killed_comparison_ends_its_processes_and_is_resumed(home: Home) -> None:
    asked = command(home, "--jobs", "2", "--stress", "swap=0.5,caption_drop=1")
    first = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(workers(home)) == 2, "two processes at once")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    wait_for(lambda: not workers(home), "processes outlive their command")

    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert "2 recipes with 1 seed; 2 of 2 runs begun or done before" in done.stderr
    assert re.search(r"2/2  (probe|none), seed 0: test accuracy \d", done.stderr)
    folder = home.root / "comparisons" / "ave-tiny"
    assert f"written: {folder / 'table.md'}" in done.stderr
    page = folder / "report.html"
    assert f"the report, to open in a browser: {page}" in done.stderr or "no report: " in done.stderr
    assert page.exists() == ("no report: " not in done.stderr)
    table = json.loads((folder / "table.json").read_text())
    assert [row["recipe"] for row in table["rows"]] == ["probe", "none"]
    assert all(
        row["peak_mb"] and row["epoch_s"] and list(row["stress"]) == ["swap 0.5"] for row in table["rows"]
    )
    text = (folder / "table.md").read_text()
    shown = "caeav compare --task ave --dataset tiny --recipes probe,none --seeds 0"
    assert (
        text.startswith(f"    {shown} --set training.epochs=2") and "--stress swap=0.5,caption_drop=1" in text
    )
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [float(row["score"]) for row in rows] == [row["score"] for row in table["rows"]]
    assert f"{table['rows'][0]['score']:.2f}" in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--recipes", "probe,avmoe"], "--baseline 'none' is not among --recipes probe,avmoe"),
        (["--recipes", "none,none"], "--recipes 'none,none'"),
        (["--recipes", "none,nonsense"], "recipe: 'nonsense' is not known"),
        (["--seeds", "0,0"], "--seeds '0,0'"),
        (["--stress", "swapp=1"], "'swapp' is no stress"),
        (["--stress", "shift=6"], "shift=6: a clip has 6 segments"),
    ],
)
def test_invalid_comparisons_are_refused_before_anything_is_made(
    given: list[str],
    said: str,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(home.runs.iterdir()) if home.runs.exists() else []
    monkeypatch.setattr(sys, "argv", [*command(home)[2:], *given])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 1 and said in capsys.readouterr().err
    assert (sorted(home.runs.iterdir()) if home.runs.exists() else []) == before
