"""`benchmarks/gpu.py` in small on a CPU: every part runs, comparisons agree, and it prints and writes one table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

QUICK = "streams,autocast,ladder,inject,processes,extraction,captioning,modules"
"""Without `compile`, which starts a compiler, and `training`, which only times what `ladder` runs."""


def test_every_part_runs_in_small_and_agrees(repository: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/gpu.py",
            "--device",
            "cpu",
            "--only",
            QUICK,
            "--json",
            tmp_path / "rows.json",
        ],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    held = json.loads((tmp_path / "rows.json").read_text())
    assert "nothing is claimed" in held["device"] and "nothing is claimed" in done.stdout
    states: dict[str, list[str]] = {}
    for row in held["rows"]:
        states.setdefault(row["part"], []).append(row["state"])
        assert row.get("difference", 0) <= row.get("allowed", 1)
    assert list(states) == QUICK.split(",")
    for part in ("streams", "ladder", "processes"):
        assert set(states[part]) == {"ok"}, part
    assert "ok" in states["modules"] and "measured" in states["modules"]
    assert set(states["extraction"]) == {"measured"}
    assert len(done.stdout.splitlines()) == 4 + len(held["rows"])


def test_an_unknown_part_is_refused(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--only", "streams,nothing"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "unknown part nothing" in done.stderr
