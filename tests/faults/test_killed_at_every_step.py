"""SIGKILL at every write, sync, rename, removal and folder creation of an extraction: nothing is lost or wrong.

There are hundreds of writes into each temp file, so only some steps are tried unless `CAEAV_EVERY_STEP` is set.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from failing_steps import failpoint

pytestmark = pytest.mark.usefixtures("inline")
EVERY_STEP = bool(os.environ.get("CAEAV_EVERY_STEP"))
CHANGES = ("sync_file", "sync_folder", "rename", "remove", "make_folder")
ALL = ("write_bytes", *CHANGES)


@pytest.mark.parametrize(
    ("backend", "grow", "steps", "stride"),
    [
        ("webdataset", False, ALL, 7),
        ("webdataset", True, CHANGES, 3),
        ("webdataset", True, ALL, 37),
        ("zarr", False, CHANGES, 7),
        ("zarr", False, ALL, 61),
        ("zarr", True, CHANGES, 11),
        ("zarr", True, ALL, 71),
    ],
)
def test_killed_at_any_step_the_next_run_continues(
    backend: str,
    grow: bool,
    steps: tuple[str, ...],
    stride: int,
    small: Any,
    tmp_path: Path,
    contents: Callable[[Path], dict[str, str]],
    forked: Callable[[Callable[[], object]], int],
    die: Callable[..., None],
    assert_sound: Callable[[Path], int],
    fresh_home: Callable[[Path | None], Path],
) -> None:
    begin = None
    if grow:
        begin = tmp_path / "begin"
        small.extract(begin, backend)
        small = small.grown(tmp_path / "media")
    home = fresh_home(begin)
    small.extract(home, backend, retry_failed=grow)
    wanted = contents(home)
    killed = 0
    for step in itertools.count(1, 1 if EVERY_STEP else stride):
        home = fresh_home(begin)

        def work(home: Path = home, step: int = step) -> None:
            failpoint(step, die, steps)
            small.extract(home, backend, retry_failed=grow)

        status = forked(work)
        finished = assert_sound(home)
        if status == 0:
            assert finished == 2
            break
        assert status == -signal.SIGKILL, f"step {step}"
        killed += 1
        small.extract(home, backend, retry_failed=grow)
        assert contents(home) == wanted, f"killed at step {step}"
    assert contents(home) == wanted
    print(f"killed {killed} times")
    assert killed > 4
