"""An extraction that is repeatedly killed at random moments ends with the bytes of an undisturbed one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

KILLS = 8


def start(dataset: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "caeav.cli", "extract", "--dataset", "synthetic", "--root", str(dataset)]
    command += ["--home", str(home), "--workers", "2", "--shard-clips", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def indexes(home: Path) -> int:
    """The number of published shards, without the one being written (`.part-000001.idx`)."""
    return len(list(home.glob("stores/*/*/index/[0-9]*.idx")))


@pytest.fixture(scope="module")
def undisturbed(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    process = start(small_set, home)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()
    assert b"stored       24 of 24" in out
    return home


def test_kills_at_random_moments_do_not_change_the_store(
    small_set: Path, undisturbed: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    rng = random.Random(0)
    children: set[psutil.Process] = set()
    for _ in range(KILLS):
        process = start(small_set, tmp_path)
        root = psutil.Process(process.pid)
        before = indexes(tmp_path)
        if rng.random() < 0.75:  # most kills fall into the work, the others into start-up
            wait_until(lambda: bool(root.children()) or process.poll() is not None)  # noqa: B023
            new = rng.choice((0, 0, 0, 1, 1, 2))
            wait_until(lambda: indexes(tmp_path) >= before + new or process.poll() is not None)  # noqa: B023
            time.sleep(rng.random() * 0.03)
        else:
            time.sleep(rng.random() * 0.4)
        assert process.poll() is None, process.communicate()[1].decode()
        children.update(root.children(recursive=True))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert indexes(tmp_path) < 24, "every kill must have hit an unfinished run"
    assert children
    _, orphans = psutil.wait_procs(children, timeout=10)
    assert not orphans

    process = start(small_set, tmp_path)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error.decode()
    assert b"stored       24 of 24" in out
    killed, calm = (
        {
            name: digest
            for name, digest in digests(home).items()
            if "/media.tokens-" not in name and name != "rates.json"
        }
        for home in (tmp_path, undisturbed)
    )  # without the media record, whose digests of whole files are lost in a kill
    assert killed == calm


def test_ctrl_c_keeps_finished_shards_and_says_how_to_continue(small_set: Path, tmp_path: Path) -> None:
    process = start(small_set, tmp_path)
    root = psutil.Process(process.pid)
    wait_until(lambda: indexes(tmp_path) >= 2)
    children = root.children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "run the same command again" in error.decode()
    assert "Traceback" not in error.decode()
    assert 2 <= indexes(tmp_path) < 24
    assert not psutil.wait_procs(children, timeout=10)[1]
